"""Graphs that can be cut: directed edges between vertices, and every vertex joined to s and t.

Legend (the paper's symbols, used in this folder only):

    w         weights >= 0 of the directed edges, in the graph's layout (`Graph.layout`)
    B         edge-vertex incidence, (B p)_uv = p_u - p_v for the edge from u to v
    p         potentials: one per vertex, in the graph's shape (`Graph.shape`), and two for (s, t)

A graph multiplies by B^T (`divergence`) and B (`gradient`), and lists its edges for back ends that
need a matrix. `Grid` (grid.py) uses stencils; `EdgeList` here takes any edges.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutslots.errors import InputError
from cutslots.qp._util import Tables

_Edges = Float[Tensor, "batch weights"]
_Vertices = Float[Tensor, "batch n"]
_Terminals = Float[Tensor, "batch 2"]


class Edges(NamedTuple):
    """Directed edges between the vertices 0..n-1, s = n and t = n + 1.

    `slot` is the index of an edge's weight in the flattened layout.
    """

    tail: np.ndarray
    head: np.ndarray
    slot: np.ndarray


class Graph(ABC):
    """The interface of a graph to the layer and its back ends.

    Attributes:
        shape: of the potentials of one cut, without terminals: `(H, W)` or `(n,)`.
        layout: of the weights of one cut. Along the first axis: edges between vertices, then all
            edges s -> vertex, then all edges vertex -> t.
        num_vertices: n, existing vertices without s and t.
        vertices: indices of the vertices 0..n-1 in the flattened `shape`; None if all exist.
    """

    shape: tuple[int, ...]
    layout: tuple[int, ...]
    num_vertices: int
    vertices: np.ndarray | None

    @abstractmethod
    def edges(self) -> Edges:
        """All directed edges, those of s and t included."""

    @abstractmethod
    def divergence(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """B^T w, the outflow minus the inflow of each vertex; and the same of (s, t)."""

    @abstractmethod
    def gradient(self, potentials: Tensor, terminals: Tensor) -> Tensor:
        """B p, the potential drop along each edge: the transpose of `divergence`."""

    @abstractmethod
    def terminal_edges(self, of_edges: Tensor) -> tuple[Tensor, Tensor]:
        """The parts s -> vertex and vertex -> t of values in the layout."""

    def only_edges(self, of_edges: Tensor) -> Tensor:
        """Values in the layout, with 0 where no edge exists."""
        return of_edges

    def only_vertices(self, of_vertices: Tensor) -> Tensor:
        """Values in the shape, with 0 where no vertex exists."""
        return of_vertices

    def gather(self, potentials: Tensor) -> Tensor:
        """The existing vertices of potentials, `(batch, n)`."""
        flat = potentials.flatten(1)
        return flat if self.vertices is None else flat[:, self._index.on(flat)[0]]

    def scatter(self, flat: Tensor) -> Tensor:
        """The transpose of `gather`: potentials, with 0 where no vertex exists."""
        if self.vertices is None:
            return flat.unflatten(1, self.shape)
        potentials = flat.new_zeros(len(flat), *self.shape)
        potentials.flatten(1)[:, self._index.on(flat)[0]] = flat
        return potentials

    @cached_property
    def _index(self) -> Tables:
        assert self.vertices is not None
        return Tables(self.vertices)


class EdgeList(Graph):
    """Any graph, given by its directed edges: superpixels, meshes, citations.

    Args:
        edges: `(E, 2)` integers, tail and head of each directed edge. Repeated edges count twice.
        num_vertices: n, for the vertices 0..n-1. None: the largest vertex in `edges`, plus 1.

    Weights of a cut are `(batch, E + 2 n)`: the edges in their order, s -> vertex, vertex -> t.

    Raises:
        InputError: edges of another shape or type, out of range, or from a vertex to itself.
    """

    def __init__(
        self, edges: np.ndarray | Tensor | Sequence[Sequence[int]], num_vertices: int | None = None
    ) -> None:
        pairs = np.array(edges)
        if pairs.size == 0:
            pairs = np.zeros((0, 2), dtype=np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            got = f"{pairs.dtype} of shape {pairs.shape}"
            raise InputError(f"edges must be integers of shape (E, 2), got {got}.")
        n = int(pairs.max(initial=-1)) + 1 if num_vertices is None else num_vertices
        if n < 1:
            raise InputError(f"num_vertices must be at least 1, got {n}.")
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < n):
            span = f"{pairs.min()} to {pairs.max()}"
            raise InputError(f"edges must join vertices 0 to {n - 1}, got {span}.")
        loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
        if len(loops):
            edge = f"edges[{loops[0]}] joins vertex {pairs[loops[0], 0]} to itself"
            raise InputError(f"{edge}, so it is never cut. Remove it.")
        self.num_vertices = n
        self.shape: tuple[int, ...] = (n,)
        self.layout: tuple[int, ...] = (len(pairs) + 2 * n,)
        self.vertices: np.ndarray | None = None
        self._pairs = pairs.astype(np.int64)
        self._ends = Tables(*np.ascontiguousarray(self._pairs.T))

    def edges(self) -> Edges:
        n = self.num_vertices
        every, source, sink = np.arange(n), np.full(n, n), np.full(n, n + 1)
        tail = np.concatenate([self._pairs[:, 0], source, every])
        head = np.concatenate([self._pairs[:, 1], every, sink])
        return Edges(tail, head, np.arange(len(tail)))

    def divergence(self, weights: _Edges) -> tuple[_Vertices, _Terminals]:
        source, sink = self.terminal_edges(weights)
        between = weights[:, : len(self._pairs)]
        tail, head = self._ends.on(weights)
        outflow = (sink - source).index_add(1, tail, between).index_add(1, head, between, alpha=-1)
        return outflow, torch.stack([source.sum(1), -sink.sum(1)], dim=1)

    def gradient(self, potentials: _Vertices, terminals: _Terminals) -> _Edges:
        tail, head = self._ends.on(potentials)
        between = potentials[:, tail] - potentials[:, head]
        source, sink = terminals[:, :1] - potentials, potentials - terminals[:, 1:]
        return torch.cat([between, source, sink], dim=1)

    def terminal_edges(self, of_edges: _Edges) -> tuple[_Vertices, _Vertices]:
        return of_edges[:, len(self._pairs) : -self.num_vertices], of_edges[:, -self.num_vertices :]

    def __str__(self) -> str:
        n, edges = self.num_vertices, len(self._pairs)
        return f"a graph of {n} vertices and {edges} edges without a grid"
