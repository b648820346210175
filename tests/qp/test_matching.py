"""Matching in closed form against the general layer and a dense solve of the same program."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cutslots.errors import InputError
from cutslots.qp import EqualityQP, Matching


def constraints(m, n):
    """Eq. 7's A over z = (d, p, s): a row for each u, then for each v."""
    of_u = sp.kron(sp.eye_array(m), np.ones((1, n)))
    of_v = sp.kron(np.ones((1, m)), sp.eye_array(n))
    slacks = sp.eye_array(m + n)
    return sp.csr_array(sp.hstack([sp.vstack([of_u, of_v]), slacks, slacks]))


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(-2, 2), st.integers(0, 99))
def test_edges_equal_the_general_layers(m, n, exponent, seed):
    gamma, costs = 10**exponent, normal(3, m, n, seed=seed)
    c = torch.cat([costs.flatten(1), torch.zeros(3, 2 * (m + n), dtype=torch.float64)], dim=1)
    expected = EqualityQP(constraints(m, n), np.ones(m + n), gamma)(c)[:, : m * n].view(3, m, n)
    edges = Matching(gamma)(costs).edges
    torch.testing.assert_close(edges, expected, atol=1e-10 / gamma, rtol=1e-10)


def test_derivatives_and_batches():
    costs, matching = normal(3, 4, 5).requires_grad_(), Matching(0.5, temperature=0.7)
    assert torch.autograd.gradcheck(lambda c: (matching(c).edges, matching(c).assignment), costs)
    assert torch.autograd.gradgradcheck(lambda c: matching(c).assignment, costs)
    alone = torch.cat([matching(single[None]).edges for single in costs])
    torch.testing.assert_close(matching(costs).edges, alone)


def test_clear_matching_is_found():
    generator = np.random.default_rng(1)
    order = generator.permutation(8)
    costs = torch.from_numpy(generator.random((8, 8)))
    costs[torch.arange(8), torch.from_numpy(order)] -= 2
    assignment = Matching(0.1, temperature=0.1)(costs[None]).assignment[0]
    assert assignment.argmax(1).tolist() == order.tolist()
    assert linear_sum_assignment(costs.numpy())[1].tolist() == order.tolist()
    torch.testing.assert_close(assignment.sum(1), torch.ones(8, dtype=torch.float64))


def test_columns_repel_unlike_in_a_softmax_of_the_costs():
    """The program's advantage over a softmax (Appendix C): a v that all want costs all of them."""
    costs = torch.tensor([[[-1.0, -0.9, 0.0], [-1.0, -0.9, 0.0], [-1.0, 0.0, -0.9]]])
    assert torch.softmax(-costs / 0.01, dim=2)[0].argmax(1).tolist() == [0, 0, 0]
    assert Matching(0.1, temperature=0.01)(costs).assignment[0].argmax(1).tolist() == [1, 1, 2]


def test_half_precision_and_autocast():
    costs = normal(2, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        edges = Matching()(costs).edges
    torch.testing.assert_close(edges, Matching()(costs.float()).edges, atol=0, rtol=0)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="gamma.*0"):
        Matching(0.0)
    with pytest.raises(InputError, match="temperature.*inf"):
        Matching(temperature=float("inf"))
