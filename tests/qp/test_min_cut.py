"""The cut layer for its users; test_solvers.py compares its back ends with the paper's program."""

import jaxtyping
import pytest
import torch
from ground_truth import assert_exact, layer, random, random_weights

from cutslots import MinCut
from cutslots.errors import InputError
from cutslots.qp import Gamma, Grid
from cutslots.qp.solvers import dct


@pytest.mark.parametrize("length", [1, 2, 3, 8, 31, 64, 255])
@pytest.mark.parametrize("axis", [-1, -2])
def test_both_transforms_are_the_same_orthonormal_basis(length, axis, monkeypatch):
    x = random(*((2, length, 3) if axis == -2 else (2, 3, length)))
    by_matrix = dct.dct(x, axis)
    torch.testing.assert_close(by_matrix.norm(), x.norm())
    torch.testing.assert_close(dct.idct(by_matrix, axis), x)
    monkeypatch.setattr(dct, "FFT_FROM", 1)
    torch.testing.assert_close(dct.dct(x, axis), by_matrix, atol=1e-12, rtol=0)
    torch.testing.assert_close(dct.idct(by_matrix, axis), x, atol=1e-12, rtol=0)


def test_large_grid_uses_the_fft_and_solves_the_program():
    grid = Grid(3, dct.FFT_FROM + 1)
    assert_exact(layer(grid, Gamma(1.0, 0.1, 0.2)), random_weights(grid, batch=2))


@pytest.mark.parametrize("chunk", [1, 40, 100])
def test_batch_in_chunks_is_the_same_batch(chunk, monkeypatch):
    weights, cut = random_weights(Grid(4, 5), batch=7).requires_grad_(), MinCut(4, 5)
    results = []
    for size in (None, chunk):
        monkeypatch.setattr(dct.Dct, "CPU_CHUNK", size)
        solution = cut(weights)
        loss = solution.potentials.square().sum() + solution.terminals.square().sum()
        grad = torch.autograd.grad(loss, weights)
        results.append((solution.potentials, solution.terminals, *grad))
    torch.testing.assert_close(*results)


def test_float32_gradient_equals_float64():
    grads = []
    for dtype in (torch.float64, torch.float32):
        leaf = random(4, 6, 16, 12).to(dtype).requires_grad_()
        MinCut(16, 12)(leaf).potentials.backward(random(4, 16, 12, seed=3).to(dtype))
        assert leaf.grad is not None
        grads.append(leaf.grad.double())
    assert (grads[1] - grads[0]).norm() / grads[0].norm() < 1e-5


def test_source_weight_pulls_its_pixel_to_the_source():
    weights = torch.zeros(1, 6, 8, 8)
    weights[0, 4, 2, 3], weights[0, 5, 5, 5] = 1.0, 1.0
    potentials = MinCut(8, 8)(weights).potentials[0]
    assert potentials.argmax() == 2 * 8 + 3
    assert potentials.argmin() == 5 * 8 + 5


def test_autocast_does_not_change_the_solution():
    weights, upstream = random(2, 6, 8, 8).bfloat16(), torch.randn(2, 8, 8)
    results = []
    for enabled in (False, True):
        leaf = weights.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            potentials = MinCut(8, 8)(leaf).potentials
            potentials.backward(upstream)
        results.append((potentials, leaf.grad))
    torch.testing.assert_close(*results)


@pytest.mark.gpu
def test_gpu_equals_the_cpu_at_full_size():
    weights, cut = random(8, 6, 64, 64), MinCut(64, 64, gamma_terminal=0.05)
    expected = cut(weights).potentials
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        potentials = cut(weights.to("cuda", dtype)).potentials.cpu().double()
        assert (potentials - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.rand(1, 6, 4, 5), r"weights.*\(batch, 6, 4, 4\).*\(1, 6, 4, 5\)"),
        (torch.rand(1, 5, 4, 4), r"weights.*\(batch, 6, 4, 4\)"),
        (torch.ones(1, 6, 4, 4, dtype=torch.int64), "weights.*int64"),
    ],
)
def test_bad_weights_are_refused(weights, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without it
    with pytest.raises(InputError, match=message):
        MinCut(4, 4)(weights)
