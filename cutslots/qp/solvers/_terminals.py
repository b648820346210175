"""The coupling of s and t to a graph's vertices, which is through their mean alone.

Every vertex has one edge from s and one to t, all with the same gamma. So s and t meet the vertices
through the constant vector, an eigenvector of every graph's vertex block (the Laplacian maps it to
0). What remains is one 3 x 3 system in p_s, p_t and the DC coefficient (the sum of the potentials
over sqrt(n)); the other components of the potentials do not depend on the terminals.

The drop p_s - p_t is an eigenvector of that system by itself, and beta drives it alone. Hence beta
moves the terminals and never a vertex, and a program without slack in its last row, which fixes the
drop at beta, differs in p_s and p_t only.
"""

import math

import numpy as np

from cutslots.qp.program import Gamma


def coupling(num_vertices: int, gamma: Gamma) -> np.ndarray:
    """The inverse of the 3 x 3 system of (p_s, p_t, DC), symmetric."""
    gt = gamma.terminal
    own, mean = gt * num_vertices / 2 + gamma.vertex + gt, -gt * math.sqrt(num_vertices) / 2
    rows = [[own, -gt, mean], [-gt, own, mean], [mean, mean, gt + gamma.vertex]]
    return np.linalg.inv(np.array(rows))


def pull(num_vertices: int, gamma: Gamma, beta: float, terminal_slack: bool) -> float:
    """p_s = -p_t of the program without weights: the effect of beta.

    With the slack, the difference of the first two rows of the system is
    (gamma_t n / 2 + gamma_v + 2 gamma_t) p_s = gamma_t beta.
    """
    if not terminal_slack:
        return beta / 2
    return beta / (num_vertices / 2 + gamma.vertex / gamma.terminal + 2)
