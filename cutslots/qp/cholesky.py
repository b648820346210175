"""Sparse Cholesky factorisation into dense panels.

    L L^T = M[permutation][:, permutation]      M sparse, symmetric, positive definite

CHOLMOD factors (through scikit-sparse), or SuperLU in its symmetric mode (SciPy) if CHOLMOD is not
installed. The result keeps neither library's object: L's columns are split into runs, each a dense
panel. A run is a supernode (columns with the same rows below them) or a whole small subtree of the
elimination tree.
"""

import itertools
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from cutslots.errors import InputError
from cutslots.qp.factor import Factor

# Subtrees of the elimination tree up to this size become one panel: at 64 x 64 pixels 93 panels
# instead of 3,081 supernodes, for 0.5 M numbers instead of 0.07 M (CHOLMOD, AMD). For smaller
# panels, calls cost more than the arithmetic they save.
SUBTREE = 128


def factorise(matrix: Any, transposed: bool = False) -> Factor:
    """Factor a sparse M, or with `transposed` A A^T of a sparse A, which CHOLMOD never forms.

    Raises:
        InputError: the matrix is not positive definite up to rounding (for A A^T: rows of A are
            linearly dependent), or its factor does not fit in memory.
    """
    largest = float((matrix.multiply(matrix).sum(1) if transposed else matrix.diagonal()).max())
    try:
        lower, permutation = (_cholmod if has_cholmod() else _superlu)(matrix, transposed)
        # Rounding turns an exact pivot of 0 into a tiny one of either sign.
        if lower.diagonal().min() ** 2 <= len(permutation) * np.finfo(float).eps * largest:
            raise np.linalg.LinAlgError
    except np.linalg.LinAlgError as error:
        singular = "rows of A are linearly dependent, so A A^T is singular. Remove redundant rows."
        text = singular if transposed else "the matrix is not positive definite."
        raise InputError(text) from error
    except MemoryError as error:
        raise InputError(
            f"the factor of a matrix with {matrix.shape[0]:,} rows does not fit in memory. Use a "
            'smaller problem; for cuts, solver="auto" needs far less memory than "kkt".'
        ) from error
    return _panels(lower, permutation)


def has_cholmod() -> bool:
    """Whether CHOLMOD is installed (through scikit-sparse)."""
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
        raise np.linalg.LinAlgError from error
    except (cholmod.CholmodOutOfMemoryError, cholmod.CholmodTooLargeError) as error:
        raise MemoryError from error


def _superlu(matrix: Any, transposed: bool) -> tuple[sp.csc_array, np.ndarray]:
    matrix = sp.csc_matrix(matrix @ matrix.T if transposed else matrix)
    # Pivots stay on the diagonal, so L U = M with U = D L^T, and Cholesky's L is L sqrt(D).
    options = {"SymmetricMode": True}
    try:
        factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError as error:  # a pivot of exactly 0
        raise np.linalg.LinAlgError from error
    pivots = factor.U.diagonal()
    if not np.array_equal(factor.perm_r, factor.perm_c) or not np.all(pivots > 0):
        raise np.linalg.LinAlgError
    return sp.csc_array(factor.L @ sp.diags_array(np.sqrt(pivots))), np.argsort(factor.perm_c)


def _panels(lower: sp.csc_array, permutation: np.ndarray) -> Factor:
    """Split L's columns into runs and store each as a dense panel."""
    lower.sort_indices()
    starts = _runs(lower)
    rows, values = [], []
    for start, stop in itertools.pairwise(starts):
        first, last = lower.indptr[start], lower.indptr[stop]
        row = lower.indices[first:last]
        column = np.repeat(np.arange(stop - start), np.diff(lower.indptr[start : stop + 1]))
        below = np.unique(row[row >= stop])
        panel = np.zeros((stop - start + len(below), stop - start))
        local = np.searchsorted(np.concatenate([np.arange(start, stop), below]), row)
        panel[local, column] = lower.data[first:last]
        rows.append(below)
        values.append(panel.ravel())
    ends = np.cumsum([0, *map(len, rows)])
    arrays = [permutation, starts, ends, np.concatenate(rows)]
    integers = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
    return Factor(*integers, values=torch.from_numpy(np.concatenate(values)))


def _runs(lower: sp.csc_array) -> np.ndarray:
    """First columns of the runs, then n. Any runs are correct; good ones store few zeros."""
    counts = np.diff(lower.indptr)
    n = len(counts)
    # The parent of a column in the elimination tree: its first row below the diagonal, or n.
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
