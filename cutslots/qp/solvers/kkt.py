"""The paper's method: a sparse Cholesky factor of A A^T, and substitution with it (section 3.1).

Nothing is eliminated by hand. A cost -r on the potentials makes them S r, so the solution of Eq. 5
with that cost,

    z = -G^-1 (c + A^T l) ,     A G^-1 A^T l = -A G^-1 c ,     c = (0, 0, -r, 0)

has S r as its part p: r minus its component along the constraints, which leaves a small difference
at s and t. It is computed in float64 for all weights, as in CHOLMOD; in float32 a 32 x 32 grid
would leave five digits, and larger ones fewer. In units of gamma_v, A G^-1 A^T is A A^T for every
single gamma of the paper: one factor serves a sweep. The part of A that meets p is -B above the
terminals' row, so the graph's stencils multiply with it.
"""

import os
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from cutslots.qp._util import Tables
from cutslots.qp.factors import factor_of
from cutslots.qp.graph import Graph
from cutslots.qp.program import Gamma, min_cut_program
from cutslots.qp.substitution import apply


class Kkt:
    """S by substitution with the factor of the constraints.

    Choose it to reproduce the paper's timings and memory. Results equal the other back ends', which
    are faster and need far less memory: s and t make the factor dense in 2 n rows.
    """

    CPU_CHUNK: ClassVar[int | None] = None

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        numbers = (2 * graph.num_vertices) ** 2 // 2  # of the dense last 2 n rows
        if 8 * numbers <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
            return None
        return (
            f'solver="kkt" needs a factor of {numbers / 1e9:.1f} G numbers for {graph}, more than '
            'this machine\'s memory. Use solver="auto".'
        )

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.graph, self.gamma = graph, gamma
        self._slot = Tables(graph.edges().slot)
        program = min_cut_program(graph, gamma)
        scaled = sp.csr_array(program.A @ sp.diags_array(np.sqrt(gamma.vertex / program.G)))
        self.factor = factor_of(scaled, f"A A^T of {graph}", transposed=True)

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        dtype, potentials, terminals = potentials.dtype, potentials.double(), terminals.double()
        (slot,) = self._slot.on(potentials)
        drops = self.graph.gradient(potentials, terminals).flatten(1)[:, slot]
        rows = torch.cat([-drops, terminals[:, :1] - terminals[:, 1:]], dim=1)
        multipliers = apply(self.factor, rows)
        of_edges = multipliers.new_zeros(len(potentials), *self.graph.layout)
        of_edges.flatten(1)[:, slot] = -multipliers[:, :-1]
        back, back_terminals = self.graph.divergence(of_edges)
        last = multipliers[:, -1:]
        scale = 1 / self.gamma.vertex
        solved = self.graph.only_vertices(potentials - back) * scale
        at_terminals = (terminals - back_terminals - torch.cat([last, -last], dim=1)) * scale
        return solved.to(dtype), at_terminals.to(dtype)
