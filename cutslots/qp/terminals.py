"""How s and t are tied to a graph's vertices: through their mean alone.

Every vertex has one edge from s and one to t, all with the same gamma. So s and t meet the vertices through the constant vector,
which is an eigenvector of every graph's vertex block (the Laplacian maps it to 0). What is left is one 3 x 3 system in p_s, p_t
and the DC coefficient (the sum of the potentials over sqrt(n)), whatever the graph; the rest of the vertices never learns of the
terminals.

The drop p_s - p_t is an eigenvector of that system by itself, and beta drives it alone. Hence beta moves the terminals and never
a vertex, and a program without slack in its last row, which fixes the drop at beta, differs in p_s and p_t only.
"""

import math

import numpy as np

from cutslots.qp.program import Gamma


def coupling(num_vertices: int, gamma: Gamma) -> np.ndarray:
    """The inverse of the 3 x 3 system of (p_s, p_t, DC), symmetric."""
    gt, root = gamma.terminal, math.sqrt(num_vertices)
    own = gt * num_vertices / 2 + gamma.vertex + gt
    return np.linalg.inv(
        np.array(
            [
                [own, -gt, -gt * root / 2],
                [-gt, own, -gt * root / 2],
                [-gt * root / 2, -gt * root / 2, gt + gamma.vertex],
            ]
        )
    )


def pull(num_vertices: int, gamma: Gamma, beta: float, terminal_slack: bool) -> float:
    """p_s = -p_t of the program without weights: what beta does.

    With the slack, (gamma_t n / 2 + gamma_v + 2 gamma_t) p_s = gamma_t beta from the difference of the first two rows.
    """
    return (
        beta / (num_vertices / 2 + gamma.vertex / gamma.terminal + 2)
        if terminal_slack
        else beta / 2
    )
