"""The regularised matching program with all its inequalities, as Wilder et al. (2018) train through it.

    maximise    t.x - 1/2 |x|^2        (their  w.x - gamma/2 |x|^2  with t = w / gamma)
    subject to  x >= 0,  rows and columns of x sum to at most 1

so x is the matching nearest to t. With multipliers l_u, l_v >= 0 of the sums,  x_uv = max(0, t_uv - l_u - l_v),  and the
multipliers minimise 1/2 |x|^2 + sum(l): a convex function of m + n numbers whose pieces are quadratic, so Newton steps on the free
multipliers (projected to l >= 0) end at the exact solution. At the solution x depends on t as a projection: on the chosen pairs,
orthogonal to the sums that bind.
"""

from typing import Any

import torch
from torch import Tensor

TOLERANCE, STEPS, RIDGE = 1e-8, 60, 1e-10
# Where rounding keeps the steps from TOLERANCE, this is near enough to train through.
LOOSE = 1e-4


class _NearestMatching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor) -> Tensor:
        multipliers = _multipliers(target.double())
        chosen = _slack(target.double(), multipliers).clamp(min=0)
        ctx.save_for_backward(chosen > 0, multipliers > 0)
        return chosen.to(target.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        active, binding = ctx.saved_tensors
        grad = torch.where(active, grads[0].double(), 0)
        step = torch.zeros(len(binding), dtype=torch.float64)
        step[binding] = torch.linalg.solve(_curvature(active, binding), _sums(grad)[binding])
        return torch.where(active, _slack(grad, step), 0).to(grads[0].dtype)


def nearest_matching(target: Tensor) -> Tensor:
    """The point of the matching polytope nearest to `target` (m, n): x >= 0, rows and columns sum to at most 1.

    Computed in float64 whatever comes in; the derivative is exact.

    Source: Wilder et al., Melding the Data-Decisions Pipeline (2018), the quadratic program of their section on bipartite matching.
    """
    return _NearestMatching.apply(target)


def _sums(pairs: Tensor) -> Tensor:
    return torch.cat([pairs.sum(1), pairs.sum(0)])


def _slack(target: Tensor, multipliers: Tensor) -> Tensor:
    rows = target.shape[0]
    return target - multipliers[:rows, None] - multipliers[None, rows:]


def _curvature(active: Tensor, free: Tensor) -> Tensor:
    """The second derivative in the free multipliers."""
    pairs = active.double()
    rows = pairs.shape[0]
    # Rows and columns that all bind say one thing twice; of the many solutions that this leaves, the ridge picks one.
    whole = torch.diag(_sums(pairs) + RIDGE)
    whole[:rows, rows:], whole[rows:, :rows] = pairs, pairs.T
    return whole[free][:, free]


def _dual(target: Tensor, multipliers: Tensor) -> Tensor:
    return _slack(target, multipliers).clamp(min=0).square().sum() / 2 + multipliers.sum()


def _multipliers(target: Tensor) -> Tensor:
    """The multipliers of the sums, by Newton's method projected to the non-negative (Bertsekas 1982)."""
    multipliers = torch.zeros(sum(target.shape), dtype=torch.float64)
    for step in range(STEPS):
        slack = _slack(target, multipliers)
        gradient = 1 - _sums(slack.clamp(min=0))
        free = (multipliers > 0) | (gradient < 0)
        if not free.any() or gradient[free].abs().max() < (
            TOLERANCE if step < STEPS - 1 else LOOSE
        ):
            return multipliers
        direction = torch.zeros_like(multipliers)
        curvature = _curvature(slack > 0, free)
        direction[free] = torch.linalg.solve(
            curvature + 1e-8 * torch.eye(len(curvature), dtype=torch.float64), -gradient[free]
        )
        multipliers = _search(target, multipliers, direction, gradient)
    raise ArithmeticError(
        f"no matching after {STEPS} Newton steps: a sum is off by more than {LOOSE}"
    )


def _search(target: Tensor, multipliers: Tensor, direction: Tensor, gradient: Tensor) -> Tensor:
    """The first halving of the step along `direction`, projected, that lowers the dual enough."""
    start, size = _dual(target, multipliers), 1.0
    while True:
        moved = (multipliers + size * direction).clamp(min=0)
        if _dual(target, moved) <= start + 1e-4 * gradient @ (moved - multipliers) or size < 1e-12:
            return moved
        size /= 2
