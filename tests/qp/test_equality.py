"""The general layer against dense solves, and the projection of the paper's Eq. 6."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutslots.errors import InputError
from cutslots.qp import EqualityQP, Gamma, Grid, MinCut, cholesky, factors, min_cut_program
from cutslots.qp.program import edge_costs


def program(m, n, seed=0):
    """A sparse A of full row rank, and b."""
    generator = np.random.default_rng(seed)
    A = sp.random_array(
        (m, n), density=0.3, rng=generator, data_sampler=generator.standard_normal
    ).toarray()
    A[:, :m] += 3 * np.eye(m)
    return A, generator.standard_normal(m)


def solved(A, b, gamma, c):
    m, n = A.shape
    kkt = np.block([[np.diag(np.broadcast_to(gamma, n)), A.T], [A, np.zeros((m, m))]])
    return np.linalg.solve(kkt, np.concatenate([-c, np.broadcast_to(b, (len(c.T), m)).T]))[:n]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.floats(-2, 2), st.booleans(), st.integers(0, 99))
def test_equals_a_dense_solve(m, more, exponent, separate, seed):
    n = m + more
    A, b = program(m, n, seed)
    gamma = 10**exponent * (np.random.default_rng(seed).uniform(0.1, 3, n) if separate else 1.0)
    c = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = solved(A, b, gamma, c.numpy().T).T
    found = EqualityQP(A, b, gamma)(c).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9 * max(1, np.abs(expected).max()))


def test_derivatives_in_costs_and_right_hand_sides():
    A, b = program(4, 9)
    qp = EqualityQP(A, b, np.linspace(0.3, 2, 9))
    c, other = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (9, 4))
    assert torch.autograd.gradcheck(qp, (c,))
    assert torch.autograd.gradcheck(qp, (c, other))
    assert torch.autograd.gradgradcheck(qp, (c, other))
    np.testing.assert_allclose(
        A @ qp(c, other).detach().numpy().T, other.detach().numpy().T, atol=1e-10
    )


def test_p_is_the_projection_of_the_paper():
    """z = -P c / gamma for b = 0 with P = I - A^T (A A^T)^-1 A: symmetric, idempotent, and in the null space of A."""
    A, _ = program(5, 11)
    P = -EqualityQP(A, np.zeros(5))(torch.eye(11, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    np.testing.assert_allclose(P @ P, P, atol=1e-12)
    np.testing.assert_allclose(A @ P, 0, atol=1e-12)
    assert round(np.trace(P)) == 11 - 5


def test_the_cut_is_one_of_these_programs():
    grid, gamma = Grid(5, 6, neighbours=8), Gamma(1.0, 0.1, 0.3)
    written = min_cut_program(grid, gamma, beta=0.7)
    weights = torch.rand(2, *grid.layout, dtype=torch.float64)
    c = torch.zeros(2, len(written.G), dtype=torch.float64)
    c[:, written.blocks["d"]] = torch.from_numpy(edge_costs(weights.numpy(), grid).T)
    z = EqualityQP(written.A, written.b, written.G)(c)
    cut = MinCut(
        5, 6, neighbours=8, gamma_edge=1.0, gamma_terminal=0.1, gamma_vertex=0.3, beta=0.7
    )(weights)
    torch.testing.assert_close(z[:, written.blocks["p"]][:, :-2], cut.potentials.flatten(1))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_every_kind_of_matrix_and_every_gamma_share_a_factor():
    A, b = program(4, 7)
    kinds = [A, A.tolist(), sp.csc_matrix(A), sp.coo_array(A), torch.from_numpy(A), torch.from_numpy(A).to_sparse(),
             torch.from_numpy(A).to_sparse_csr()]  # fmt: skip
    c = torch.randn(2, 7, dtype=torch.float64)
    for gamma, kind in zip((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 9.0), kinds, strict=True):
        torch.testing.assert_close(
            EqualityQP(kind, b, gamma)(c),
            torch.from_numpy(solved(A, b, gamma, c.numpy().T).T.copy()),
        )
    assert len(factors.stored()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    A, b = program(4, 7)
    c = torch.randn(3, 7).to(dtype)
    found = EqualityQP(A, b)(c)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), EqualityQP(A, b)(c.double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_cholmod", [True, False])
def test_rows_that_depend_on_each_other_are_refused(has_cholmod, monkeypatch):
    if has_cholmod:
        pytest.importorskip("sksparse.cholmod", reason="scikit-sparse is not installed")
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: has_cholmod)
    with pytest.raises(InputError, match="rows of A are linearly dependent"):
        EqualityQP(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]), np.ones(2))
    # Rounding leaves a tiny pivot of either sign where it should be 0.
    for seed in range(12):
        A = np.random.default_rng(seed).standard_normal((4, 9))
        A[3] = A[0] + A[1]
        with pytest.raises(InputError, match="rows of A are linearly dependent"):
            EqualityQP(A, np.ones(4))


def test_what_the_caller_does_to_the_arrays_later_does_not_count():
    A, b = program(4, 7)
    sparse = sp.csr_array(A)
    row = slice(0, sparse.indptr[1])  # backwards: nothing may be sorted in the caller's own arrays
    sparse.indices[row], sparse.data[row] = (
        sparse.indices[row][::-1].copy(),
        sparse.data[row][::-1].copy(),
    )
    before = sparse.indices.copy(), sparse.data.copy()
    qp, c = EqualityQP(sparse, b), torch.randn(2, 7, dtype=torch.float64)
    np.testing.assert_array_equal(sparse.indices, before[0])
    np.testing.assert_array_equal(sparse.data, before[1])
    expected = qp(c)
    b[:], sparse.data[:] = 5, 7
    torch.testing.assert_close(qp(c), expected, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_costs_that_are_not_finite_are_refused_when_debugging():
    qp = EqualityQP(np.ones((1, 3)), np.ones(1))
    with (
        pytest.raises(InputError, match=r"c\[0, 1\] is nan"),
        torch.autograd.detect_anomaly(check_nan=False),
    ):
        qp(torch.tensor([[0.0, float("nan"), 1.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EqualityQP(np.ones((0, 3)), np.ones(0)), "at least one row"),
        (lambda: EqualityQP(np.array([[1.0, float("nan")]]), np.ones(1)), "not finite"),
        (
            lambda: EqualityQP(np.ones((1, 3)), np.array([np.inf])),
            "b holds numbers that are not finite",
        ),
        (
            lambda: EqualityQP(np.ones((1, 3)), np.ones(2)),
            r"b has shape \(2,\); A of shape \(1, 3\) needs \(1,\)",
        ),
        (lambda: EqualityQP(np.ones((1, 3)), np.ones(1), 0.0), "gamma is 0"),
        (
            lambda: EqualityQP(np.ones((1, 3)), np.ones(1), np.array([1.0, -1.0, 1.0])),
            "the least gamma is -1",
        ),
        (lambda: EqualityQP(np.ones((1, 3)), np.ones(1), np.ones(2)), r"gamma has shape \(2,\)"),
        (
            lambda: EqualityQP(np.ones((1, 3)), np.ones(1))(torch.ones(2, 4)),
            r"c has shape \(2, 4\); this program takes \(batch, 3\)",
        ),
        (
            lambda: EqualityQP(np.ones((1, 3)), np.ones(1))(torch.ones(2, 3, dtype=torch.int64)),
            "c are torch.int64",
        ),
    ],
)
def test_bad_input_is_refused(call, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # what a user meets, who runs without shape checks
    with pytest.raises(InputError, match=message):
        call()
