"""Substitution with a sparse Cholesky factor on a GPU: cuSPARSE's triangular solves (SpSM) through CuPy's bindings.

SpSM has an analysis phase that finds which unknowns can be solved at once. CuPy's own `spsm` repeats it at every call; here it is
done once for each batch size, and its descriptor, workspace and operands are kept. torch owns all memory, CuPy lends the calls:
the factor, the operands and the workspace are torch tensors whose addresses cuSPARSE reads, so nothing is copied between the two
libraries. Calls go to torch's current stream and none waits for the GPU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutslots.qp.cholesky import Factor


def missing() -> str | None:
    """Why cuSPARSE cannot be used here and what to do; None when it can."""
    try:
        import cupy
        from cupy_backends.cuda.libs import cusparse  # noqa: F401

        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "CuPy sees no GPU."
    except ImportError as error:
        return f"cuSPARSE needs CuPy ({error}). Install it: pip install 'cutslots[cuda]'."
    except Exception as error:  # CuPy raises its own types when the driver or a library is absent
        return f"CuPy cannot use the GPU ({error})."
    return None


class Substitution:
    """M^-1 by two triangular solves, analysed once for each batch size and stream."""

    # Training has one batch size and evaluation a second, with a smaller last batch each.
    KEPT = 8

    def __init__(self, factor: Factor, device: torch.device, dtype: torch.dtype) -> None:
        lower = factor.lower()
        lower.sort_indices()
        self.n, self.device, self.dtype = len(factor.permutation), device, dtype
        self.indptr = torch.from_numpy(lower.indptr.astype(np.int32)).to(device)
        self.indices = torch.from_numpy(lower.indices.astype(np.int32)).to(device)
        self.values = torch.from_numpy(lower.data).to(device, dtype)
        self.permutation = factor.permutation.to(device)
        self.inverse_permutation = torch.argsort(self.permutation)
        self.plans: dict[tuple[int, int], _Plan] = {}

    def solve(self, rhs: Tensor) -> Tensor:
        if not len(rhs):
            return rhs.clone()
        import cupy

        with torch.cuda.device(self.device), cupy.cuda.Device(self.device.index or 0):
            stream = torch.cuda.current_stream().cuda_stream
            with cupy.cuda.ExternalStream(stream):
                return self._plan(len(rhs), stream).run(rhs, self.permutation, self.inverse_permutation)

    def _plan(self, batch: int, stream: int) -> "_Plan":
        plan = self.plans.pop((batch, stream), None) or _Plan.made(self, batch)
        self.plans[batch, stream] = plan
        while len(self.plans) > self.KEPT:
            self.plans.pop(next(iter(self.plans))).destroy()
        return plan


@dataclass
class _Plan:
    """What one batch size needs: operands B -> X -> Y, and for each of the two solves its descriptor and workspace.

    The operands are `(batch, n)` row-major, which is cuSPARSE's column-major `n x batch`.
    """

    operands: list[Tensor]
    dense: list[int]
    sparse: int
    solves: list[tuple[int, int, Tensor]]  # operation, descriptor, workspace
    one: np.ndarray
    kind: int

    @classmethod
    def made(cls, of: Substitution, batch: int) -> "_Plan":
        from cupy_backends.cuda.libs import cusparse as cs

        single = of.dtype == torch.float32
        kind = 0 if single else 1  # cudaDataType: CUDA_R_32F, CUDA_R_64F
        one = np.ones(1, dtype=np.float32 if single else np.float64)
        operands = [torch.empty(batch, of.n, dtype=of.dtype, device=of.device) for _ in range(3)]
        dense = [cs.createDnMat(of.n, batch, of.n, operand.data_ptr(), kind, cs.CUSPARSE_ORDER_COL) for operand in operands]
        sparse = cs.createCsr(
            of.n, of.n, len(of.values), of.indptr.data_ptr(), of.indices.data_ptr(), of.values.data_ptr(),
            cs.CUSPARSE_INDEX_32I, cs.CUSPARSE_INDEX_32I, cs.CUSPARSE_INDEX_BASE_ZERO, kind,
        )  # fmt: skip
        cs.spMatSetAttribute(sparse, cs.CUSPARSE_SPMAT_FILL_MODE, cs.CUSPARSE_FILL_MODE_LOWER)
        cs.spMatSetAttribute(sparse, cs.CUSPARSE_SPMAT_DIAG_TYPE, cs.CUSPARSE_DIAG_TYPE_NON_UNIT)
        plan = cls(operands, dense, sparse, [], one, kind)
        for step, operation in enumerate((cs.CUSPARSE_OPERATION_NON_TRANSPOSE, cs.CUSPARSE_OPERATION_TRANSPOSE)):
            descriptor = cs.spSM_createDescr()
            bytes_ = cs.spSM_bufferSize(*plan._arguments(step, operation), descriptor)
            workspace = torch.empty(max(bytes_, 1), dtype=torch.uint8, device=of.device)
            cs.spSM_analysis(*plan._arguments(step, operation), descriptor, workspace.data_ptr())
            plan.solves.append((operation, descriptor, workspace))
        return plan

    def run(self, rhs: Tensor, permutation: Tensor, inverse_permutation: Tensor) -> Tensor:
        from cupy_backends.cuda.libs import cusparse as cs

        torch.index_select(rhs, 1, permutation, out=self.operands[0])
        for step, (operation, descriptor, workspace) in enumerate(self.solves):
            self.operands[step + 1].zero_()  # SpSM needs its output cleared
            cs.spSM_solve(*self._arguments(step, operation), descriptor, workspace.data_ptr())
        return self.operands[2].index_select(1, inverse_permutation)

    def destroy(self) -> None:
        from cupy_backends.cuda.libs import cusparse as cs

        # A solve may still be running with these.
        torch.cuda.current_stream().synchronize()
        for _, descriptor, _ in self.solves:
            cs.spSM_destroyDescr(descriptor)
        for matrix in self.dense:
            cs.destroyDnMat(matrix)
        cs.destroySpMat(self.sparse)

    def _arguments(self, step: int, operation: int) -> tuple[Any, ...]:
        """What every SpSM call takes, but its descriptor: op(L) operands[step + 1] = operands[step]."""
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cusparse as cs

        return (
            device.get_cusparse_handle(), operation, cs.CUSPARSE_OPERATION_NON_TRANSPOSE, self.one.ctypes.data, self.sparse,
            self.dense[step], self.dense[step + 1], self.kind, cs.CUSPARSE_SPSM_ALG_DEFAULT,
        )  # fmt: skip
