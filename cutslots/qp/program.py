"""The min-cut quadratic program written out: the constraint matrix of the paper's Eq. 2-5, for any grid size.

Nothing on the training path builds these matrices; they are the statement of the problem that every back end is held to, by
tests and benchmarks.

    minimise    c.z + 1/2 z^T G z        z = (d, s, p, s_st),  c = (w, 0, 0, 0),  G diagonal
    subject to  d - s - B p      = 0     one row an edge: d_uv - s_uv = p_u - p_v
                p_s - p_t - s_st = beta  one row

G holds `gamma.edge` for d and s of edges between pixels, `gamma.terminal` for d and s of edges at s or t and for s_st, and
`gamma.vertex` for p. The paper has one gamma for all of them.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from cutslots.errors import InputError
from cutslots.qp.grid import edges


def positive(name: str, value: float) -> float:
    """`value`, if it is a positive finite number.

    Raises:
        InputError: it is not.
    """
    if not 0 < value < float("inf"):
        raise InputError(f"{name} is {value}; give a positive finite number.")
    return float(value)


class Gamma(NamedTuple):
    """The program's regularisation: one positive number for each kind of variable."""

    edge: float
    terminal: float
    vertex: float

    @classmethod
    def of(cls, gamma: float, edge: float | None, terminal: float | None, vertex: float | None) -> "Gamma":
        """Fill what is None with the paper's single `gamma`.

        Raises:
            InputError: a value is not a positive finite number.
        """
        made = cls(*(float(gamma if value is None else value) for value in (edge, terminal, vertex)))
        given = {"gamma": gamma, "gamma_edge": edge, "gamma_terminal": terminal, "gamma_vertex": vertex}
        for name, value in given.items():
            if value is not None and not (0 < value < float("inf")):
                raise InputError(f"{name} is {value}; the program is strictly convex only for gamma > 0. The paper uses 0.5.")
        return made


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


def min_cut_program(height: int, width: int, gamma: Gamma, beta: float = 1.0) -> Program:
    """The program of one s-t cut of a full `height x width` grid."""
    tail, head, channel, _ = edges(height, width)
    num_edges, num_vertices = len(tail), height * width + 2
    row = np.arange(num_edges)
    signs = np.concatenate([np.ones(num_edges), -np.ones(num_edges)])
    B = sp.csr_array((signs, (np.tile(row, 2), np.concatenate([tail, head]))), shape=(num_edges, num_vertices))
    terminal_row = sp.csr_array(([1.0, -1.0], ([0, 0], [num_vertices - 2, num_vertices - 1])), shape=(1, num_vertices))
    eye = sp.eye_array(num_edges)
    A = sp.csr_array(sp.block_array([[eye, -eye, -B, None], [None, None, terminal_row, -sp.eye_array(1)]]))
    of_edge = np.where(channel < 4, gamma.edge, gamma.terminal)
    G = np.concatenate([of_edge, of_edge, np.full(num_vertices, gamma.vertex), [gamma.terminal]])
    b = np.zeros(num_edges + 1)
    b[-1] = beta
    ends = np.cumsum([0, num_edges, num_edges, num_vertices, 1]).tolist()
    blocks = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(("d", "s", "p", "s_st"))}
    return Program(A, b, G, blocks)


def edge_costs(weights: np.ndarray) -> np.ndarray:
    """Weights (batch, 6, H, W) as columns of edge costs (E, batch), in the order of `grid.edges`."""
    batch, _, height, width = weights.shape
    _, _, channel, pixel = edges(height, width)
    return weights.reshape(batch, 6, height * width)[:, channel, pixel].T
