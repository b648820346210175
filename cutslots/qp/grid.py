"""Image graphs: pixels joined to their neighbours in both directions, and to s and t.

Weights of a cut are `(batch, C, H, W)`: a pixel's channels are the edges that leave it towards its
neighbours, then s -> pixel and pixel -> t, in the order of `Grid.channels`. An edge that would
leave the image or join a missing pixel does not exist: its weight is never read, its gradient is 0.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutslots.errors import InputError
from cutslots.qp._util import Tables
from cutslots.qp.graph import Edges, Graph

_Edges = Float[Tensor, "batch channels height width"]
_Pixels = Float[Tensor, "batch height width"]
_Terminals = Float[Tensor, "batch 2"]
# An offset (rows, columns) and the names of the edge along it and of the one back.
STRAIGHT = (((0, 1), "right", "left"), ((1, 0), "down", "up"))
DIAGONAL = (((1, 1), "down_right", "up_left"), ((1, -1), "down_left", "up_right"))


class Grid(Graph):
    """The graph of an image.

    Args:
        height, width: size, at least 1 each.
        neighbours: 4, or 8 with the diagonals.
        interior_edges: leave out edges that start at a border pixel, as the paper's published code.
        pixels: bool `(height, width)`, the existing pixels; None for all.

    Raises:
        InputError: an invalid size, number of neighbours or array of pixels.
    """

    def __init__(
        self,
        height: int,
        width: int,
        neighbours: int = 4,
        interior_edges: bool = False,
        pixels: np.ndarray | Tensor | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise InputError(f"height and width must be at least 1, got {height} x {width}.")
        if neighbours not in (4, 8):
            raise InputError(f"neighbours must be 4 or 8, got {neighbours}.")
        self.height, self.width, self.neighbours = height, width, neighbours
        self.interior_edges = interior_edges
        offsets = STRAIGHT if neighbours == 4 else STRAIGHT + DIAGONAL
        names = [name for _, along, back in offsets for name in (along, back)]
        self.channels = (*names, "source", "sink")
        self.shape: tuple[int, ...] = (height, width)
        self.layout: tuple[int, ...] = (len(self.channels), height, width)
        # For each channel between pixels, the slices an edge leaves from and, in order, arrives at.
        self._ends: list[tuple[tuple[slice, slice], tuple[slice, slice]]] = []
        for (down, right), _, _ in offsets:
            tail, head = (_inside(down), _inside(right)), (_inside(-down), _inside(-right))
            self._ends += [(tail, head), (head, tail)]
        mask = np.ones(self.shape, bool) if pixels is None else _checked(pixels, self.shape)
        self.num_vertices = int(mask.sum())
        self.vertices = None if mask.all() else np.flatnonzero(mask)
        self.full = neighbours == 4 and not interior_edges and self.vertices is None
        emits = mask.copy()
        if interior_edges:
            emits[0] = emits[-1] = emits[:, 0] = emits[:, -1] = False
        self._exists = np.zeros(self.layout, dtype=bool)
        self._exists[-2:] = mask
        for channel, (tail, head) in zip(self._exists, self._ends, strict=False):
            channel[tail] = emits[tail] & mask[head]
        # Slices end a stencil at the image's border; inside the image only a zero weight does.
        self._sliced = self.vertices is None and not interior_edges
        self._absent = Tables(~self._exists, ~mask)

    def edges(self) -> Edges:
        """All directed edges by channel, then row-major."""
        n = self.num_vertices
        number = np.full(self.height * self.width, -1)
        number[slice(None) if self.vertices is None else self.vertices] = np.arange(n)
        number = number.reshape(self.shape)
        head = np.full(self.layout, n + 1)
        tail = np.broadcast_to(number, self.layout).copy()
        head[-2], tail[-2] = number, n
        for channel, (start, end) in zip(head, self._ends, strict=False):
            channel[start] = number[end]
        slot = np.flatnonzero(self._exists)
        return Edges(tail.ravel()[slot], head.ravel()[slot], slot)

    def divergence(self, weights: _Edges) -> tuple[_Pixels, _Terminals]:
        if not self._sliced:
            weights = self.only_edges(weights)
        *between, source, sink = weights.unbind(1)
        pixels = sink - source
        # Both directions enter both ends with opposite signs, so only their difference counts.
        for index, (tail, head) in enumerate(self._ends[::2]):
            across = between[2 * index][:, *tail] - between[2 * index + 1][:, *head]
            pixels[:, *tail] += across
            pixels[:, *head] -= across
        return pixels, torch.stack([source.sum((1, 2)), -sink.sum((1, 2))], dim=1)

    def gradient(self, potentials: _Pixels, terminals: _Terminals) -> _Edges:
        drop = potentials.new_empty(len(potentials), *self.layout)
        *between, source, sink = drop.unbind(1)
        for channel, (tail, head) in zip(between, self._ends, strict=True):
            torch.sub(potentials[:, *tail], potentials[:, *head], out=channel[:, *tail])
            for axis, part in enumerate(tail):  # 0 where the edge would leave the image
                if part != slice(None):
                    channel.narrow(axis + 1, -1 if part.start is None else 0, 1).zero_()
        torch.sub(terminals[:, 0, None, None], potentials, out=source)
        torch.sub(potentials, terminals[:, 1, None, None], out=sink)
        return drop if self._sliced else drop.masked_fill_(self._absent.on(drop)[0], 0)

    def terminal_edges(self, of_edges: _Edges) -> tuple[_Pixels, _Pixels]:
        return of_edges[:, -2], of_edges[:, -1]

    def only_edges(self, of_edges: _Edges) -> _Edges:
        return of_edges.masked_fill(self._absent.on(of_edges)[0], 0)

    def only_vertices(self, of_vertices: _Pixels) -> _Pixels:
        if self.vertices is None:
            return of_vertices
        return of_vertices.masked_fill(self._absent.on(of_vertices)[1], 0)

    def __str__(self) -> str:
        pixels = self.height * self.width
        parts = [f"a {self.height} x {self.width} grid"]
        parts += ["8 neighbours"] * (self.neighbours == 8)
        parts += ["interior edges only"] * self.interior_edges
        parts += [f"{self.num_vertices} of {pixels} pixels"] * (self.vertices is not None)
        return ", ".join(parts)


def _inside(step: int) -> slice:
    """Positions along one axis from which a step stays inside the image."""
    return slice(None) if step == 0 else slice(None, -1) if step > 0 else slice(1, None)


def _checked(pixels: np.ndarray | Tensor, shape: tuple[int, ...]) -> np.ndarray:
    mask = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
    if mask.dtype != bool or mask.shape != shape:
        raise InputError(
            f"pixels must be bool of shape {shape}, got {mask.dtype} of shape {mask.shape}."
        )
    if not mask.any():
        raise InputError("pixels must have at least one True.")
    return mask.copy()
