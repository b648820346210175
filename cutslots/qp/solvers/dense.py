"""Truth: S as a block of the inverse of the whole KKT matrix (the paper's Eq. 5), for tests and tiny graphs."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cutslots.qp.graph import Graph, Vertices
from cutslots.qp.program import Gamma, min_cut_program
from cutslots.qp.tables import Tables


class Dense:
    """S from a dense solve with nothing eliminated by hand."""

    PART: ClassVar[int | None] = None
    MAX_VERTICES, MAX_EDGES = 400, 4000

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        if graph.num_vertices <= Dense.MAX_VERTICES and len(graph.edges().slot) <= Dense.MAX_EDGES:
            return None
        return (
            f'solver="dense" inverts the whole KKT matrix and takes at most {Dense.MAX_VERTICES} vertices and {Dense.MAX_EDGES} '
            f'edges, those of s and t included; got {graph}. Use solver="auto".'
        )

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.vertices = Vertices(graph)
        program = min_cut_program(graph, gamma)
        kkt = program.kkt().toarray()
        start, stop, _ = program.blocks["p"].indices(len(program.G))
        unit = np.zeros((len(kkt), stop - start))
        unit[start:stop] = np.eye(stop - start)
        # A cost -r on the potentials makes them S r, so S is the (p, p) block of the inverse.
        self.S = Tables(np.linalg.solve(kkt, unit)[start:stop])

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        packed = (
            torch.cat([self.vertices.gather(potentials), terminals], dim=1)
            @ self.S.on(potentials)[0]
        )
        return self.vertices.scatter(packed[:, :-2], potentials.shape), packed[:, -2:]
