"""What else one could solve the min-cut program with, each as a small class that `_methods.py` lists.

    p = S (gamma beta q - B^T w / 2) ,     dl/dw = -B S dl/dp / 2        S = (gamma/2 B^T B + gamma I + gamma q q^T)^-1

in the legend of qp/graph.py, with the paper's single gamma and its beta. Where a peer takes right-hand sides it gets them from our
stencils, in the memory order that it likes, so that what is compared are the solvers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from cutslots.qp import Gamma, Grid, min_cut_program
from cutslots.qp.program import Program, edge_costs

GAMMA, BETA = 0.5, 1.0


class KktCholmod:
    """The paper's method as published: a Cholesky factor of A A^T, and CHOLMOD's own substitution for all right-hand sides.

    p = A_p^T (A A^T)^-1 (w / gamma, beta) ,     A_p = (-B; q^T) the columns of A that meet p.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        from sksparse.cholmod import cholesky_AAt

        self.grid = Grid(size, size)
        self.slot = torch.from_numpy(self.grid.edges().slot)
        self.factor = cholesky_AAt(sp.csc_matrix(_program(size).A))

    def forward(self, weights: Tensor) -> Tensor:
        edges = weights.flatten(1)[:, self.slot].double() / GAMMA
        last = edges.new_full((len(edges), 1), BETA)
        multipliers = self._solve(torch.cat([edges, last], dim=1))
        return -self.grid.divergence(_layout(multipliers, self.slot, self.grid))[0].to(
            weights.dtype
        )

    def backward(self, upstream: Tensor) -> Tensor:
        drops = self.grid.gradient(
            upstream.double(), upstream.new_zeros(len(upstream), 2, dtype=torch.float64)
        )
        rows = torch.cat([-drops.flatten(1)[:, self.slot], drops.new_zeros(len(drops), 1)], dim=1)
        return _layout(self._solve(rows) / GAMMA, self.slot, self.grid).to(upstream.dtype)

    def _solve(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.factor(rows.numpy().T).T)


