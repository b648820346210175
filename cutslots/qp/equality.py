"""General equality-constrained quadratic programs as a layer (the paper's Eq. 3, 5, 6).

    minimise    c.z + 1/2 z^T G z        G = diag(gamma)
    subject to  A z = b

    z = -G^-1 (c + A^T l) ,     K l = -(b + A G^-1 c) ,     K = A G^-1 A^T

K is sparse and factored once. z is linear in (c, b); its transpose, the backward pass, is one solve
with K as well.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.qp._util import LinearMap, Tables, floating, positive
from cutslots.qp.factors import factor_of
from cutslots.qp.substitution import apply


class EqualityQP(nn.Module):
    """The minimiser of a regularised linear cost under linear equations, differentiable in both.

    Args:
        A: constraint matrix `(m, n)` of full row rank, dense or sparse (NumPy, SciPy or torch).
        b: right-hand side `(m,)`.
        gamma: regularisation > 0, a number (the paper's G = gamma I) or `(n,)`, one per variable.

    Call it on costs c `(batch, n)` and optionally right-hand sides `(batch, m)` in place of b; it
    returns z `(batch, n)`. Half precisions are computed in float32. One factor of A A^T per node
    serves every single gamma (`cutslots.qp.factors`).

    Raises:
        InputError: shapes that do not match, gamma <= 0, or linearly dependent rows of A.
    Source: Eq. 3, 5, 6 of Pervez et al. (2023).
    """

    def __init__(self, A: Any, b: Any, gamma: float | np.ndarray | Tensor = 1.0) -> None:
        super().__init__()
        matrix, shape = _sparse(A)
        self.num_constraints, self.num_variables = shape
        right, weights = _float64(b), _float64(gamma)
        if right.shape != shape[:1]:
            raise InputError(
                f"b must have shape {shape[:1]} for A of shape {shape}, got {right.shape}."
            )
        if not np.isfinite(right).all():
            raise InputError("b must be finite.")
        if weights.shape not in ((), shape[1:]):
            raise InputError(
                f"gamma must be a number or of shape {shape[1:]}, got {weights.shape}."
            )
        positive("gamma", float(weights.min()))
        positive("gamma", float(weights.max()))
        weights = np.broadcast_to(weights, shape[1:])
        # In units of the first gamma, the factor depends on how gammas relate, not on their size.
        self.scale = float(weights[0])
        relative = sp.csr_array(matrix @ sp.diags_array(np.sqrt(self.scale / weights)))
        self.factor = factor_of(relative, f"A A^T of a {shape} program", transposed=True)
        coo = matrix.tocoo()
        index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
        values = torch.from_numpy(coo.data)
        constraints = torch.sparse_coo_tensor(index, values, shape, check_invariants=True)
        self._tables = Tables(constraints.coalesce(), right, 1 / weights)

    def forward(
        self, c: Float[Tensor, "batch n"], b: Float[Tensor, "batch m"] | None = None
    ) -> Float[Tensor, "batch n"]:
        c = self._checked("c", c, self.num_variables)
        if b is None:
            right = self._tables.on(c)[1].expand(len(c), -1)
        else:
            right = self._checked("b", b, self.num_constraints).to(c)
        if len(right) != len(c):
            raise InputError(f"b must have as many rows as c, got {len(right)} and {len(c)}.")
        return LinearMap.apply(self._minimiser, self._transposed, c, right)

    def extra_repr(self) -> str:
        return f"{self.num_constraints} constraints, {self.num_variables} variables"

    def _minimiser(self, c: Tensor, b: Tensor) -> Tensor:
        A, _, inverse = self._tables.on(c)
        multipliers = -self.scale * apply(self.factor, b + _times(A, c * inverse))
        return -(c + _times(A.mT, multipliers)) * inverse

    def _transposed(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        A, _, inverse = self._tables.on(grad)
        spread = self.scale * apply(self.factor, _times(A, grad * inverse))
        return (_times(A.mT, spread) - grad) * inverse, spread

    def _checked(self, name: str, values: Tensor, width: int) -> Tensor:
        if values.ndim != 2 or values.shape[1] != width:
            raise InputError(f"{name} must have shape (batch, {width}), got {tuple(values.shape)}.")
        return floating(name, values)


def _float64(values: Any) -> np.ndarray:
    return np.array(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    """A sparse matrix applied to each row of `(batch, .)`."""
    return torch.sparse.mm(matrix, rows.mT).mT.contiguous()


def _sparse(A: Any) -> tuple[sp.csr_array, tuple[int, int]]:
    if isinstance(A, Tensor):
        A = A.detach().cpu()
        if A.layout != torch.strided:
            coo = A.to_sparse_coo().coalesce()
            A = sp.coo_array((coo.values().numpy(), coo.indices().numpy()), shape=tuple(A.shape))
    if not sp.issparse(A):
        A = np.asarray(A, dtype=np.float64)
    if A.ndim != 2 or 0 in A.shape:
        raise InputError(f"A must have shape (m, n) with m, n >= 1, got {A.shape}.")
    matrix = sp.csr_array(A, dtype=np.float64, copy=True)
    matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all():
        raise InputError("A must be finite.")
    return matrix, (A.shape[0], A.shape[1])
