"""The rows of `cutslots bench solvers`: our back ends and their peers, what each needs and how much."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutslots.bench import _peers as peers
from cutslots.errors import InputError
from cutslots.qp import Grid, MinCut
from cutslots.qp.solvers import choose


class Own:
    """A back end of our layer, through the layer and autograd."""

    def __init__(self, back_end: str, size: int, device: torch.device) -> None:
        self.cut = MinCut(size, size, peers.GAMMA, beta=peers.BETA, solver=back_end)

    def forward(self, weights: Tensor) -> Tensor:
        self.weights = weights.detach().requires_grad_()
        self.potentials = self.cut(self.weights).potentials
        return self.potentials.detach()

    def backward(self, upstream: Tensor) -> Tensor:
        gradient = torch.autograd.grad(self.potentials, self.weights, upstream)[0]
        del self.weights, self.potentials
        return gradient


@dataclass(frozen=True)
class Method:
    """A row of the benchmark.

    Attributes:
        title: what it is, in a few words.
        build: makes the solver of a size on a device: its `forward` takes weights `(batch, 6, size, size)` to potentials
            `(batch, size, size)`, its `backward` the loss's derivative by the last of those to that by the weights.
        bytes: about how much memory it needs, for a number of pixels and a batch.
        why: what of that is large, for a number of pixels.
        growth: a step's time rises about as this power of the number of pixels.
        one_by_one: whether it solves one cut after the other, so that its time is that of one cut times their number.
        module, install: the package it needs, and the command that brings it.
        cached: whether it keeps a factor on disk.
        cuda: whether it runs on a GPU; the others run on the CPU.
        tolerance: largest relative error at which it counts as equal; None for what solves another problem.
    """

    title: str
    build: Callable[[int, torch.device], Any]
    bytes: Callable[[int, int], float]
    why: Callable[[int], str] = lambda pixels: "its working arrays"
    growth: float = 1
    one_by_one: bool = False
    module: str | None = None
    install: str | None = None
    cached: bool = False
    cuda: bool = False
    tolerance: float | None = 1e-4


def weights_bytes(pixels: int, batch: int) -> int:
    """Six float32 weights a pixel and cut."""
    return 24 * pixels * batch


def refusal(name: str, size: int) -> str | None:
    """Why a back end of ours cannot take a grid."""
    try:
        if name in OWN:
            choose(Grid(size, size), name)
    except InputError as error:
        return str(error)
    return None


def _constraints(V: int) -> float:
    """Numbers in the factor of A A^T: s and t make its last 2 V rows dense."""
    return (2.0 * V) ** 2 / 2


def _why_constraints(V: int) -> str:
    return f"the factor of A A^T has at least (2V)^2 / 2 = {_constraints(V) / 1e6:,.0f} M numbers"


def _why_dense(V: int) -> str:
    return f"dense {13 * V:,} x {13 * V:,} matrices, several for each cut"


CHOLMOD, PEERS = "pip install 'cutslots[cholmod]'", "pip install 'cutslots[peers]'"
OWN = {
    "dct": Method("closed form (ours)", partial(Own, "dct"), lambda V, b: 4 * weights_bytes(V, b), cuda=True),
    "vertex": Method(
        "Cholesky of the vertices' matrix (ours)", partial(Own, "vertex"),
        lambda V, b: 2000 * V + 6 * weights_bytes(V, b), cached=True, cuda=True,
    ),
    "kkt": Method(
        "the paper's method: Cholesky of A A^T (ours)", partial(Own, "kkt"),
        lambda V, b: 40 * _constraints(V) + 10 * weights_bytes(V, b), _why_constraints, growth=2, cached=True, cuda=True,
    ),
    "dense": Method(
        "inverse of the whole KKT matrix (ours)", partial(Own, "dense"),
        lambda V, b: 24 * (19 * V) ** 2 + 6 * weights_bytes(V, b), growth=2, cuda=True,
    ),
}  # fmt: skip
METHODS = OWN | {
    "kkt_cholmod": Method(
        "Cholesky of A A^T, CHOLMOD's own solves", peers.KktCholmod,
        lambda V, b: 40 * _constraints(V) + 16 * weights_bytes(V, b), _why_constraints, growth=2,
        module="sksparse", install=CHOLMOD,
    ),
    "kkt_splu": Method(
        "SciPy's sparse LU of the whole KKT matrix", peers.KktSplu, lambda V, b: 20_000 * V + 20 * weights_bytes(V, b)
    ),
    "reduced_cholmod": Method(
        "Cholesky of all potentials, CHOLMOD's own solves", peers.ReducedCholmod,
        lambda V, b: 2000 * V + 10 * weights_bytes(V, b), module="sksparse", install=CHOLMOD,
    ),
    "reduced_cholespy": Method(
        "Cholesky of all potentials, cholespy", peers.ReducedCholespy,
        lambda V, b: 2000 * V + 8 * weights_bytes(V, b), module="cholespy", install=PEERS, cuda=True,
    ),
    "qpth": Method(
        "qpth: interior points on dense matrices", peers.Qpth, lambda V, b: 8 * (13 * V) ** 2 * (3 + 4 * b), _why_dense,
        growth=2, one_by_one=True,
        module="qpth", install="pip install --no-deps qpth", cuda=True,
    ),
    "cvxpylayers": Method(
        "cvxpylayers: SCS, differentiated by diffcp", peers.CvxpyLayers, lambda V, b: 200 * weights_bytes(V, b), one_by_one=True,
        module="cvxpylayers", install=PEERS,
    ),
    "osqp": Method(
        "OSQP on the linear program, forward only: for scale", peers.Osqp, lambda V, b: 10_000 * V + 4 * weights_bytes(V, b),
        one_by_one=True,
        module="osqp", install=PEERS, tolerance=None,
    ),
}  # fmt: skip
