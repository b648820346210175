"""Edges eliminated: a sparse Cholesky factor of the vertices' matrix, for any graph.

Without edges and slacks the program is a system in the potentials (solvers/__init__.py). s and t
meet the vertices through their mean alone (_terminals.py), so the factored matrix is the block

    gamma_e L_G + (gamma_t + gamma_v) I  =  (gamma_t + gamma_v) (reach^2 L_G + I) ,
    reach^2 = gamma_e / (gamma_t + gamma_v)

with L_G the graph's Laplacian (each direction of an edge counts a half). The bracket depends on the
reach and not on the size of gamma: one factor serves every gamma of a sweep.
"""

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from cutslots.qp._util import Tables
from cutslots.qp.factors import factor_of
from cutslots.qp.graph import Graph
from cutslots.qp.program import Gamma
from cutslots.qp.solvers._terminals import coupling
from cutslots.qp.substitution import apply


class Vertex:
    """S by substitution with the factor of the vertex block.

    Choose it for every graph that is not a full grid of 4 neighbours; "auto" does. It accepts any
    graph and factors the smallest matrix of the exact methods: n x n, once per graph and reach.
    """

    CPU_CHUNK: ClassVar[int | None] = None

    @staticmethod
    def refuses(graph: Graph) -> None:
        """Accepts any graph."""

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.graph, self.gamma = graph, gamma
        self.scale = gamma.terminal + gamma.vertex
        self.coupling = Tables(coupling(graph.num_vertices, gamma)[:, :2])
        self.to_mean = 1 / np.sqrt(graph.num_vertices)
        block = vertex_block(graph, gamma.edge / self.scale)
        about = f"the vertex block of {graph}, reach {np.sqrt(gamma.edge / self.scale):.3g}"
        self.factor = factor_of(block, about)

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        rhs = self.graph.gather(potentials)
        dc = rhs.sum(1, keepdim=True) * self.to_mean
        terminals = torch.cat([terminals, dc], dim=1) @ self.coupling.on(dc)[0]
        # The terminals lift every vertex equally: the block has the constant vector as eigenvector.
        lift = terminals.sum(1, keepdim=True) * (self.gamma.terminal / (2 * self.scale))
        solved = apply(self.factor, rhs, invert=True) / self.scale + lift
        return self.graph.scatter(solved), terminals


def vertex_block(graph: Graph, reach_squared: float) -> sp.csc_array:
    """reach^2 L_G + I over the vertices, without terminals."""
    tail, head, _ = graph.edges()
    n = graph.num_vertices
    between = np.maximum(tail, head) < n
    tail, head, index = tail[between], head[between], np.arange(n)
    half = np.full(len(tail), reach_squared / 2)
    data = np.concatenate([half, half, -half, -half, np.ones(n)])
    row = np.concatenate([tail, head, tail, head, index])
    column = np.concatenate([tail, head, head, tail, index])
    return sp.csc_array((data, (row, column)), shape=(n, n))
