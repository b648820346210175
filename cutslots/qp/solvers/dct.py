"""The closed form on full grids: the two-dimensional DCT-II diagonalises the pixel block.

    pixel block        gamma_e L + (gamma_t + gamma_v) I,   L the grid Laplacian, Neumann borders
    its eigenvalues    gamma_e (4 - 2 cos(pi i / H) - 2 cos(pi j / W)) + gamma_t + gamma_v
    s and t            meet the DC coefficient alone (_terminals.py): DC, p_s and p_t are one 3 x 3
                       system, and every other coefficient is a division

Short axes are transformed by a matrix product, long ones by an FFT (Makhoul, "A fast cosine
transform in one and two dimensions", 1980).
"""

import functools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cutslots.qp._util import Tables
from cutslots.qp.graph import Graph
from cutslots.qp.grid import Grid
from cutslots.qp.program import Gamma
from cutslots.qp.solvers._terminals import coupling

# Below this length the matrix product is the faster transform of an axis (measured on a CPU).
FFT_FROM = 256


class Dct:
    """S in the cosine basis.

    Choose it for full grids of 4 neighbours; "auto" does. It is the fastest back end and needs no
    factor, no iteration and little memory, but accepts no other graph.
    """

    CPU_CHUNK: ClassVar[int | None] = 2**19

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        if isinstance(graph, Grid) and graph.full:
            return None
        return f'solver="dct" needs a full grid of 4 neighbours, got {graph}. Use solver="vertex".'

    def __init__(self, graph: Graph, gamma: Gamma) -> None:
        rows, columns = (2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in graph.shape)
        eigenvalues = gamma.edge * (rows[:, None] + columns) + gamma.terminal + gamma.vertex
        self._tables = Tables(1 / eigenvalues, coupling(graph.num_vertices, gamma))

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        inverse_eigenvalues, coupled = self._tables.on(potentials)
        spectrum = dct(dct(potentials, -1), -2)
        border = torch.cat([terminals, spectrum[:, :1, 0]], dim=1) @ coupled
        spectrum *= inverse_eigenvalues
        spectrum[:, 0, 0] = border[:, 2]
        return idct(idct(spectrum, -1), -2), border[:, :2]


def dct(x: Tensor, axis: int) -> Tensor:
    """The orthonormal DCT-II along axis -1 or -2."""
    length = x.shape[axis]
    if length < FFT_FROM:
        basis = _basis(length, x.device, x.dtype)
        return x @ basis.mT if axis == -1 else basis @ x
    # Even samples ascending, then odd ones descending: the DFT of that is the DCT up to a phase.
    folded = torch.cat([_every_other(x, axis, 0), _every_other(x, axis, 1).flip(axis)], dim=axis)
    phase = _phases(length, axis, x.device, x.dtype)[0]
    half = torch.view_as_real(torch.fft.rfft(folded, dim=axis).mul_(phase))
    falling = half[..., 1].narrow(axis, 1, (length + 1) // 2 - 1)
    return torch.cat([half[..., 0], falling.flip(axis).neg_()], dim=axis)


def idct(x: Tensor, axis: int) -> Tensor:
    """The inverse, and the transpose, of `dct`."""
    length, middle, shape = x.shape[axis], (x.shape[axis] + 1) // 2, list(x.shape)
    if length < FFT_FROM:
        basis = _basis(length, x.device, x.dtype)
        return x @ basis if axis == -1 else basis.mT @ x
    shape[axis] = length // 2 + 1
    half = x.new_empty(*shape, 2)
    half[..., 0] = x.narrow(axis, 0, length // 2 + 1)
    half[..., 1].narrow(axis, 0, 1).zero_()
    falling = x.narrow(axis, middle, length // 2).flip(axis)
    torch.neg(falling, out=half[..., 1].narrow(axis, 1, length // 2))
    half = torch.view_as_complex(half).mul_(_phases(length, axis, x.device, x.dtype)[1])
    folded = torch.fft.irfft(half, n=length, dim=axis)
    out = torch.empty_like(x)
    _every_other(out, axis, 0).copy_(folded.narrow(axis, 0, middle))
    _every_other(out, axis, 1).copy_(folded.narrow(axis, middle, length // 2).flip(axis))
    return out


def _every_other(x: Tensor, axis: int, first: int) -> Tensor:
    return x[..., first::2] if axis == -1 else x[..., first::2, :]


@functools.lru_cache(maxsize=64)
def _basis(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal cosine basis, a row per frequency."""
    k, j = np.arange(length)[:, None], np.arange(length)
    # The angle is reduced in integers: cos(pi k (2j + 1) / 2N) has period 4N in k (2j + 1).
    basis = np.cos(np.pi / (2 * length) * (k * (2 * j + 1) % (4 * length))) * math.sqrt(2 / length)
    basis[0] = math.sqrt(1 / length)
    with torch.inference_mode(False):
        return torch.from_numpy(basis).to(device, dtype)


@functools.lru_cache(maxsize=64)
def _phases(
    length: int, axis: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """exp(-i pi k / 2N), scaled, for the frequencies of an rfft along the axis; and its inverse."""
    phase = np.exp(-0.5j * np.pi * np.arange(length // 2 + 1) / length) * math.sqrt(2 / length)
    phase[0] = math.sqrt(1 / length)
    phase = phase if axis == -1 else phase[:, None]
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    with torch.inference_mode(False):
        forward, inverse = torch.from_numpy(phase), torch.from_numpy(1 / phase)
        return forward.to(device, kind), inverse.to(device, kind)