class Reduced:
    """Edges eliminated: S by a sparse Cholesky factor of the matrix of all potentials, s and t among them."""

    dtype = torch.float64

    def __init__(self, size: int, device: torch.device) -> None:
        self.grid, self.device = Grid(size, size), device
        program = _program(size)
        to_p = program.A[:, program.blocks["p"]]  # (-B; q^T)
        weight = sp.diags_array(np.append(np.full(len(program.b) - 1, GAMMA / 2), GAMMA))
        self.num_potentials = self.grid.num_vertices + 2
        self.factorise(
            sp.csc_array(to_p.T @ weight @ to_p + GAMMA * sp.eye_array(self.num_potentials))
        )

    def forward(self, weights: Tensor) -> Tensor:
        potentials, terminals = self.grid.divergence(weights.to(self.dtype))
        pull = terminals.new_tensor([GAMMA * BETA, -GAMMA * BETA])
        return self._solve(potentials.mul_(-0.5), terminals.mul_(-0.5) + pull)[0].to(weights.dtype)

    def backward(self, upstream: Tensor) -> Tensor:
        zero = upstream.new_zeros(len(upstream), 2, dtype=self.dtype)
        potentials, terminals = self._solve(upstream.to(self.dtype), zero)
        return self.grid.gradient(potentials * -0.5, terminals * -0.5).to(upstream.dtype)

    def _solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        solved = self.solve(torch.cat([potentials.flatten(1), terminals], dim=1))
        return solved[:, :-2].reshape(potentials.shape), solved[:, -2:]

    def factorise(self, matrix: sp.csc_array) -> None:
        raise NotImplementedError

    def solve(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class ReducedCholmod(Reduced):
    def factorise(self, matrix: sp.csc_array) -> None:
        from sksparse.cholmod import cholesky

        self.factor = cholesky(sp.csc_matrix(matrix))

    def solve(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.factor(rows.numpy().T).T)


class ReducedCholespy(Reduced):
    dtype = torch.float32
    MAX_COLUMNS_ON_GPU = 128

    def factorise(self, matrix: sp.csc_array) -> None:
        from cholespy import CholeskySolverF, MatrixType  # pyright: ignore[reportAttributeAccessIssue]

        coo = matrix.tocoo()
        parts = (coo.row.astype(np.int32), coo.col.astype(np.int32), coo.data.astype(np.float64))
        row, column, data = (torch.from_numpy(part).to(self.device) for part in parts)
        self.factor = CholeskySolverF(self.num_potentials, row, column, data, MatrixType.COO)

    def solve(self, rows: Tensor) -> Tensor:
        at_once = self.MAX_COLUMNS_ON_GPU if rows.is_cuda else len(rows)
        parts = []
        for part in rows.split(at_once):
            columns = part.T.contiguous()
            solved = torch.zeros_like(columns)
            self.factor.solve(columns, solved)
            parts.append(solved.T)
        return torch.cat(parts)


class KktSplu:
    """SciPy's sparse LU (SuperLU) of the whole KKT matrix."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.grid, self.program = Grid(size, size), _program(size)
        self.slot = torch.from_numpy(self.grid.edges().slot)
        self.factor = splu(self.program.kkt())

    def forward(self, weights: Tensor) -> Tensor:
        rhs = np.zeros((len(self.program.G) + len(self.program.b), len(weights)))
        rhs[self.program.blocks["d"]] = -edge_costs(weights.numpy(), self.grid)
        rhs[len(self.program.G) :] = self.program.b[:, None]
        p = self.factor.solve(rhs)[self.program.blocks["p"]][:-2]
        return torch.from_numpy(p.T).to(weights.dtype).reshape(len(weights), *self.grid.shape)

    def backward(self, upstream: Tensor) -> Tensor:
        rhs = np.zeros((len(self.program.G) + len(self.program.b), len(upstream)))
        rhs[self.program.blocks["p"]][:-2] = -upstream.flatten(1).numpy().T
        of_edges = torch.from_numpy(self.factor.solve(rhs)[self.program.blocks["d"]].T)
        return _layout(of_edges, self.slot, self.grid).to(upstream.dtype)


class _ByAutograd:
    """A layer from costs of the edges to all variables z, in float64."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.grid, self.program = Grid(size, size), _program(size)
        self.slot = torch.from_numpy(self.grid.edges().slot).to(device)
        self.layer = self.made(self.program, device)

    def forward(self, weights: Tensor) -> Tensor:
        self.weights = weights.detach().requires_grad_()
        z = self.layer(self.weights.flatten(1)[:, self.slot].double())
        self.potentials = (
            z[:, self.program.blocks["p"]][:, :-2]
            .reshape(len(weights), *self.grid.shape)
            .to(weights.dtype)
        )
        return self.potentials.detach()

    def backward(self, upstream: Tensor) -> Tensor:
        return torch.autograd.grad(self.potentials, self.weights, upstream)[0]

    def made(self, program: Program, device: torch.device) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError


class Qpth(_ByAutograd):
    """OptNet's interior-point layer. It wants an inequality, so it gets one that never binds: 0 z <= 1."""

    def made(self, program: Program, device: torch.device) -> Callable[[Tensor], Tensor]:
        from qpth.qp import QPFunction

        n = len(program.G)
        Q = torch.diag(torch.from_numpy(program.G)).to(device)
        A, b = (
            torch.from_numpy(program.A.toarray()).to(device),
            torch.from_numpy(program.b).to(device),
        )
        G, h = A.new_zeros(1, n), A.new_ones(1)
        solve = QPFunction(verbose=-1)

        def layer(costs: Tensor) -> Tensor:
            return solve(Q, torch.nn.functional.pad(costs, (0, n - costs.shape[1])), G, h, A, b)

        return layer


class CvxpyLayers(_ByAutograd):
    """A disciplined convex program, differentiated by diffcp; SCS to 1e-8."""

    def made(self, program: Program, device: torch.device) -> Callable[[Tensor], Tensor]:
        import cvxpy as cp
        from cvxpylayers.torch import CvxpyLayer

        num_edges = len(program.b) - 1
        z, costs = cp.Variable(len(program.G)), cp.Parameter(num_edges)
        objective = costs @ z[:num_edges] + GAMMA / 2 * cp.sum_squares(z)
        constraints: list[cp.Constraint] = [cp.Constant(program.A) @ z == program.b]  # pyright: ignore[reportAssignmentType]
        problem = cp.Problem(cp.Minimize(objective), constraints)
        layer = CvxpyLayer(problem, parameters=[costs], variables=[z])
        return lambda costs: layer(costs, solver_args={"eps": 1e-8})[0]


class Osqp:
    """The linear program that the quadratic one relaxes, one cut after the other: minimise w.d, d >= B p, d >= 0, p_s - p_t >= 1.

    Another problem, so for scale only. It has no derivative.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        import osqp

        self.grid, program = Grid(size, size), _program(size)
        to_p = sp.csc_array(program.A[:, program.blocks["p"]])
        num_edges, num_p = len(program.b) - 1, self.grid.num_vertices + 2
        d_at_least = sp.eye_array(num_edges + 1, num_edges)  # d - B p, and the row p_s - p_t below
        self.A = sp.csc_matrix(
            sp.block_array([[d_at_least, to_p], [sp.eye_array(num_edges), None]])
        )
        self.lower = np.concatenate([program.b, np.zeros(num_edges)])
        self.num_edges, self.rest = num_edges, np.zeros(num_p)
        self.solver = osqp.OSQP()
        no_quadratic, nothing = sp.csc_matrix((num_edges + num_p,) * 2), np.zeros(num_edges + num_p)
        self.solver.setup(
            no_quadratic,
            nothing,
            self.A,
            self.lower,
            np.full(len(self.lower), np.inf),
            verbose=False,
        )

    def forward(self, weights: Tensor) -> Tensor:
        self.results = []
        for costs in edge_costs(weights.double().numpy(), self.grid).T:
            self.solver.update(q=np.concatenate([costs, self.rest]))
            self.results.append(self.solver.solve())
        p = np.stack([result.x for result in self.results])[:, self.num_edges : -2]
        return torch.from_numpy(p).to(weights.dtype).reshape(len(weights), *self.grid.shape)

    def against_max_flow(self, weights: Tensor) -> dict[str, Any]:
        """How far the first cut's objective is from the least cut, as a share of it, and how far it leaves its constraints."""
        costs, x = edge_costs(weights[:1].double().numpy(), self.grid)[:, 0], self.results[0].x
        least = least_cut(costs, self.grid)
        return {
            "objective_gap": float(costs @ x[: self.num_edges] / least - 1),
            "violation": float(np.maximum(self.lower - self.A @ x, 0).max()),
            "solved": sum(result.info.status == "solved" for result in self.results)
            / len(self.results),
        }


def least_cut(costs: np.ndarray, grid: Grid) -> float:
    """The least cut's weight by SciPy's maximum flow, with capacities in millionths."""
    from scipy.sparse.csgraph import maximum_flow

    tail, head, _ = grid.edges()
    n = grid.num_vertices + 2
    capacities = sp.csr_matrix((np.round(costs * 1e6).astype(np.int32), (tail, head)), shape=(n, n))
    return maximum_flow(capacities, n - 2, n - 1).flow_value / 1e6


def _program(size: int) -> Program:
    return min_cut_program(Grid(size, size), Gamma(GAMMA, GAMMA, GAMMA), BETA)


def _layout(rows: Tensor, slot: Tensor, grid: Grid) -> Tensor:
    """One value an edge, and whatever follows them, in the layout of the weights."""
    values = rows.new_zeros(len(rows), *grid.layout)
    values.view(len(rows), -1)[:, slot] = rows[:, : len(slot)]
    return values
