"""The cut layer as a user meets it; test_solvers.py holds its back ends to the paper's program."""

import jaxtyping
import pytest
import torch
from programs import assert_close, on, random_weights, truth, variables

from cutslots import MinCut
from cutslots.errors import InputError
from cutslots.qp import Gamma, Grid
from cutslots.qp.solvers import dct


@pytest.mark.parametrize("length", [1, 2, 3, 8, 31, 64, 255])
@pytest.mark.parametrize("axis", [-1, -2])
def test_both_transforms_are_the_same_orthonormal_basis(length, axis, monkeypatch):
    shape = (2, length, 3) if axis == -2 else (2, 3, length)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    by_matrix = dct.dct(x, axis)
    torch.testing.assert_close(by_matrix.norm(), x.norm())
    torch.testing.assert_close(dct.idct(by_matrix, axis), x)
    monkeypatch.setattr(dct, "FFT_FROM", 1)
    torch.testing.assert_close(dct.dct(x, axis), by_matrix, atol=1e-12, rtol=0)
    torch.testing.assert_close(dct.idct(by_matrix, axis), x, atol=1e-12, rtol=0)


def test_a_large_grid_goes_through_the_fft_and_satisfies_the_program():
    height, width, gamma = 3, dct.FFT_FROM + 1, Gamma(1.0, 0.1, 0.2)
    grid = Grid(height, width)
    weights = random_weights(grid, batch=2)
    assert_close(variables(on(grid, gamma)(weights)), truth(grid, weights, gamma), 1e-10)


@pytest.mark.parametrize("part", [1, 40, 100])
def test_a_batch_in_parts_is_the_same_batch(part, monkeypatch):
    weights, cut = random_weights(Grid(4, 5), batch=7).requires_grad_(), MinCut(4, 5)
    results = []
    for each in (None, part):
        monkeypatch.setattr(dct.Dct, "PART", each)
        solution = cut(weights)
        loss = solution.potentials.square().sum() + solution.terminals.square().sum()
        results.append(
            (solution.potentials, solution.terminals, *torch.autograd.grad(loss, weights))
        )
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)


def test_float32_gradient_equals_float64():
    weights = torch.rand(
        4, 6, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    upstream = torch.randn(
        4, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    grads = []
    for dtype in (torch.float64, torch.float32):
        leaf = weights.to(dtype, copy=True).requires_grad_()
        cut = MinCut(16, 12)
        cut(leaf).potentials.backward(upstream.to(dtype))
        assert leaf.grad is not None
        grads.append(leaf.grad.double())
    assert (grads[1] - grads[0]).norm() / grads[0].norm() < 1e-5


def test_a_source_weight_pulls_its_pixel_to_the_source():
    weights = torch.zeros(1, 6, 8, 8)
    weights[0, 4, 2, 3], weights[0, 5, 5, 5] = 1.0, 1.0
    potentials = MinCut(8, 8)(weights).potentials[0]
    assert potentials.argmax() == 2 * 8 + 3
    assert potentials.argmin() == 5 * 8 + 5


def test_half_precision_is_computed_in_float32_also_under_autocast():
    weights = torch.rand(2, 6, 8, 8).bfloat16()
    upstream, leaf, other = (
        torch.randn(2, 8, 8),
        weights.float().requires_grad_(),
        weights.float().requires_grad_(),
    )
    expected = MinCut(8, 8)(leaf).potentials
    expected.backward(upstream)
    with torch.autocast("cpu", torch.bfloat16):
        assert MinCut(8, 8)(weights).potentials.dtype == torch.float32
        found = MinCut(8, 8)(other).potentials
        found.backward(upstream)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad, leaf.grad)


@pytest.mark.gpu
def test_equals_the_cpu_on_a_gpu():
    weights = torch.rand(8, 6, 64, 64, dtype=torch.float64)
    cut = MinCut(64, 64, gamma_terminal=0.05)
    expected = cut(weights).potentials
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        found = cut(weights.to("cuda", dtype)).potentials.cpu().double()
        assert (found - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinCut(0, 4), "height and width"),
        (lambda: MinCut(4, 4, gamma=0), "gamma is 0"),
        (lambda: MinCut(4, 4, gamma_vertex=float("nan")), "gamma_vertex is nan"),
        (lambda: MinCut(4, 4, solver="dtc"), "Did you mean 'dct'"),
        (
            lambda: MinCut(4, 4)(torch.rand(1, 6, 4, 5)),
            r"\(1, 6, 4, 5\); this layer takes \(batch, 6, 4, 4\)",
        ),
        (lambda: MinCut(4, 4)(torch.rand(1, 5, 4, 4)), r"takes \(batch, 6, 4, 4\)"),
        (lambda: MinCut(4, 4)(torch.ones(1, 6, 4, 4, dtype=torch.int64)), "float32 or float64"),
    ],
)
def test_bad_input_is_refused(build, message, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # what a user meets, who runs without shape checks
    with pytest.raises(InputError, match=message):
        build()
