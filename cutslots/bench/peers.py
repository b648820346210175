"""Solvers of the min-cut program that `cutslots bench solvers` compares: ours and others.

    p = S (gamma beta q - B^T w / 2) ,  dl/dw = -B S dl/dp / 2 ,
    S = (gamma/2 B^T B + gamma I + gamma q q^T)^-1

with the symbols of qp/graph.py and the paper's single gamma and beta. Peers that take right-hand
sides get them from our stencils, in their preferred memory order, so that solvers are compared.
A peer's `forward` takes weights `(batch, 6, size, size)` to potentials `(batch, size, size)`, its
`backward` the loss's derivative by the last potentials to that by the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional

from cutslots.qp import Gamma, Grid, MinCut, min_cut_program
from cutslots.qp.program import Program

GAMMA, BETA = 0.5, 1.0


@dataclass(frozen=True)
class Method:
    """How to build a solver for a size and a device, and the package it needs."""

    build: Callable[[int, torch.device], Any]
    peer: bool = True
    cuda: bool = True
    module: str | None = None
    install: str | None = None


class AutogradSolver:
    """A solver whose derivative is autograd's: `potentials` of weights that require it."""

    potentials: Callable[[Tensor], Tensor]

    def forward(self, weights: Tensor) -> Tensor:
        self.weights = weights.detach().requires_grad_()
        self.solution = self.potentials(self.weights)
        return self.solution.detach()

    def backward(self, upstream: Tensor) -> Tensor:
        gradient = torch.autograd.grad(self.solution, self.weights, upstream)[0]
        del self.weights, self.solution
        return gradient


class BackEnd(AutogradSolver):
    """A back end of our layer."""

    def __init__(self, name: str, size: int, device: torch.device) -> None:
        cut = MinCut(size, size, GAMMA, beta=BETA, solver=name)
        self.potentials = lambda weights: cut(weights).potentials


class KktCholmod:
    """The published method: a Cholesky factor of A A^T, and CHOLMOD's substitution.

    p = A_p^T (A A^T)^-1 (w / gamma, beta), with A_p = (-B; q^T) the columns of A that meet p.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        from sksparse.cholmod import cholesky_AAt

        self.grid = Grid(size, size)
        self.slot = torch.from_numpy(self.grid.edges().slot)
        self.factor = cholesky_AAt(sp.csc_matrix(_program(size).A))

    def forward(self, weights: Tensor) -> Tensor:
        edges = weights.flatten(1)[:, self.slot].double() / GAMMA
        multipliers = self._solve(functional.pad(edges, (0, 1), value=BETA))
        return -self.grid.divergence(multipliers)[0].to(weights.dtype)

    def backward(self, upstream: Tensor) -> Tensor:
        terminals = upstream.new_zeros(len(upstream), 2, dtype=torch.float64)
        drops = self.grid.gradient(upstream.double(), terminals).flatten(1)[:, self.slot]
        return self._solve(functional.pad(-drops, (0, 1))).div_(GAMMA).to(upstream.dtype)

    def _solve(self, rows: Tensor) -> Tensor:
        """Multipliers of the constraints, in the layout of the weights."""
        solved = torch.from_numpy(self.factor(rows.numpy().T).T)
        values = rows.new_zeros(len(rows), *self.grid.layout)
        values.view(len(rows), -1)[:, self.slot] = solved[:, : len(self.slot)]
        return values


class ReducedCholespy:
    """Edges eliminated: cholespy's Cholesky factor of the matrix of all potentials, s and t too."""

    MAX_COLUMNS_ON_GPU = 128

    def __init__(self, size: int, device: torch.device) -> None:
        from cholespy import CholeskySolverF, MatrixType  # pyright: ignore[reportAttributeAccessIssue]

        self.grid, program = Grid(size, size), _program(size)
        to_p = program.A[:, program.blocks["p"]]  # (-B; q^T)
        weight = sp.diags_array(np.append(np.full(len(program.b) - 1, GAMMA / 2), GAMMA))
        count = self.grid.num_vertices + 2
        matrix = sp.coo_array(to_p.T @ weight @ to_p + GAMMA * sp.eye_array(count))
        parts = (matrix.row.astype(np.int32), matrix.col.astype(np.int32), matrix.data)
        row, column, data = (torch.from_numpy(part).to(device) for part in parts)
        self.factor = CholeskySolverF(count, row, column, data.double(), MatrixType.COO)

    def forward(self, weights: Tensor) -> Tensor:
        potentials, terminals = self.grid.divergence(weights)
        pull = terminals.new_tensor([GAMMA * BETA, -GAMMA * BETA])
        return self._solve(potentials.mul_(-0.5), terminals.mul_(-0.5) + pull)[0]

    def backward(self, upstream: Tensor) -> Tensor:
        potentials, terminals = self._solve(upstream, upstream.new_zeros(len(upstream), 2))
        return self.grid.gradient(potentials * -0.5, terminals * -0.5)

    def _solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat([potentials.flatten(1), terminals], dim=1)
        solved = []
        for part in rows.split(self.MAX_COLUMNS_ON_GPU if rows.is_cuda else len(rows)):
            columns = part.T.contiguous()
            self.factor.solve(columns, out := torch.zeros_like(columns))
            solved.append(out.T)
        all_rows = torch.cat(solved)
        return all_rows[:, :-2].reshape(potentials.shape), all_rows[:, -2:]


class Qpth(AutogradSolver):
    """OptNet's interior-point layer. It requires an inequality: 0 z <= 1, which never binds."""

    def __init__(self, size: int, device: torch.device) -> None:
        from qpth.qp import QPFunction

        grid, program = Grid(size, size), _program(size)
        slot = torch.from_numpy(grid.edges().slot).to(device)
        A = torch.from_numpy(program.A.toarray()).to(device)
        Q, b = (torch.from_numpy(values).to(device) for values in (np.diag(program.G), program.b))
        G, h, layer = A.new_zeros(1, len(Q)), A.new_ones(1), QPFunction(verbose=-1)

        def potentials(weights: Tensor) -> Tensor:
            costs = weights.flatten(1)[:, slot].double()
            z = layer(Q, functional.pad(costs, (0, len(Q) - costs.shape[1])), G, h, A, b)
            p = z[:, program.blocks["p"]][:, :-2]
            return p.reshape(len(weights), *grid.shape).to(weights.dtype)

        self.potentials = potentials


CHOLMOD, CHOLESPY = "pip install 'cutslots[cholmod]'", "pip install 'cutslots[peers]'"
QPTH = "pip install --no-deps qpth"
PEERS = {
    "kkt_cholmod": Method(KktCholmod, cuda=False, module="sksparse", install=CHOLMOD),
    "reduced_cholespy": Method(ReducedCholespy, module="cholespy", install=CHOLESPY),
    "qpth": Method(Qpth, module="qpth", install=f"{CHOLESPY} && {QPTH}"),
}


def _program(size: int) -> Program:
    return min_cut_program(Grid(size, size), Gamma(GAMMA, GAMMA, GAMMA), BETA)
