"""Bipartite matching as a regularised program, in closed form (the paper's Eq. 7).

    minimise    c.d + gamma/2 (|d|^2 + |p|^2 + |s|^2)
    subject to  p_u + sum_v d_uv + s_u = 1     for each u of the first set (m of them)
                p_v + sum_u d_uv + s_v = 1     for each v of the second set (n of them)

Eq. 4 and 7 are printed without the sums; without them all d_u. would be equal, which is no matching. With multipliers l_u and l_v
the variables are d_uv = -(c_uv + l_u + l_v) / gamma, p = s = -l / gamma, and the constraints leave

    (n + 2) l_u + sum_v l_v = -gamma - sum_v c_uv
    (m + 2) l_v + sum_u l_u = -gamma - sum_u c_uv

whose sums over u and over v are two equations in the two sums. So the solution takes two sums of the costs and a division.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.qp.checks import floating, positive


@dataclass(frozen=True)
class MatchingSolution:
    """The solution of a batch of matching programs.

    Attributes:
        edges: d, `(batch, m, n)`, a real number a pair, larger where the pair is chosen.
        assignment: `softmax(d / temperature)` over the second set: rows sum to 1, columns need not (the paper's Appendix C).
    """

    edges: Float[Tensor, "batch m n"]
    assignment: Float[Tensor, "batch m n"]


class Matching(nn.Module):
    """Match two sets by the regularised program of the paper's Eq. 7; exact, batched, differentiable.

    Args:
        gamma: regularisation, > 0. Edge variables move as 1/gamma with the costs.
        temperature: of the softmax that turns edge variables into an assignment, > 0; towards 0 each u takes its best v.

    Call it on costs `(batch, m, n)` (lower is better; minus the inner products of slots, say); it returns a `MatchingSolution`.
    Half precisions are computed in float32.

    Raises:
        InputError: a gamma or temperature that is not positive, or costs of another shape or kind.
    Source: Eq. 7 and Appendix C of Pervez et al. (2023).
    """

    def __init__(self, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma = positive("gamma", gamma)
        self.temperature = positive("temperature", temperature)

    def forward(self, costs: Float[Tensor, "batch m n"]) -> MatchingSolution:
        if costs.ndim != 3:
            raise InputError(
                f"costs have shape {tuple(costs.shape)}; matching takes (batch, m, n)."
            )
        costs = floating("costs", costs)
        with torch.autocast(costs.device.type, enabled=False):
            first, second = self._multipliers(costs)
            edges = -(costs + first[:, :, None] + second[:, None, :]) / self.gamma
            return MatchingSolution(edges, torch.softmax(edges / self.temperature, dim=2))

    def _multipliers(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        m, n = costs.shape[1:]
        right_first, right_second = -self.gamma - costs.sum(2), -self.gamma - costs.sum(1)
        # The sums over u and over v:  (n + 2) S_first + m S_second = sum right_first,  n S_first + (m + 2) S_second = sum ...
        total_first, total_second = right_first.sum(1), right_second.sum(1)
        determinant = (n + 2) * (m + 2) - m * n
        sum_first = ((m + 2) * total_first - m * total_second) / determinant
        sum_second = ((n + 2) * total_second - n * total_first) / determinant
        return (right_first - sum_second[:, None]) / (n + 2), (
            right_second - sum_first[:, None]
        ) / (m + 2)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, temperature={self.temperature:g}"
