"""General equality-constrained quadratic programs as a layer (the paper's Eq. 3, 5, 6).

    minimise    c.z + 1/2 z^T G z        G = diag(gamma)
    subject to  A z = b

    z = -G^-1 (c + A^T l) ,     K l = -(b + A G^-1 c) ,     K = A G^-1 A^T

K is factored once, sparse. z is linear in (c, b); its transpose, the backward pass, is one solve with K as well.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.qp import factors
from cutslots.qp.checks import floating, positive
from cutslots.qp.linear_map import LinearMap
from cutslots.qp.tables import Tables


class EqualityQP(nn.Module):
    """The minimiser of a regularised linear cost under linear equations, differentiable in the cost and the right-hand side.

    Args:
        A: constraint matrix `(m, n)`, dense or sparse (NumPy, SciPy or torch), with linearly independent rows.
        b: right-hand side `(m,)`.
        gamma: regularisation > 0, one number (the paper's G = gamma I) or one a variable, `(n,)`.

    Call it on costs c `(batch, n)`, and optionally other right-hand sides `(batch, m)`; it returns z `(batch, n)`. float32 and
    float64 are computed as they come, half precisions in float32. The factor of A A^T is found once a node
    (`cutslots.qp.factors`), whatever gamma.

    Raises:
        InputError: arguments of shapes that do not fit, a gamma that is not positive, or rows of A that depend on each other.
    Source: Eq. 3, 5, 6 of Pervez et al. (2023).
    """

    def __init__(self, A: Any, b: Any, gamma: float | np.ndarray | Tensor = 1.0) -> None:
        super().__init__()
        matrix, shape = _sparse(A)
        self.num_constraints, self.num_variables = shape
        right = np.array(b.detach().cpu() if isinstance(b, Tensor) else b, dtype=np.float64)
        if right.shape != (self.num_constraints,):
            raise InputError(
                f"b has shape {right.shape}; A of shape {shape} needs ({self.num_constraints},)."
            )
        if not np.isfinite(right).all():
            raise InputError("b holds numbers that are not finite.")
        regular = np.array(
            gamma.detach().cpu() if isinstance(gamma, Tensor) else gamma, dtype=np.float64
        )
        if regular.shape not in ((), (self.num_variables,)):
            raise InputError(
                f"gamma has shape {regular.shape}; give one number, or one a variable, ({self.num_variables},)."
            )
        positive("gamma" if regular.ndim == 0 else "the least gamma", float(regular.min()))
        positive("gamma" if regular.ndim == 0 else "the largest gamma", float(regular.max()))
        weights = np.broadcast_to(regular, (self.num_variables,))
        # In units of the first gamma: the factor then knows how gammas relate and not how large they are.
        self.scale = float(weights[0])
        relative = np.sqrt(self.scale / weights)
        self.factor = factors.of_constraints(
            sp.csr_array(matrix @ sp.diags_array(relative)), f"A A^T of a {shape} program"
        )
        coo = matrix.tocoo()
        index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
        constraints = torch.sparse_coo_tensor(
            index, torch.from_numpy(coo.data), shape, check_invariants=True
        ).coalesce()
        self._tables = Tables(constraints, right, 1 / weights)

    def forward(
        self, c: Float[Tensor, "batch n"], b: Float[Tensor, "batch m"] | None = None
    ) -> Float[Tensor, "batch n"]:
        c = self._checked("c", c, self.num_variables)
        right = (
            self._tables.on(c)[1].expand(len(c), -1)
            if b is None
            else self._checked("b", b, self.num_constraints).to(c)
        )
        if len(right) != len(c):
            raise InputError(f"c has {len(c)} rows and b {len(right)}; give one b a cost.")
        return LinearMap.apply(self._minimiser, self._transposed, c, right)

    def extra_repr(self) -> str:
        return f"{self.num_constraints} constraints, {self.num_variables} variables"

    def _minimiser(self, c: Tensor, b: Tensor) -> Tensor:
        A, _, inverse = self._tables.on(c)
        multipliers = -self.scale * self.factor.solve(b + _times(A, c * inverse))
        return -(c + _times(A.mT, multipliers)) * inverse

    def _transposed(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        A, _, inverse = self._tables.on(grad)
        spread = self.scale * self.factor.solve(_times(A, grad * inverse))
        return (_times(A.mT, spread) - grad) * inverse, spread

    def _checked(self, name: str, values: Tensor, width: int) -> Tensor:
        if values.ndim != 2 or values.shape[1] != width:
            raise InputError(
                f"{name} has shape {tuple(values.shape)}; this program takes (batch, {width})."
            )
        return floating(name, values)


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
        raise InputError(
            f"A has shape {A.shape}; a constraint matrix is (m, n) with at least one row and one column."
        )
    matrix = sp.csr_array(A, dtype=np.float64, copy=True)
    matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all():
        raise InputError("A holds numbers that are not finite.")
    return matrix, (A.shape[0], A.shape[1])
