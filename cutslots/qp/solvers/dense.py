"""Truth: S as a block of the inverse of the whole KKT matrix (the paper's Eq. 5), for tests and tiny graphs."""

import numpy as np
import torch
from torch import Tensor

from cutslots.qp.graph import Graph, gather, scatter
from cutslots.qp.program import Gamma, min_cut_program


class Dense:
    """S from a dense solve with nothing eliminated by hand."""

    MAX_VERTICES = 400

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        if graph.num_vertices <= Dense.MAX_VERTICES:
            return None
        return (
            f'solver="dense" inverts the whole KKT matrix and takes at most {Dense.MAX_VERTICES} vertices; got {graph}. '
            'Use solver="auto".'
        )

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.vertices = graph.vertices
        program = min_cut_program(graph, gamma)
        kkt = program.kkt().toarray()
        start, stop, _ = program.blocks["p"].indices(len(program.G))
        unit = np.zeros((len(kkt), stop - start))
        unit[start:stop] = np.eye(stop - start)
        # A cost -r on the potentials makes them S r, so S is the (p, p) block of the inverse.
        self.S = torch.from_numpy(np.linalg.solve(kkt, unit)[start:stop].copy())

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        packed = torch.cat([gather(potentials, self.vertices), terminals], dim=1) @ self.S.to(potentials)
        return scatter(packed[:, :-2], self.vertices, potentials.shape), packed[:, -2:]
