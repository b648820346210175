"""Other solvers of the min-cut program, which `cutslots bench solvers` compares with.

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

from cutslots.qp import Gamma, Grid, min_cut_program
from cutslots.qp.program import Program

GAMMA, BETA = 0.5, 1.0


@dataclass(frozen=True)
class Method:
    """A solver to measure.

    Attributes:
        build: makes the solver for a size and a device.
        peer: whether it is another project's.
        cuda: whether it runs on a GPU; otherwise it always runs on the CPU.
        module, install: the package it needs, and the command that installs it.
    """

    title: str
    build: Callable[[int, torch.device], Any]
    peer: bool = True
    cuda: bool = True
    module: str | None = None
    install: str | None = None


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


class Qpth:
    """OptNet's interior-point layer. It requires an inequality: 0 z <= 1, which never binds."""

    def __init__(self, size: int, device: torch.device) -> None:
        from qpth.qp import QPFunction

        self.grid, self.program = Grid(size, size), _program(size)
        self.slot = torch.from_numpy(self.grid.edges().slot).to(device)
        A = torch.from_numpy(self.program.A.toarray()).to(device)
        Q = torch.diag(torch.from_numpy(self.program.G)).to(device)
        G, h = A.new_zeros(1, A.shape[1]), A.new_ones(1)
        self.constants = Q, G, h, A, torch.from_numpy(self.program.b).to(device)
        self.layer = QPFunction(verbose=-1)

    def forward(self, weights: Tensor) -> Tensor:
        self.weights, (Q, *rest) = weights.detach().requires_grad_(), self.constants
        costs = self.weights.flatten(1)[:, self.slot].double()
        z = self.layer(Q, functional.pad(costs, (0, len(Q) - costs.shape[1])), *rest)
        potentials = z[:, self.program.blocks["p"]][:, :-2]
        self.potentials = potentials.reshape(len(weights), *self.grid.shape).to(weights.dtype)
        return self.potentials.detach()

    def backward(self, upstream: Tensor) -> Tensor:
        return torch.autograd.grad(self.potentials, self.weights, upstream)[0]


PEERS = {
    "kkt_cholmod": Method(
        "Cholesky factor of A A^T, CHOLMOD's substitution",
        KktCholmod,
        cuda=False,
        module="sksparse",
        install="pip install 'cutslots[cholmod]'",
    ),
    "reduced_cholespy": Method(
        "Cholesky factor of the matrix of all potentials, cholespy",
        ReducedCholespy,
        module="cholespy",
        install="pip install 'cutslots[peers]'",
    ),
    "qpth": Method(
        "qpth: interior points on dense matrices",
        Qpth,
        module="qpth",
        install="pip install --no-deps qpth",
    ),
}


def _program(size: int) -> Program:
    return min_cut_program(Grid(size, size), Gamma(GAMMA, GAMMA, GAMMA), BETA)
