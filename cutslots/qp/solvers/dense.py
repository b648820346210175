"""Ground truth: S as a block of the inverse of the whole KKT matrix (the paper's Eq. 5)."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cutslots.qp._util import Tables
from cutslots.qp.graph import Graph
from cutslots.qp.program import Gamma, min_cut_program


class Dense:
    """S from a dense solve in which nothing is eliminated by hand.

    Choose it to test other back ends on tiny graphs; it is the only one without derivations.
    """

    CPU_CHUNK: ClassVar[int | None] = None
    MAX_VERTICES, MAX_EDGES = 400, 4000

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        if graph.num_vertices <= Dense.MAX_VERTICES and len(graph.edges().slot) <= Dense.MAX_EDGES:
            return None
        return (
            f'solver="dense" inverts the whole KKT matrix, for at most {Dense.MAX_VERTICES} '
            f"vertices and {Dense.MAX_EDGES} edges (including those of s and t), got {graph}. "
            'Use solver="auto".'
        )

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        self.graph = graph
        program = min_cut_program(graph, gamma)
        kkt = program.kkt().toarray()
        start, stop, _ = program.blocks["p"].indices(len(program.G))
        unit = np.zeros((len(kkt), stop - start))
        unit[start:stop] = np.eye(stop - start)
        # A cost -r on the potentials makes them S r, so S is the (p, p) block of the inverse.
        self.S = Tables(np.linalg.solve(kkt, unit)[start:stop])

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        packed = torch.cat([self.graph.gather(potentials), terminals], dim=1)
        solved = packed @ self.S.on(potentials)[0]
        return self.graph.scatter(solved[:, :-2]), solved[:, -2:]
