"""The regularised matching program with all its inequalities, which Wilder et al. train through.

    maximise    t.x - 1/2 |x|^2        (their  w.x - gamma/2 |x|^2  with t = w / gamma)
    subject to  x >= 0,  rows and columns of x sum to at most 1

so x is the matching nearest to t. With multipliers l_u, l_v >= 0 of the sums,
x_uv = max(0, t_uv - l_u - l_v), and the multipliers minimise 1/2 |x|^2 + sum(l): a convex,
piecewise quadratic function of m + n numbers, which Newton steps on the free multipliers, projected
to l >= 0, minimise exactly. At the solution, x depends on t as a projection: on the pairs with
x > 0, orthogonal to the sums that bind.

Source: Wilder et al., Melding the Data-Decisions Pipeline (2018), section on bipartite matching.
"""

from typing import Any

import torch
from torch import Tensor

# The gradient's tolerance; after all steps, rounding may leave LOOSE, enough to train through.
TOLERANCE, LOOSE, STEPS = 1e-8, 1e-4, 60
RIDGE = 1e-10


class _NearestMatching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor) -> Tensor:
        multipliers = _multipliers(target.double())
        matching = _slack(target.double(), multipliers).clamp(min=0)
        ctx.save_for_backward(matching > 0, multipliers > 0)
        return matching.to(target.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        active, binding = ctx.saved_tensors
        grad = torch.where(active, grads[0].double(), 0)
        step = torch.zeros(len(binding), dtype=torch.float64)
        step[binding] = torch.linalg.solve(_curvature(active, binding), _sums(grad)[binding])
        return torch.where(active, _slack(grad, step), 0).to(grads[0].dtype)


def nearest_matching(target: Tensor) -> Tensor:
    """The point of the matching polytope nearest to `target` (m, n), with its exact derivative.

    The polytope is x >= 0, rows and columns sum to at most 1. Computed in float64.
    """
    return _NearestMatching.apply(target)


def _sums(pairs: Tensor) -> Tensor:
    return torch.cat([pairs.sum(1), pairs.sum(0)])


def _slack(target: Tensor, multipliers: Tensor) -> Tensor:
    rows = target.shape[0]
    return target - multipliers[:rows, None] - multipliers[None, rows:]


def _curvature(active: Tensor, free: Tensor) -> Tensor:
    """The second derivative in the free multipliers."""
    pairs, rows = active.double(), active.shape[0]
    # If all rows and columns bind, one sum is redundant: the ridge picks one of many solutions.
    matrix = torch.diag(_sums(pairs) + RIDGE)
    matrix[:rows, rows:], matrix[rows:, :rows] = pairs, pairs.T
    return matrix[free][:, free]


def _multipliers(target: Tensor) -> Tensor:
    """The multipliers of the sums, by Newton's method projected to l >= 0 (Bertsekas 1982)."""

    def dual(multipliers: Tensor) -> Tensor:
        return _slack(target, multipliers).clamp(min=0).square().sum() / 2 + multipliers.sum()

    multipliers = torch.zeros(sum(target.shape), dtype=torch.float64)
    for step in range(STEPS):
        slack = _slack(target, multipliers)
        gradient = 1 - _sums(slack.clamp(min=0))
        free = (multipliers > 0) | (gradient < 0)
        tolerance = TOLERANCE if step < STEPS - 1 else LOOSE
        if not free.any() or gradient[free].abs().max() < tolerance:
            return multipliers
        curvature = _curvature(slack > 0, free)
        ridge = 1e-8 * torch.eye(len(curvature), dtype=torch.float64)
        direction = torch.zeros_like(multipliers)
        direction[free] = torch.linalg.solve(curvature + ridge, -gradient[free])
        start, size = dual(multipliers), 1.0
        while True:  # halve the step until it lowers the dual enough
            moved = (multipliers + size * direction).clamp(min=0)
            enough = dual(moved) <= start + 1e-4 * gradient @ (moved - multipliers)
            if enough or size < 1e-12:
                break
            size /= 2
        multipliers = moved
    raise ArithmeticError(f"no matching after {STEPS} Newton steps: a sum is off by over {LOOSE}")
