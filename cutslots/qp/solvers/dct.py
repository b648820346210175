"""The closed form on full grids: the two-dimensional DCT-II diagonalises the pixel block.

    pixel block        gamma_e L + (gamma_t + gamma_v) I,   L the grid Laplacian with Neumann borders
    its eigenvalues    gamma_e (4 - 2 cos(pi i / H) - 2 cos(pi j / W)) + gamma_t + gamma_v
    s and t            touch the DC coefficient alone (terminals.py): DC, p_s and p_t are one 3 x 3 system, and every other
                       coefficient is a division

Nothing is factored, nothing iterated. Short axes are transformed by a matrix product, long ones by an FFT (Makhoul, "A fast cosine
transform in one and two dimensions", 1980).
"""

import functools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cutslots.qp.graph import Graph
from cutslots.qp.grid import Grid
from cutslots.qp.program import Gamma
from cutslots.qp.tables import Tables
from cutslots.qp.terminals import coupling

# Below this length the matrix product is the faster transform of an axis: see `cutslots bench transform`.
FFT_FROM = 256


class Dct:
    """S in the cosine basis."""

    PART: ClassVar[int | None] = 2**19

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        if isinstance(graph, Grid) and graph.full:
            return None
        return f'solver="dct" takes full grids of 4 neighbours; got {graph}. Use solver="vertex".'

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        height, width = graph.shape
        self._tables = Tables(
            _inverse_eigenvalues(height, width, gamma), coupling(graph.num_vertices, gamma)
        )

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        inverse_eigenvalues, coupled = self._tables.on(potentials)
        spectrum = dct(dct(potentials, -1), -2)
        border = torch.cat([terminals, spectrum[:, :1, 0]], dim=1) @ coupled
        spectrum *= inverse_eigenvalues
        spectrum[:, 0, 0] = border[:, 2]
        return idct(idct(spectrum, -1), -2), border[:, :2]


def _inverse_eigenvalues(height: int, width: int, gamma: Gamma) -> np.ndarray:
    rows = 2 - 2 * np.cos(np.pi * np.arange(height) / height)
    columns = 2 - 2 * np.cos(np.pi * np.arange(width) / width)
    return 1 / (gamma.edge * (rows[:, None] + columns) + gamma.terminal + gamma.vertex)


def dct(x: Tensor, axis: int) -> Tensor:
    """The orthonormal DCT-II of the last or the last but one axis."""
    length = x.shape[axis]
    if length >= FFT_FROM:
        return _dct_fft(x, axis)
    basis = _basis(length, x.device, x.dtype)
    return x @ basis.mT if axis == -1 else basis @ x


def idct(x: Tensor, axis: int) -> Tensor:
    """The inverse, and the transpose, of `dct`."""
    length = x.shape[axis]
    if length >= FFT_FROM:
        return _idct_fft(x, axis)
    basis = _basis(length, x.device, x.dtype)
    return x @ basis if axis == -1 else basis.mT @ x


@functools.lru_cache(maxsize=64)
def _basis(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal cosine basis, a row a frequency."""
    k, j = np.arange(length)[:, None], np.arange(length)
    # The angle is reduced in integers: cos(pi k (2j + 1) / 2N) has period 4N in k (2j + 1).
    basis = np.cos(np.pi / (2 * length) * (k * (2 * j + 1) % (4 * length))) * math.sqrt(2 / length)
    basis[0] = math.sqrt(1 / length)
    with torch.inference_mode(False):
        return torch.from_numpy(basis).to(device, dtype)


def _dct_fft(x: Tensor, axis: int) -> Tensor:
    length = x.shape[axis]
    # Even samples rising, odd samples falling: the DFT of that sequence holds the DCT up to a phase.
    folded = torch.cat([_every_other(x, axis, 0), _every_other(x, axis, 1).flip(axis)], dim=axis)
    half = torch.view_as_real(
        torch.fft.rfft(folded, dim=axis).mul_(_phase(length, axis, x.device, x.dtype)[0])
    )
    falling = half[..., 1].narrow(axis, 1, (length + 1) // 2 - 1)
    return torch.cat([half[..., 0], falling.flip(axis).neg_()], dim=axis)


def _idct_fft(x: Tensor, axis: int) -> Tensor:
    length, middle = x.shape[axis], (x.shape[axis] + 1) // 2
    shape = list(x.shape)
    shape[axis] = length // 2 + 1
    half = x.new_empty(*shape, 2)
    half[..., 0] = x.narrow(axis, 0, length // 2 + 1)
    half[..., 1].narrow(axis, 0, 1).zero_()
    torch.neg(
        x.narrow(axis, middle, length // 2).flip(axis),
        out=half[..., 1].narrow(axis, 1, length // 2),
    )
    half = torch.view_as_complex(half).mul_(_phase(length, axis, x.device, x.dtype)[1])
    folded = torch.fft.irfft(half, n=length, dim=axis)
    out = torch.empty_like(x)
    _every_other(out, axis, 0).copy_(folded.narrow(axis, 0, middle))
    _every_other(out, axis, 1).copy_(folded.narrow(axis, middle, length // 2).flip(axis))
    return out


def _every_other(x: Tensor, axis: int, first: int) -> Tensor:
    return x[..., first::2] if axis == -1 else x[..., first::2, :]


@functools.lru_cache(maxsize=64)
def _phase(
    length: int, axis: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(-i pi k / 2N) with the orthonormal scale, for the frequencies an rfft returns along the axis; and its inverse."""
    phase = np.exp(-0.5j * np.pi * np.arange(length // 2 + 1) / length) * math.sqrt(2 / length)
    phase[0] = math.sqrt(1 / length)
    phase = phase if axis == -1 else phase[:, None]
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    with torch.inference_mode(False):
        return torch.from_numpy(phase).to(device, kind), torch.from_numpy(1 / phase).to(
            device, kind
        )
