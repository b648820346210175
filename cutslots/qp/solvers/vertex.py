"""Edges eliminated: a sparse Cholesky factor of the vertices' matrix, for any graph.

With edges and slacks gone the program is a system in the potentials (solvers/__init__.py). s and t meet the vertices through
their mean alone (terminals.py), so what is factored is the vertex block

    gamma_e L_G + (gamma_t + gamma_v) I  =  (gamma_t + gamma_v) (reach^2 L_G + I) ,     reach^2 = gamma_e / (gamma_t + gamma_v)

with L_G the graph's Laplacian (each direction of an edge counts a half). The bracket knows the reach and no gamma: one factor
serves every gamma of a sweep.
"""

from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from cutslots.qp import factors
from cutslots.qp.graph import Graph, Vertices
from cutslots.qp.program import Gamma
from cutslots.qp.tables import Tables
from cutslots.qp.terminals import coupling


class Vertex:
    """S by substitution with the factor of the vertex block."""

    PART: ClassVar[int | None] = None

    @staticmethod
    def refuses(graph: Graph) -> None:
        """Any graph is welcome."""

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.vertices, self.gamma = Vertices(graph), gamma
        self.scale = gamma.terminal + gamma.vertex
        self.coupling = Tables(coupling(graph.num_vertices, gamma)[:, :2])
        self.to_mean = 1 / np.sqrt(graph.num_vertices)
        block = vertex_block(graph, gamma.edge / self.scale)
        about = f"the vertex block of {graph}, reach {np.sqrt(gamma.edge / self.scale):.3g}"
        self.factor = factors.of_matrix(block, about)

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        rhs = self.vertices.gather(potentials)
        dc = rhs.sum(1, keepdim=True) * self.to_mean
        terminals = torch.cat([terminals, dc], dim=1) @ self.coupling.on(dc)[0]
        # The terminals lift every vertex alike: the constant vector is an eigenvector of the block.
        lift = terminals.sum(1, keepdim=True) * (self.gamma.terminal / (2 * self.scale))
        solved = self.factor.solve(rhs, invert=True) / self.scale + lift
        return self.vertices.scatter(solved, potentials.shape), terminals


def vertex_block(graph: Graph, reach_squared: float) -> sp.csc_array:
    """reach^2 L_G + I over the vertices, terminals aside."""
    tail, head, _ = graph.edges()
    n = graph.num_vertices
    between = np.maximum(tail, head) < n
    tail, head = tail[between], head[between]
    half = np.full(len(tail), reach_squared / 2)
    index = np.arange(n)
    data = np.concatenate([half, half, -half, -half, np.ones(n)])
    row, column = (
        np.concatenate([tail, head, tail, head, index]),
        np.concatenate([tail, head, head, tail, index]),
    )
    return sp.csc_array((data, (row, column)), shape=(n, n))
