"""Graphs that can be cut: vertices joined by directed edges, and every vertex joined to the terminals s and t.

Legend (the paper's symbols, used in this folder only):

    w         one weight >= 0 a directed edge, in the graph's own layout (`Graph.layout`)
    B         edge-vertex incidence, (B p)_uv = p_u - p_v for the edge from u to v
    p         potentials: one number a vertex, in the graph's own shape (`Graph.shape`), and two for (s, t)

A graph is what carries weights to vertices and back, `divergence` (B^T w) and its transpose `gradient` (B p), and what lists its
edges for back ends that need a matrix. `Grid` (grid.py) does both with stencils; `EdgeList` here takes any edges.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutslots.errors import InputError
from cutslots.qp.tables import Tables


class Edges(NamedTuple):
    """A graph's directed edges as vertex numbers: vertices are 0..n-1, s is n and t is n + 1.

    `slot` is where an edge's weight lies in the flattened layout.
    """

    tail: np.ndarray
    head: np.ndarray
    slot: np.ndarray


@runtime_checkable
class Graph(Protocol):
    """What the layer and its back ends ask of a graph.

    Attributes:
        shape: of the potentials of one cut, terminals aside: `(H, W)` or `(n,)`.
        layout: of the weights of one cut, edges between vertices first, then all edges s -> vertex, then all vertex -> t, along
            the first axis.
        num_vertices: n, vertices that exist; s and t are not counted.
        vertices: which places of the flattened `shape` are the vertices 0..n-1; None when all are.
    """

    shape: tuple[int, ...]
    layout: tuple[int, ...]
    num_vertices: int
    vertices: np.ndarray | None

    def edges(self) -> Edges: ...

    def divergence(self, weights: Tensor) -> tuple[Tensor, Tensor]: ...

    def gradient(self, potentials: Tensor, terminals: Tensor) -> Tensor: ...

    def terminal_edges(self, of_edges: Tensor) -> tuple[Tensor, Tensor]: ...

    def only_edges(self, of_edges: Tensor) -> Tensor: ...

    def only_vertices(self, of_vertices: Tensor) -> Tensor: ...

    def __str__(self) -> str: ...


class EdgeList:
    """Any graph, given by its directed edges: superpixels, meshes, citations.

    Args:
        edges: `(E, 2)` integers, the edge from the first vertex to the second; both directions are two rows. Repeated edges
            count twice; an edge from a vertex to itself is refused.
        num_vertices: n; vertices are 0..n-1. None takes the largest named one.

    Weights of a cut are `(batch, E + 2 n)`: the edges in their order, s -> vertex for all n, vertex -> t for all n.

    Raises:
        InputError: edges of another shape or kind, or out of range.
    """

    def __init__(
        self, edges: np.ndarray | Tensor | Sequence[Sequence[int]], num_vertices: int | None = None
    ) -> None:
        pairs = np.array(edges)
        if pairs.size == 0:
            pairs = np.zeros((0, 2), dtype=np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise InputError(
                f"edges are {pairs.dtype} of shape {pairs.shape}; give integers (E, 2), tail and head of each edge."
            )
        if num_vertices is None:
            num_vertices = int(pairs.max(initial=-1)) + 1
        if num_vertices < 1:
            raise InputError(f"num_vertices is {num_vertices}; a graph has at least one vertex.")
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < num_vertices):
            raise InputError(
                f"edges name vertices {pairs.min()} to {pairs.max()}; num_vertices={num_vertices} allows 0 to {num_vertices - 1}."
            )
        loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
        if len(loops):
            raise InputError(
                f"edges[{loops[0]}] joins vertex {pairs[loops[0], 0]} to itself; such an edge is never cut. Leave it out."
            )
        self.num_vertices = num_vertices
        self.shape: tuple[int, ...] = (num_vertices,)
        self.layout: tuple[int, ...] = (len(pairs) + 2 * num_vertices,)
        self.vertices: np.ndarray | None = None
        self._pairs = pairs.astype(np.int64)
        self._ends = Tables(*np.ascontiguousarray(self._pairs.T))

    def edges(self) -> Edges:
        n = self.num_vertices
        every, source, sink = np.arange(n), np.full(n, n), np.full(n, n + 1)
        tail = np.concatenate([self._pairs[:, 0], source, every])
        head = np.concatenate([self._pairs[:, 1], every, sink])
        return Edges(tail, head, np.arange(len(tail)))

    def divergence(
        self, weights: Float[Tensor, "batch weights"]
    ) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch 2"]]:
        """B^T w: what flows out of each vertex minus what flows in, and the same for (s, t)."""
        source, sink = self.terminal_edges(weights)
        between = weights[:, : len(self._pairs)]
        tail, head = self._ends.on(weights)
        potentials = (
            (sink - source).index_add(1, tail, between).index_add(1, head, between, alpha=-1)
        )
        return potentials, torch.stack([source.sum(1), -sink.sum(1)], dim=1)

    def gradient(
        self, potentials: Float[Tensor, "batch n"], terminals: Float[Tensor, "batch 2"]
    ) -> Float[Tensor, "batch weights"]:
        """B p: the drop of the potential along each edge, the transpose of `divergence`."""
        tail, head = self._ends.on(potentials)
        between = potentials[:, tail] - potentials[:, head]
        return torch.cat(
            [between, terminals[:, :1] - potentials, potentials - terminals[:, 1:]], dim=1
        )

    def terminal_edges(
        self, of_edges: Float[Tensor, "batch weights"]
    ) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """The part of s -> vertex and of vertex -> t of something in the layout."""
        return of_edges[:, len(self._pairs) : -self.num_vertices], of_edges[:, -self.num_vertices :]

    def only_edges(self, of_edges: Tensor) -> Tensor:
        """Something in the layout, 0 where no edge exists: here every edge does."""
        return of_edges

    def only_vertices(self, of_vertices: Tensor) -> Tensor:
        """Something in the shape, 0 where there is no vertex: here every place is one."""
        return of_vertices

    def __str__(self) -> str:
        return (
            f"a graph of {self.num_vertices} vertices and {len(self._pairs)} edges without a grid"
        )


class Vertices:
    """Where a graph's vertices lie in its shape: potentials `(batch, *shape)` to `(batch, n)` and back."""

    def __init__(self, graph: Graph) -> None:
        self._index = None if graph.vertices is None else Tables(graph.vertices)

    def gather(self, potentials: Tensor) -> Tensor:
        """The vertices alone, `(batch, n)`."""
        flat = potentials.flatten(1)
        return flat if self._index is None else flat[:, self._index.on(flat)[0]]

    def scatter(self, flat: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of `gather`: 0 where there is no vertex."""
        if self._index is None:
            return flat.reshape(shape)
        whole = flat.new_zeros(shape)
        whole.flatten(1)[:, self._index.on(flat)[0]] = flat
        return whole
