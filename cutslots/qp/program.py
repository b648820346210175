"""The min-cut quadratic program written out: the constraint matrix of the paper's Eq. 2-5, for any graph.

This is the statement of the problem that every back end is held to, by tests and benchmarks. The closed form never builds it; the
paper's own method (solvers/kkt.py) factors it.

    minimise    c.z + 1/2 z^T G z        z = (d, s, p, s_st),  c = (w, 0, 0, 0),  G diagonal
    subject to  d - s - B p      = 0     one row an edge: d_uv - s_uv = p_u - p_v
                p_s - p_t - s_st = beta  one row

G holds `gamma.edge` for d and s of edges between pixels, `gamma.terminal` for d and s of edges at s or t and for s_st, and
`gamma.vertex` for p. The paper has one gamma for all of them.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from cutslots.qp.checks import positive
from cutslots.qp.graph import Graph


class Gamma(NamedTuple):
    """The program's regularisation: one positive number for each kind of variable."""

    edge: float
    terminal: float
    vertex: float

    @classmethod
    def of(
        cls, gamma: float, edge: float | None, terminal: float | None, vertex: float | None
    ) -> "Gamma":
        """Fill what is None with the paper's single `gamma`.

        Raises:
            InputError: a value is not a positive finite number.
        """
        positive("gamma", gamma)
        named = {"gamma_edge": edge, "gamma_terminal": terminal, "gamma_vertex": vertex}
        return cls(
            *(positive(name, gamma if value is None else value) for name, value in named.items())
        )


class Program(NamedTuple):
    """An equality-constrained quadratic program with diagonal G; `blocks` names the slices of z."""

    A: sp.csr_array
    b: np.ndarray
    G: np.ndarray
    blocks: dict[str, slice]

    def kkt(self) -> sp.csc_array:
        """The matrix of the optimality conditions, [[G, A^T], [A, 0]] (the paper's Eq. 5)."""
        return sp.csc_array(sp.block_array([[sp.diags_array(self.G), self.A.T], [self.A, None]]))

    def rhs(self, c: np.ndarray) -> np.ndarray:
        """The right-hand side (-c, b), for one cost vector or a column for each of several."""
        b = self.b if c.ndim == 1 else np.broadcast_to(self.b[:, None], (len(self.b), c.shape[1]))
        return np.concatenate([-c, b])


def min_cut_program(
    graph: Graph,
    gamma: Gamma,
    beta: float = 1.0,
    terminal_slack: bool = True,
    as_published: bool = False,
) -> Program:
    """The program of one s-t cut of a graph.

    Args:
        terminal_slack: whether the row p_s - p_t = beta has a slack s_st (paper) or not (published code).
        as_published: keep the variables that no row mentions, as the published code does: an edge variable for every weight of
            the layout, whether its edge exists or not, and a slack for the last row, whether it is used or not. They change the
            size of the program and nothing else.
    """
    tail, head, slot = graph.edges()
    num_edges, num_vertices = len(tail), graph.num_vertices + 2
    row = np.arange(num_edges)
    slots = math.prod(graph.layout) if as_published else num_edges
    D = sp.csr_array(
        (np.ones(num_edges), (row, slot if as_published else row)), shape=(num_edges, slots)
    )
    signs = np.concatenate([np.ones(num_edges), -np.ones(num_edges)])
    B = sp.csr_array(
        (signs, (np.tile(row, 2), np.concatenate([tail, head]))), shape=(num_edges, num_vertices)
    )
    terminal_row = sp.csr_array(
        ([1.0, -1.0], ([0, 0], [num_vertices - 2, num_vertices - 1])), shape=(1, num_vertices)
    )
    slacks = 1 if terminal_slack or as_published else 0
    last = sp.csr_array(-np.eye(1, slacks) * terminal_slack)
    A = sp.csr_array(
        sp.block_array([[D, -sp.eye_array(num_edges), -B, None], [None, None, terminal_row, last]])
    )
    of_edge = np.where(np.maximum(tail, head) < graph.num_vertices, gamma.edge, gamma.terminal)
    of_d = np.full(slots, gamma.edge)
    of_d[slot if as_published else row] = of_edge
    G = np.concatenate(
        [of_d, of_edge, np.full(num_vertices, gamma.vertex), np.full(slacks, gamma.terminal)]
    )
    b = np.zeros(num_edges + 1)
    b[-1] = beta
    ends = np.cumsum([0, slots, num_edges, num_vertices, slacks]).tolist()
    blocks = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(("d", "s", "p", "s_st"))}
    return Program(A, b, G, blocks)


def edge_costs(weights: np.ndarray, graph: Graph) -> np.ndarray:
    """Weights `(batch, *layout)` as columns of edge costs `(E, batch)`, in the order of `graph.edges()`."""
    return weights.reshape(len(weights), -1)[:, graph.edges().slot].T
