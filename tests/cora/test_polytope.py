"""The program with inequalities against a general solver and its own optimality conditions."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from cutslots.cora.polytope import nearest_matching


def target(scale, shape=(4, 5), seed=0):
    return scale * torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (5, 3)])
def test_equals_a_general_solver(scale, shape):
    goal = target(scale, shape).numpy()
    sums = [lambda x, row=row: 1 - x.reshape(shape)[row].sum() for row in range(shape[0])]
    sums += [
        lambda x, column=column: 1 - x.reshape(shape)[:, column].sum() for column in range(shape[1])
    ]
    found = minimize(
        lambda x: ((x - goal.ravel()) ** 2).sum() / 2,
        np.zeros(goal.size),
        jac=lambda x: x - goal.ravel(),
        bounds=[(0, None)] * goal.size,
        constraints=[{"type": "ineq", "fun": each} for each in sums],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(
        nearest_matching(torch.from_numpy(goal)).numpy().ravel(), found.x, atol=1e-6
    )


@pytest.mark.parametrize(
    "make", [torch.rand, torch.randn, lambda *shape, **_: 0.5 + 0.001 * torch.randn(*shape)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_is_the_nearest_point_at_full_size(make, scale):
    torch.manual_seed(0)
    goal = scale * make(50, 50, dtype=torch.float64).double()
    chosen = nearest_matching(goal)
    assert chosen.min() >= 0
    assert max(chosen.sum(0).max(), chosen.sum(1).max()) <= 1 + 1e-6
    # Nearest of a convex set: every other point of it lies on the far side of the plane through `chosen`.
    for vertex in (
        torch.zeros(50, 50),
        torch.eye(50),
        torch.eye(50)[torch.randperm(50)],
        torch.full((50, 50), 1 / 50),
    ):
        assert ((goal - chosen) * (vertex.double() - chosen)).sum() <= 1e-5 * scale


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_the_derivative_is_exact(scale):
    for seed in range(3):
        assert torch.autograd.gradcheck(
            nearest_matching, (target(scale, seed=seed).requires_grad_(),), eps=1e-5, atol=1e-4
        )
