"""The min-cut quadratic program as matrices: the constraints of the paper's Eq. 2-5, for any graph.

This is the problem's definition, to which tests and benchmarks compare every back end. The closed
form never builds it; the paper's own method (solvers/kkt.py) factors it.

    minimise    c.z + 1/2 z^T G z        z = (d, s, p, s_st),  c = (w, 0, 0, 0),  G diagonal
    subject to  d - s - B p      = 0     one row per edge: d_uv - s_uv = p_u - p_v
                p_s - p_t - s_st = beta  one row

G is `gamma.edge` for d and s of edges between pixels, `gamma.terminal` for d and s of edges at s or
t and for s_st, and `gamma.vertex` for p. The paper has one gamma for all of them.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from cutslots.qp._util import positive
from cutslots.qp.graph import Graph


class Gamma(NamedTuple):
    """The program's regularisation: a positive number per kind of variable."""

    edge: float
    terminal: float
    vertex: float

    @classmethod
    def of(
        cls, gamma: float, edge: float | None, terminal: float | None, vertex: float | None
    ) -> "Gamma":
        """Replace None by the paper's single `gamma`.

        Raises:
            InputError: a value is not positive and finite.
        """
        positive("gamma", gamma)
        named = {"gamma_edge": edge, "gamma_terminal": terminal, "gamma_vertex": vertex}
        return cls(*(positive(k, gamma if v is None else v) for k, v in named.items()))


class Program(NamedTuple):
    """An equality-constrained quadratic program with diagonal G; `blocks` names slices of z."""

    A: sp.csr_array
    b: np.ndarray
    G: np.ndarray
    blocks: dict[str, slice]

    def kkt(self) -> sp.csc_array:
        """The matrix of the optimality conditions, [[G, A^T], [A, 0]] (the paper's Eq. 5)."""
        return sp.csc_array(sp.block_array([[sp.diags_array(self.G), self.A.T], [self.A, None]]))

    def rhs(self, c: np.ndarray) -> np.ndarray:
        """The right-hand side (-c, b) for one cost vector, or for several as columns."""
        b = self.b if c.ndim == 1 else np.broadcast_to(self.b[:, None], (len(self.b), c.shape[1]))
        return np.concatenate([-c, b])


def min_cut_program(
    graph: Graph, gamma: Gamma, beta: float = 1.0, terminal_slack: bool = True
) -> Program:
    """The program of one s-t cut of a graph.

    `terminal_slack`: whether the row p_s - p_t = beta has a slack s_st (paper) or not (published
    code).
    """
    tail, head, _ = graph.edges()
    num_edges, num_vertices, slacks = len(tail), graph.num_vertices + 2, int(terminal_slack)
    identity, ones = sp.eye_array(num_edges, format="csr"), np.ones(num_edges)
    index = np.tile(np.arange(num_edges), 2), np.concatenate([tail, head])
    B = sp.csr_array((np.concatenate([ones, -ones]), index), shape=(num_edges, num_vertices))
    index = [0, 0], [num_vertices - 2, num_vertices - 1]
    terminal_row = sp.csr_array(([1.0, -1.0], index), shape=(1, num_vertices))
    last = sp.csr_array(-np.eye(1, slacks))
    rows = [[identity, -identity, -B, None], [None, None, terminal_row, last]]
    of_edge = np.where(np.maximum(tail, head) < graph.num_vertices, gamma.edge, gamma.terminal)
    of_p, of_slack = np.full(num_vertices, gamma.vertex), np.full(slacks, gamma.terminal)
    b = np.zeros(num_edges + 1)
    b[-1] = beta
    ends = np.cumsum([0, num_edges, num_edges, num_vertices, slacks]).tolist()
    blocks = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(("d", "s", "p", "s_st"))}
    G = np.concatenate([of_edge, of_edge, of_p, of_slack])
    return Program(sp.csr_array(sp.block_array(rows)), b, G, blocks)


def edge_costs(weights: np.ndarray, graph: Graph) -> np.ndarray:
    """Weights `(batch, *layout)` as edge costs `(E, batch)`, in the order of `graph.edges()`."""
    return weights.reshape(len(weights), -1)[:, graph.edges().slot].T
