"""Substitution on a GPU: cuSPARSE's triangular solves (SpSM) through CuPy's bindings.

SpSM has an analysis phase that finds which unknowns can be solved at once. `spsm` of CuPy
repeats it at every call; here it runs once per batch size, and descriptor, workspace and operands
are kept. cuSPARSE reads the addresses of torch tensors, so nothing is copied between the libraries.
Calls run on torch's current stream and none waits for the GPU.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutslots.qp.factor import Factor


def missing() -> str | None:
    """Why cuSPARSE cannot be used here and what to do; None if it can."""
    try:
        import cupy
        from cupy_backends.cuda.libs import cusparse  # noqa: F401

        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "CuPy sees no GPU."
    except ImportError as error:
        return f"cuSPARSE needs CuPy ({error}). Install it: pip install 'cutslots[cuda]'."
    except Exception as error:  # CuPy has its own error types for an absent driver or library
        return f"CuPy cannot use the GPU ({error})."
    return None


class Substitution:
    """M^-1 by two triangular solves, analysed once per batch size and stream."""

    # Training has one batch size and evaluation a second, each with a smaller last batch.
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
        # Layers of several threads may share this factor, but a plan's operands serve one call.
        self.lock = threading.Lock()

    def solve(self, rhs: Tensor) -> Tensor:
        if not len(rhs):
            return rhs.clone()
        import cupy

        with self.lock, torch.cuda.device(self.device), cupy.cuda.Device(self.device.index or 0):
            stream = torch.cuda.current_stream().cuda_stream
            with cupy.cuda.ExternalStream(stream):
                plan = self._plan(len(rhs), stream)
                return plan.run(rhs, self.permutation, self.inverse_permutation)

    def _plan(self, batch: int, stream: int) -> "_Plan":
        plan = self.plans.pop((batch, stream), None)
        if plan is None:
            # The plan outlives an inference mode in which the first step may run.
            with torch.inference_mode(False):
                plan = _Plan(self, batch)
        self.plans[batch, stream] = plan
        while len(self.plans) > self.KEPT:
            # A solve on any stream may still use the oldest plan's operands.
            torch.cuda.synchronize(self.device)
            del self.plans[next(iter(self.plans))]
        return plan


class _Plan:
    """What one batch size needs: operands B -> X -> Y; descriptor and workspace of both solves.

    The operands are `(batch, n)` row-major, which is cuSPARSE's column-major `n x batch`. The
    cuSPARSE handles are destroyed with the plan.
    """

    def __init__(self, owner: Substitution, batch: int) -> None:
        from cupy_backends.cuda.libs import cusparse as cs

        n, single = owner.n, owner.dtype == torch.float32
        self.kind = 0 if single else 1  # cudaDataType: CUDA_R_32F, CUDA_R_64F
        self.one = np.ones(1, dtype=np.float32 if single else np.float64)
        # The handles point at these tensors, so the plan keeps them alive.
        self.factor = owner.indptr, owner.indices, owner.values
        self.operands = [
            torch.empty(batch, n, dtype=owner.dtype, device=owner.device) for _ in range(3)
        ]
        self.dense = []
        for operand in self.operands:
            address = operand.data_ptr()
            handle = cs.createDnMat(n, batch, n, address, self.kind, cs.CUSPARSE_ORDER_COL)
            self.dense.append(self._owned(handle, cs.destroyDnMat))
        indptr, indices, values = (array.data_ptr() for array in self.factor)
        handle = cs.createCsr(
            n, n, len(owner.values), indptr, indices, values, cs.CUSPARSE_INDEX_32I,
            cs.CUSPARSE_INDEX_32I, cs.CUSPARSE_INDEX_BASE_ZERO, self.kind,
        )  # fmt: skip
        self.sparse = self._owned(handle, cs.destroySpMat)
        cs.spMatSetAttribute(self.sparse, cs.CUSPARSE_SPMAT_FILL_MODE, cs.CUSPARSE_FILL_MODE_LOWER)
        diagonal = cs.CUSPARSE_DIAG_TYPE_NON_UNIT
        cs.spMatSetAttribute(self.sparse, cs.CUSPARSE_SPMAT_DIAG_TYPE, diagonal)
        self.solves: list[tuple[int, int, Tensor]] = []  # operation, descriptor, workspace
        operations = cs.CUSPARSE_OPERATION_NON_TRANSPOSE, cs.CUSPARSE_OPERATION_TRANSPOSE
        for step, operation in enumerate(operations):
            descriptor = self._owned(cs.spSM_createDescr(), cs.spSM_destroyDescr)
            needed = cs.spSM_bufferSize(*self._arguments(step, operation), descriptor)
            workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device=owner.device)
            cs.spSM_analysis(*self._arguments(step, operation), descriptor, workspace.data_ptr())
            self.solves.append((operation, descriptor, workspace))

    def _owned(self, handle: int, destroy: Callable[[int], None]) -> int:
        """Destroy a handle with the plan, also if `__init__` fails; but not at exit."""
        weakref.finalize(self, destroy, handle).atexit = False
        return handle

    def run(self, rhs: Tensor, permutation: Tensor, inverse_permutation: Tensor) -> Tensor:
        from cupy_backends.cuda.libs import cusparse as cs

        torch.index_select(rhs, 1, permutation, out=self.operands[0])
        for step, (operation, descriptor, workspace) in enumerate(self.solves):
            self.operands[step + 1].zero_()  # SpSM needs its output cleared
            cs.spSM_solve(*self._arguments(step, operation), descriptor, workspace.data_ptr())
        return self.operands[2].index_select(1, inverse_permutation)

    def _arguments(self, step: int, operation: int) -> tuple[Any, ...]:
        """Arguments of SpSM before its descriptor: op(L) operands[step + 1] = operands[step]."""
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cusparse as cs

        return (
            device.get_cusparse_handle(), operation, cs.CUSPARSE_OPERATION_NON_TRANSPOSE,
            self.one.ctypes.data, self.sparse, self.dense[step], self.dense[step + 1], self.kind,
            cs.CUSPARSE_SPSM_ALG_DEFAULT,
        )  # fmt: skip
