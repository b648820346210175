"""M^-1 applied to right-hand sides with a sparse Cholesky factor, on a CPU or a GPU.

A run of columns is a dense panel, so a substitution is a few hundred small matrix products for all
right-hand sides at once instead of one step per column. On a GPU, moderate n use the whole inverse
where the caller allows it, and cuSPARSE's triangular solves do the rest where CuPy is installed.
"""

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from cutslots.qp import cusparse
from cutslots.qp.factor import Factor

LOG = logging.getLogger("cutslots.qp")
# Up to this size a panel's diagonal block is inverted once, which turns its solve into a product.
INVERT_UP_TO = 256
# On a GPU a product with the whole inverse is one kernel; a substitution is a chain of hundreds.
# The bound is one of memory (1 GB in float32, 9 GB during the inversion), not of measured speed:
# compare with `cutslots bench solvers`.
DENSE_UP_TO = 16_384
_Engine = Callable[[Tensor], Tensor]
_engines: WeakKeyDictionary[Factor, dict[tuple, _Engine]] = WeakKeyDictionary()


def apply(factor: Factor, rhs: Tensor, invert: bool = False) -> Tensor:
    """M^-1 applied to each row of `(batch, n)`, on the rows' device and in their precision.

    `invert` allows the whole inverse on a GPU, for n up to `DENSE_UP_TO`.
    """
    engines = _engines.setdefault(factor, {})
    key = rhs.device, rhs.dtype, invert
    if key not in engines:
        with torch.inference_mode(False):  # the first step may run in inference mode
            engines[key] = _engine(factor, *key)
    return engines[key](rhs)


def _engine(factor: Factor, device: torch.device, dtype: torch.dtype, invert: bool) -> _Engine:
    if device.type == "cuda":
        if invert and len(factor.permutation) <= DENSE_UP_TO:
            return Inverse(factor, device, dtype).solve
        missing = cusparse.missing()
        if missing is None:
            return cusparse.Substitution(factor, device, dtype).solve
        LOG.warning("%s Substituting with dense panels instead, which is slower.", missing)
    return Panels(factor, device, dtype).solve


class Panels:
    """Forward and backward substitution, a few matrix products per panel."""

    def __init__(self, factor: Factor, device: torch.device, dtype: torch.dtype) -> None:
        self.permutation = factor.permutation.to(device)
        self.inverse_permutation = torch.argsort(self.permutation)
        self.panels = []
        for start, stop, rows, panel in factor.panels():
            width = stop - start
            block, below = panel[:width].to(device), panel[width:].to(device, dtype)
            if width <= INVERT_UP_TO:
                eye = torch.eye(width, dtype=block.dtype, device=device)
                block = torch.linalg.solve_triangular(block, eye, upper=False)
            self.panels.append((start, stop, rows.to(device), block.to(dtype), below))

    def solve(self, rhs: Tensor) -> Tensor:
        # One row per unknown, so that every panel works on whole rows of all right-hand sides.
        x = rhs.T.index_select(0, self.permutation)
        for start, stop, rows, block, below in self.panels:
            part = x[start:stop]
            part.copy_(_solve(block, part, upper=False))
            if len(rows):
                x.index_add_(0, rows, below @ part, alpha=-1)
        for start, stop, rows, block, below in reversed(self.panels):
            part = x[start:stop]
            if len(rows):
                part.addmm_(below.T, x.index_select(0, rows), alpha=-1)
            part.copy_(_solve(block.T, part, upper=True))
        return x.index_select(0, self.inverse_permutation).T.contiguous()


def _solve(block: Tensor, part: Tensor, upper: bool) -> Tensor:
    if len(block) <= INVERT_UP_TO:  # already inverted
        return block @ part
    return torch.linalg.solve_triangular(block, part, upper=upper)


class Inverse:
    """The whole of M^-1 for a GPU and moderate n."""

    def __init__(self, factor: Factor, device: torch.device, dtype: torch.dtype) -> None:
        lower = factor.lower().tocoo()
        index = torch.from_numpy(np.stack([lower.row, lower.col]).astype(np.int64))
        values = torch.from_numpy(lower.data)
        sparse = torch.sparse_coo_tensor(index, values, lower.shape, check_invariants=True)
        back = torch.argsort(factor.permutation.to(device))
        inverse = torch.cholesky_inverse(sparse.to(device).to_dense())
        self.inverse = inverse[back][:, back].to(dtype)

    def solve(self, rhs: Tensor) -> Tensor:
        return rhs @ self.inverse
