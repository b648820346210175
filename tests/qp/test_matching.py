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
    return sp.csr_array(
        sp.hstack([sp.vstack([of_u, of_v]), sp.eye_array(m + n), sp.eye_array(m + n)])
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(-2, 2), st.integers(0, 99))
def test_equals_the_general_layer_on_the_same_program(m, n, exponent, seed):
    gamma, costs = (
        10**exponent,
        torch.randn(3, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    )
    A = constraints(m, n)
    c = torch.cat([costs.flatten(1), torch.zeros(3, 2 * (m + n), dtype=torch.float64)], dim=1)
    expected = EqualityQP(A, np.ones(m + n), gamma)(c)[:, : m * n].view(3, m, n)
    torch.testing.assert_close(
        Matching(gamma)(costs).edges, expected, atol=1e-10 / gamma, rtol=1e-10
    )


def test_equals_a_dense_solve_of_the_optimality_conditions():
    A, gamma = constraints(4, 4).toarray(), 0.1
    costs = np.random.default_rng(0).normal(size=(4, 4))
    kkt = np.block([[gamma * np.eye(32), A.T], [A, np.zeros((8, 8))]])
    z = np.linalg.solve(kkt, np.concatenate([-costs.ravel(), np.zeros(16), np.ones(8)]))
    found = Matching(gamma)(torch.from_numpy(costs)[None]).edges[0]
    np.testing.assert_allclose(found.numpy().ravel(), z[:16], atol=1e-11)


def test_derivatives_and_batches():
    costs = torch.randn(
        3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    matching = Matching(0.5, temperature=0.7)
    assert torch.autograd.gradcheck(lambda c: (matching(c).edges, matching(c).assignment), costs)
    assert torch.autograd.gradgradcheck(lambda c: matching(c).assignment, costs)
    alone = torch.cat([matching(each[None]).edges for each in costs])
    torch.testing.assert_close(matching(costs).edges, alone)


def test_a_clear_matching_is_found():
    generator = np.random.default_rng(1)
    order = generator.permutation(8)
    costs = torch.from_numpy(generator.random((8, 8)))
    costs[torch.arange(8), torch.from_numpy(order)] -= 2
    solution = Matching(0.1, temperature=0.1)(costs[None])
    assert (
        solution.assignment[0].argmax(1).tolist()
        == order.tolist()
        == linear_sum_assignment(costs.numpy())[1].tolist()
    )
    torch.testing.assert_close(solution.assignment.sum(2), torch.ones(1, 8, dtype=torch.float64))


def test_columns_repel_where_a_plain_softmax_lets_all_take_the_same():
    """What the program adds to a softmax of the costs (Appendix C): a v that all want costs all of them."""
    costs = torch.tensor([[[-1.0, -0.9, 0.0], [-1.0, -0.9, 0.0], [-1.0, 0.0, -0.9]]])
    assert torch.softmax(-costs / 0.01, dim=2)[0].argmax(1).tolist() == [0, 0, 0]
    assert Matching(0.1, temperature=0.01)(costs).assignment[0].argmax(1).tolist() == [1, 1, 2]


def test_half_precision_and_autocast():
    costs = torch.randn(2, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = Matching()(costs).edges
    torch.testing.assert_close(found, Matching()(costs.float()).edges, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Matching(0.0), "gamma is 0"),
        (lambda: Matching(temperature=float("inf")), "temperature is inf"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
