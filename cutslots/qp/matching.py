"""Bipartite matching as a regularised program, in closed form (the paper's Eq. 7).

    minimise    c.d + gamma/2 (|d|^2 + |p|^2 + |s|^2)
    subject to  p_u + sum_v d_uv + s_u = 1     for each u of the first set (m of them)
                p_v + sum_u d_uv + s_v = 1     for each v of the second set (n of them)

The paper prints Eq. 4 and 7 without the sums; without them all d_u. would be equal, which is not a
matching. With multipliers l_u and l_v the variables are d_uv = -(c_uv + l_u + l_v) / gamma and
p = s = -l / gamma, and the constraints leave

    (n + 2) l_u + sum_v l_v = -gamma - sum_v c_uv
    (m + 2) l_v + sum_u l_u = -gamma - sum_u c_uv

whose sums over u and over v are two equations in the two sums. So the solution takes two sums of
the costs and a division.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.qp._util import floating, positive


@dataclass(frozen=True)
class MatchingSolution:
    """The solution of a batch of matching programs.

    Attributes:
        edges: d, a real number per pair, larger if the pair is chosen.
        assignment: `softmax(d / temperature)` over the second set: rows sum to 1, columns need not
            (the paper's Appendix C).
    """

    edges: Float[Tensor, "batch m n"]
    assignment: Float[Tensor, "batch m n"]


class Matching(nn.Module):
    """Match two sets by the regularised program of the paper's Eq. 7; exact and differentiable.

    Args:
        gamma: regularisation, > 0. Edge variables scale as 1/gamma with the costs.
        temperature: of the softmax that turns edge variables into an assignment, > 0; towards 0
            each u takes its best v.

    Call it on costs `(batch, m, n)`, lower is better; it returns a `MatchingSolution`. Half
    precisions are computed in float32.

    Raises:
        InputError: gamma or temperature <= 0, or costs of another shape or type.
    Source: Eq. 7 and Appendix C of Pervez et al. (2023).
    """

    def __init__(self, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma = positive("gamma", gamma)
        self.temperature = positive("temperature", temperature)

    def forward(self, costs: Float[Tensor, "batch m n"]) -> MatchingSolution:
        if costs.ndim != 3:
            raise InputError(f"costs must have shape (batch, m, n), got {tuple(costs.shape)}.")
        costs = floating("costs", costs)
        m, n = costs.shape[1:]
        with torch.autocast(costs.device.type, enabled=False):
            right_u, right_v = -self.gamma - costs.sum(2), -self.gamma - costs.sum(1)
            # The sums over u and over v: (n + 2) S_u + m S_v = sum right_u, and the reverse.
            total_u, total_v = right_u.sum(1), right_v.sum(1)
            determinant = (n + 2) * (m + 2) - m * n
            sum_u = ((m + 2) * total_u - m * total_v) / determinant
            sum_v = ((n + 2) * total_v - n * total_u) / determinant
            l_u, l_v = (right_u - sum_v[:, None]) / (n + 2), (right_v - sum_u[:, None]) / (m + 2)
            edges = -(costs + l_u[:, :, None] + l_v[:, None, :]) / self.gamma
            return MatchingSolution(edges, torch.softmax(edges / self.temperature, dim=2))

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, temperature={self.temperature:g}"
