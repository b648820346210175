"""Image graphs: pixels joined to their neighbours in both directions, and to the terminals s and t.

Weights of a cut are `(batch, C, H, W)`: the channels of a pixel are the edges that leave it towards its neighbours, then the one
that comes from s and the one that goes to t, in the order of `Grid.channels`. An edge that would leave the image, or join a pixel
that is not there, does not exist: its weight is never read and its gradient is 0.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutslots.errors import InputError
from cutslots.qp.graph import Edges
from cutslots.qp.tables import Tables

# An offset (rows, columns) and the names of the edge along it and of the one back.
STRAIGHT = (((0, 1), "right", "left"), ((1, 0), "down", "up"))
DIAGONAL = (((1, 1), "down_right", "up_left"), ((1, -1), "down_left", "up_right"))


class Grid:
    """The graph of an image.

    Args:
        height, width: size, at least 1 each.
        neighbours: 4, or 8 with the diagonals.
        interior_edges: leave out the edges that start at a border pixel, as the published code of the paper does.
        pixels: bool `(height, width)`, which pixels are there; None for all.

    Raises:
        InputError: a size, a number of neighbours or pixels that make no grid.
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
            raise InputError(
                f"the grid is {height} x {width}; height and width must be at least 1."
            )
        if neighbours not in (4, 8):
            raise InputError(f"neighbours is {neighbours}; a pixel has 4, or 8 with the diagonals.")
        self.height, self.width, self.neighbours, self.interior_edges = (
            height,
            width,
            neighbours,
            interior_edges,
        )
        self._offsets = STRAIGHT if neighbours == 4 else STRAIGHT + DIAGONAL
        self.channels = (
            *(name for _, there, back in self._offsets for name in (there, back)),
            "source",
            "sink",
        )
        self.shape: tuple[int, ...] = (height, width)
        self.layout: tuple[int, ...] = (len(self.channels), height, width)
        there = (
            np.ones(self.shape, dtype=bool)
            if pixels is None
            else _checked_pixels(pixels, self.shape)
        )
        self.num_vertices = int(there.sum())
        self.vertices = None if there.all() else np.flatnonzero(there)
        self.full = neighbours == 4 and not interior_edges and self.vertices is None
        self._exists = self._existing(there)
        # Nothing stops a stencil at the border or at a missing pixel but a zero weight: on a plain grid, slices do.
        self._sliced = self.vertices is None and not interior_edges
        self._absent = Tables(~self._exists, ~there)

    def edges(self) -> Edges:
        """All directed edges by channel, then row-major."""
        n, place = self.num_vertices, self.height * self.width
        number = np.full(place, -1)
        number[slice(None) if self.vertices is None else self.vertices] = np.arange(n)
        number = number.reshape(self.shape)
        head = np.full(self.layout, n + 1)
        tail = np.broadcast_to(number, self.layout).copy()
        head[-2], tail[-2] = number, n
        for channel, (from_, to) in enumerate(self._ways()):
            head[channel][from_] = number[to]
        slot = np.flatnonzero(self._exists)
        return Edges(tail.ravel()[slot], head.ravel()[slot], slot)

    def divergence(
        self, weights: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch height width"], Float[Tensor, "batch 2"]]:
        """B^T w: what flows out of each pixel minus what flows in, and the same for (s, t)."""
        if not self._sliced:
            weights = self.only_edges(weights)
        *between, source, sink = weights.unbind(1)
        pixels = sink - source
        # The two directions between neighbours enter both ends with opposite signs, so only their difference is needed.
        for index, (from_, to) in enumerate(self._ways()[::2]):
            across = between[2 * index][:, *from_] - between[2 * index + 1][:, *to]
            pixels[:, *from_] += across
            pixels[:, *to] -= across
        return pixels, torch.stack([source.sum((1, 2)), -sink.sum((1, 2))], dim=1)

    def gradient(
        self, potentials: Float[Tensor, "batch height width"], terminals: Float[Tensor, "batch 2"]
    ) -> Float[Tensor, "batch channels height width"]:
        """B p: the drop of the potential along each edge, the transpose of `divergence`; 0 where no edge exists."""
        drop = potentials.new_empty(len(potentials), *self.layout)
        *between, source, sink = drop.unbind(1)
        for channel, (from_, to) in zip(between, self._ways(), strict=True):
            torch.sub(potentials[:, *from_], potentials[:, *to], out=channel[:, *from_])
            for rest in _complement(from_):
                channel[:, *rest] = 0
        torch.sub(terminals[:, 0, None, None], potentials, out=source)
        torch.sub(potentials, terminals[:, 1, None, None], out=sink)
        return drop if self._sliced else drop.masked_fill_(self._absent.on(drop)[0], 0)

    def terminal_edges(
        self, of_edges: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch height width"], Float[Tensor, "batch height width"]]:
        """The channels of s -> pixel and of pixel -> t."""
        return of_edges[:, -2], of_edges[:, -1]

    def only_edges(
        self, of_edges: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Something in the layout, 0 where no edge exists."""
        return of_edges.masked_fill(self._absent.on(of_edges)[0], 0)

    def only_vertices(
        self, of_vertices: Float[Tensor, "batch height width"]
    ) -> Float[Tensor, "batch height width"]:
        """Something in the shape, 0 where there is no pixel."""
        return (
            of_vertices
            if self.vertices is None
            else of_vertices.masked_fill(self._absent.on(of_vertices)[1], 0)
        )

    def __str__(self) -> str:
        parts = [f"a {self.height} x {self.width} grid"]
        parts += ["8 neighbours"] * (self.neighbours == 8) + [
            "interior edges only"
        ] * self.interior_edges
        parts += [f"{self.num_vertices} of {self.height * self.width} pixels"] * (
            self.vertices is not None
        )
        return ", ".join(parts)

    def _ways(self) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """For each channel between pixels, the pixels it can leave from and, in the same order, those it arrives at."""
        ways = []
        for (down, right), _, _ in self._offsets:
            from_ = _start(down), _start(right)
            to = _start(-down), _start(-right)
            ways += [(from_, to), (to, from_)]
        return ways

    def _existing(self, there: np.ndarray) -> np.ndarray:
        emits = there.copy()
        if self.interior_edges:
            emits[0] = emits[-1] = emits[:, 0] = emits[:, -1] = False
        exists = np.zeros(self.layout, dtype=bool)
        exists[-2:] = there
        for channel, (from_, to) in enumerate(self._ways()):
            exists[channel][from_] = emits[from_] & there[to]
        return exists


def _start(step: int) -> slice:
    """Along one axis, the positions from which a step stays inside."""
    return slice(None) if step == 0 else slice(None, -1) if step > 0 else slice(1, None)


def _complement(region: tuple[slice, slice]) -> list[tuple[slice, slice]]:
    """Slices that cover what a region of `_start`s leaves out."""
    rest = []
    for axis, part in enumerate(region):
        if part != slice(None):
            border = slice(-1, None) if part.start is None else slice(0, 1)
            rest.append((border, slice(None)) if axis == 0 else (slice(None), border))
    return rest


def _checked_pixels(pixels: np.ndarray | Tensor, shape: tuple[int, ...]) -> np.ndarray:
    there = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
    if there.dtype != bool or there.shape != shape:
        raise InputError(
            f"pixels is {there.dtype} of shape {there.shape}; give bool of shape {shape}."
        )
    if not there.any():
        raise InputError("pixels has no True: there is no pixel to cut.")
    return there.copy()
