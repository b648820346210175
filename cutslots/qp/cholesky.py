"""Sparse Cholesky factors as dense panels, and the substitutions with them.

    L L^T = M[permutation][:, permutation]      M sparse, symmetric, positive definite

CHOLMOD factors (through scikit-sparse), or SuperLU in its symmetric mode (SciPy) where CHOLMOD is missing. What is kept is
neither's object but plain arrays that can lie in a file, be shared by processes and move to a GPU: L's columns parted into runs,
each run a dense panel. A run is a supernode (columns with the same rows below them) or a whole small subtree of the elimination
tree, so a substitution is a few hundred small matrix products for all right-hand sides at once, in place of one step a column.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from cutslots.errors import InputError

LOG = logging.getLogger("cutslots.qp")
# Subtrees of the elimination tree up to this size become one panel: at 64 x 64 pixels 93 panels in place of 3,081 supernodes, for
# 0.5 M numbers in place of 0.07 M (CHOLMOD, AMD). Below that, calls cost more than the arithmetic they save.
SUBTREE = 128
# Up to this size a panel's diagonal block is inverted once, which turns its solve into a product.
INVERT_UP_TO = 256
# On a GPU a product with the whole inverse is one kernel; a substitution is a chain of hundreds. 1 GB in float32, 9 GB while it is
# made. Chosen by that memory, not by a measurement: no GPU was at hand (`cutslots bench solvers` measures it).
DENSE_UP_TO = 16_384


@dataclass(frozen=True, eq=False)
class Factor:
    """L of `L L^T = M[permutation][:, permutation]`, its columns parted into runs.

    Attributes:
        permutation: `(n,)` int64.
        starts: `(runs + 1,)` int64, the first column of each run, then n.
        ends: `(runs + 1,)` int64, where each run's part of `rows` begins, then its length.
        rows: int64, for each run the rows below its diagonal block, rising.
        values: float64, for each run its panel, row-major: the lower-triangular diagonal block, then the rows below.
    """

    permutation: Tensor
    starts: Tensor
    ends: Tensor
    rows: Tensor
    values: Tensor
    _engines: dict[tuple[torch.device, torch.dtype, bool], Callable[[Tensor], Tensor]] = field(
        default_factory=dict, repr=False
    )

    def solve(self, rhs: Tensor, invert: bool = False) -> Tensor:
        """M^-1 applied to each row of `(batch, n)`, on the rows' device and in their precision.

        `invert` allows the whole inverse on a GPU, for n up to `DENSE_UP_TO`.
        """
        key = rhs.device, rhs.dtype, invert
        if key not in self._engines:
            # Made for all later steps, also when the first one runs in inference mode.
            with torch.inference_mode(False):
                self._engines[key] = self._engine(*key)
        return self._engines[key](rhs)

    def panels(self) -> list[tuple[int, int, Tensor, Tensor]]:
        """For each run its first column, the one after its last, the rows below, and the panel `(columns + rows, columns)`."""
        starts, ends = self.starts.tolist(), self.ends.tolist()
        runs, at = [], 0
        for start, stop, first, last in zip(starts, starts[1:], ends, ends[1:], strict=False):
            width, height = stop - start, stop - start + last - first
            runs.append(
                (
                    start,
                    stop,
                    self.rows[first:last],
                    self.values[at : at + width * height].view(height, width),
                )
            )
            at += width * height
        return runs

    def lower(self) -> sp.csr_array:
        """L itself, as a sparse matrix."""
        parts = []
        for start, stop, rows, panel in self.panels():
            place, column = np.nonzero(panel.numpy())
            row = np.concatenate([np.arange(start, stop), rows.numpy()])[place]
            parts.append((panel.numpy()[place, column], row, column + start))
        data, row, column = (np.concatenate(part) for part in zip(*parts, strict=True))
        n = len(self.permutation)
        return sp.csr_array((data, (row, column)), shape=(n, n))

    def _engine(
        self, device: torch.device, dtype: torch.dtype, invert: bool
    ) -> Callable[[Tensor], Tensor]:
        if device.type == "cuda":
            if invert and len(self.permutation) <= DENSE_UP_TO:
                return _Inverse(self, device, dtype).solve
            from cutslots.qp import cusparse

            missing = cusparse.missing()
            if missing is None:
                return cusparse.Substitution(self, device, dtype).solve
            LOG.warning("%s Substituting with dense panels instead, which is slower.", missing)
        return _Panels(self, device, dtype).solve

    def __deepcopy__(self, memo: dict) -> "Factor":
        """Copies of a layer share its factor; it never changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The arrays; engines belong to their process (cuSPARSE's are addresses)."""
        return self.__dict__ | {"_engines": {}}


class _Panels:
    """Forward and backward substitution, a few matrix products a panel."""

    def __init__(self, factor: Factor, device: torch.device, dtype: torch.dtype) -> None:
        self.permutation = factor.permutation.to(device)
        self.inverse_permutation = torch.argsort(self.permutation)
        self.panels = []
        for start, stop, rows, panel in factor.panels():
            width = stop - start
            block, below = panel[:width].to(device), panel[width:].to(device, dtype)
            inverted = width <= INVERT_UP_TO
            if inverted:
                eye = torch.eye(width, dtype=block.dtype, device=device)
                block = torch.linalg.solve_triangular(block, eye, upper=False)
            self.panels.append((start, stop, rows.to(device), block.to(dtype), inverted, below))

    def solve(self, rhs: Tensor) -> Tensor:
        # A row an unknown: then every panel works on whole rows of all right-hand sides.
        x = rhs.T.index_select(0, self.permutation)
        for start, stop, rows, block, inverted, below in self.panels:
            part = x[start:stop]
            part.copy_(
                block @ part
                if inverted
                else torch.linalg.solve_triangular(block, part, upper=False)
            )
            if len(rows):
                x.index_add_(0, rows, below @ part, alpha=-1)
        for start, stop, rows, block, inverted, below in reversed(self.panels):
            part = x[start:stop]
            if len(rows):
                part.addmm_(below.T, x.index_select(0, rows), alpha=-1)
            part.copy_(
                block.T @ part
                if inverted
                else torch.linalg.solve_triangular(block.T, part, upper=True)
            )
        return x.index_select(0, self.inverse_permutation).T.contiguous()


class _Inverse:
    """M^-1 whole, for a GPU and moderate n."""

    def __init__(self, factor: Factor, device: torch.device, dtype: torch.dtype) -> None:
        lower = factor.lower().tocoo()
        index = torch.from_numpy(np.stack([lower.row, lower.col]).astype(np.int64))
        sparse = torch.sparse_coo_tensor(
            index, torch.from_numpy(lower.data), lower.shape, check_invariants=True
        )
        dense = sparse.to(device).to_dense()
        back = torch.argsort(factor.permutation.to(device))
        self.inverse = torch.cholesky_inverse(dense)[back][:, back].to(dtype)

    def solve(self, rhs: Tensor) -> Tensor:
        return rhs @ self.inverse


def factorise(matrix: Any, transposed: bool = False) -> Factor:
    """Factor a sparse M, or with `transposed` the matrix A A^T of a sparse A, which CHOLMOD never forms.

    Raises:
        InputError: the matrix is not positive definite up to rounding (for A A^T: rows of A are linearly dependent), or its factor
            does not fit in memory.
    """
    largest = float((matrix.multiply(matrix).sum(1) if transposed else matrix.diagonal()).max())
    try:
        lower, permutation = (_cholmod if has_cholmod() else _superlu)(matrix, transposed)
        # Where the exact pivot is 0, rounding leaves one of either sign.
        if lower.diagonal().min() ** 2 <= len(permutation) * np.finfo(float).eps * largest:
            raise _NotPositiveDefiniteError
    except _NotPositiveDefiniteError as error:
        what = "A A^T is singular: rows of A are linearly dependent. Leave out the ones that follow from others."
        raise InputError(what if transposed else "the matrix is not positive definite.") from error
    except MemoryError as error:
        raise InputError(
            f"the factor of a matrix with {matrix.shape[0]:,} rows does not fit in memory. "
            'Take a smaller problem; for cuts, solver="auto" needs far less than "kkt".'
        ) from error
    return _parted(lower, permutation)


class _NotPositiveDefiniteError(ArithmeticError):
    pass


def has_cholmod() -> bool:
    """Whether CHOLMOD is there, through scikit-sparse."""
    try:
        import sksparse.cholmod  # noqa: F401
    except ImportError:
        return False
    return True


def _cholmod(matrix: Any, transposed: bool) -> tuple[sp.csc_array, np.ndarray]:
    import sksparse.cholmod as cholmod

    try:
        factor = (cholmod.cholesky_AAt if transposed else cholmod.cholesky)(sp.csc_matrix(matrix))
        return sp.csc_array(factor.L()), factor.P()
    except cholmod.CholmodNotPositiveDefiniteError as error:
        raise _NotPositiveDefiniteError from error
    except (cholmod.CholmodOutOfMemoryError, cholmod.CholmodTooLargeError) as error:
        raise MemoryError from error


def _superlu(matrix: Any, transposed: bool) -> tuple[sp.csc_array, np.ndarray]:
    if transposed:
        matrix = matrix @ matrix.T
    # Pivots stay on the diagonal, so L U = M with U = D L^T, and Cholesky's L is L sqrt(D).
    try:
        factor = splu(
            sp.csc_matrix(matrix),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except RuntimeError as error:  # SuperLU's word for a pivot of exactly 0
        raise _NotPositiveDefiniteError from error
    pivots = factor.U.diagonal()
    if not np.array_equal(factor.perm_r, factor.perm_c) or not np.all(pivots > 0):
        raise _NotPositiveDefiniteError
    return sp.csc_array(factor.L @ sp.diags_array(np.sqrt(pivots))), np.argsort(factor.perm_c)


def _parted(lower: sp.csc_array, permutation: np.ndarray) -> Factor:
    """Cut L's columns into runs and make each a dense panel."""
    lower.sort_indices()
    starts = _runs(lower)
    rows, values = [], []
    for start, stop in itertools.pairwise(starts):
        first, last = lower.indptr[start], lower.indptr[stop]
        row, column = (
            lower.indices[first:last],
            np.repeat(np.arange(stop - start), np.diff(lower.indptr[start : stop + 1])),
        )
        below = np.unique(row[row >= stop])
        panel = np.zeros((stop - start + len(below), stop - start))
        panel[np.searchsorted(np.concatenate([np.arange(start, stop), below]), row), column] = (
            lower.data[first:last]
        )
        rows.append(below)
        values.append(panel.ravel())
    ends = np.cumsum([0, *map(len, rows)])
    return Factor(
        torch.from_numpy(permutation.astype(np.int64)),
        torch.from_numpy(starts.astype(np.int64)),
        torch.from_numpy(ends.astype(np.int64)),
        torch.from_numpy(np.concatenate(rows).astype(np.int64)),
        torch.from_numpy(np.concatenate(values)),
    )


def _runs(lower: sp.csc_array) -> np.ndarray:
    """The first columns of the runs, then n. Any runs are correct; good ones have few zeros in their panels."""
    counts = np.diff(lower.indptr)
    n = len(counts)
    # A column's parent in the elimination tree is its first row below the diagonal; roots hang from n.
    parent = np.full(n, n)
    inner = counts > 1
    parent[inner] = lower.indices[lower.indptr[:-1][inner] + 1]
    size = np.ones(n + 1, dtype=np.int64)
    for column, above in enumerate(parent.tolist()):
        size[above] += size[column]
    begins = np.ones(n + 1, dtype=bool)
    begins[1:n] = (parent[:-1] != np.arange(1, n)) | (counts[:-1] != counts[1:] + 1)
    # The columns are in postorder, so a subtree is a run of columns that ends at its root.
    small = np.append(size[:n] <= SUBTREE, False)
    for root in np.flatnonzero(small[:n] & ~small[parent]).tolist():
        begins[root + 2 - size[root] : root + 1] = False
        begins[root + 1 - size[root]] = begins[root + 1] = True
    return np.flatnonzero(begins)
