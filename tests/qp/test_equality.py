"""The general layer against dense solves, and the projection of the paper's Eq. 6."""

import jaxtyping
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutslots.errors import InputError
from cutslots.qp import EqualityQP, cholesky, factors


def program(m, n, seed=0):
    """A sparse A of full row rank, and b."""
    rng = np.random.default_rng(seed)
    A = sp.random_array((m, n), density=0.3, rng=rng, data_sampler=rng.standard_normal).toarray()
    A[:, :m] += 3 * np.eye(m)
    return A, rng.standard_normal(m)


def solved(A, b, gamma, c):
    """z for each row of c, by a dense solve."""
    m, n = A.shape
    kkt = np.block([[np.diag(np.broadcast_to(gamma, n)), A.T], [A, np.zeros((m, m))]])
    return np.linalg.solve(kkt, np.concatenate([-c.T, np.broadcast_to(b, (len(c), m)).T]))[:n].T


def costs(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.floats(-2, 2), st.booleans(), st.integers(0, 99))
def test_solution_equals_a_dense_solve(m, more, exponent, separate, seed):
    n = m + more
    A, b = program(m, n, seed)
    gamma = 10**exponent * (np.random.default_rng(seed).uniform(0.1, 3, n) if separate else 1.0)
    c = costs(4, n, seed=seed)
    expected = solved(A, b, gamma, c.numpy())
    limit = 1e-9 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(EqualityQP(A, b, gamma)(c).numpy(), expected, atol=limit)


def test_derivatives_in_costs_and_right_hand_sides():
    A, b = program(4, 9)
    qp = EqualityQP(A, b, np.linspace(0.3, 2, 9))
    c, other = costs(3, 9).requires_grad_(), costs(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(qp, (c,))
    assert torch.autograd.gradcheck(qp, (c, other))
    assert torch.autograd.gradgradcheck(qp, (c, other))
    z = qp(c, other).detach()
    np.testing.assert_allclose(A @ z.numpy().T, other.detach().numpy().T, atol=1e-10)


def test_solution_is_the_projection_of_the_paper():
    """z = -P c / gamma for b = 0, P = I - A^T (A A^T)^-1 A: the projection on A's null space."""
    A, _ = program(5, 11)
    P = -EqualityQP(A, np.zeros(5))(torch.eye(11, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(P, P.T, atol=1e-12)
    np.testing.assert_allclose(P @ P, P, atol=1e-12)
    np.testing.assert_allclose(A @ P, 0, atol=1e-12)
    assert round(np.trace(P)) == 11 - 5


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_matrix_types_and_gammas_share_a_factor():
    A, b = program(4, 7)
    tensor, c = torch.from_numpy(A), costs(2, 7)
    dense, sparse = [A, A.tolist(), tensor], [sp.csc_matrix(A), sp.coo_array(A)]
    types = [*dense, *sparse, tensor.to_sparse(), tensor.to_sparse_csr()]
    for gamma, matrix in zip((0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 9.0), types, strict=True):
        expected = torch.from_numpy(solved(A, b, gamma, c.numpy()))
        torch.testing.assert_close(EqualityQP(matrix, b, gamma)(c), expected)
    assert len(factors.stored()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    qp, c = EqualityQP(*program(4, 7)), costs(3, 7).to(dtype)
    z = qp(c)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), qp(c.double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_cholmod", [True, False], ids=["cholmod", "superlu"])
def test_dependent_rows_are_refused(has_cholmod, monkeypatch):
    if has_cholmod:
        pytest.importorskip("sksparse.cholmod", reason="scikit-sparse is not installed")
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: has_cholmod)
    # Rounding turns a pivot of 0 into a tiny one of either sign.
    matrices = [np.random.default_rng(seed).standard_normal((4, 9)) for seed in range(12)]
    for A in matrices:
        A[3] = A[0] + A[1]
    for A in [np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]), *matrices]:
        with pytest.raises(InputError, match="rows of A are linearly dependent"):
            EqualityQP(A, np.ones(len(A)))


def test_layer_and_caller_do_not_share_arrays():
    A, b = program(4, 7)
    sparse = sp.csr_array(A)
    row = slice(0, sparse.indptr[1])  # descending: the layer must not sort the caller's arrays
    for array in (sparse.indices, sparse.data):
        array[row] = array[row][::-1].copy()
    before = sparse.indices.copy(), sparse.data.copy()
    qp, c = EqualityQP(sparse, b), costs(2, 7)
    np.testing.assert_array_equal(sparse.indices, before[0])
    np.testing.assert_array_equal(sparse.data, before[1])
    expected = qp(c)
    b[:], sparse.data[:] = 5, 7
    torch.testing.assert_close(qp(c), expected, atol=0, rtol=0)


ONE, NAN, INF = np.ones(1), float("nan"), float("inf")


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_detect_anomaly_reports_infinite_costs():
    anomaly = torch.autograd.detect_anomaly(check_nan=False)
    with pytest.raises(InputError, match=r"c\[0, 1\].*nan"), anomaly:
        EqualityQP(np.ones((1, 3)), ONE)(torch.tensor([[0.0, NAN, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "c", "message"),
    [
        ((np.ones((0, 3)), np.ones(0)), None, r"A .*\(0, 3\)"),
        ((np.array([[1.0, NAN]]), ONE), None, "A .*finite"),
        ((np.ones((1, 3)), np.array([INF])), None, "b .*finite"),
        ((np.ones((1, 3)), np.ones(2)), None, r"b .*\(1,\).*\(1, 3\).*\(2,\)"),
        ((np.ones((1, 3)), ONE, 0.0), None, "gamma.*0"),
        ((np.ones((1, 3)), ONE, np.array([1.0, -1.0, 1.0])), None, "gamma.*-1"),
        ((np.ones((1, 3)), ONE, np.ones(2)), None, r"gamma.*\(3,\).*\(2,\)"),
        ((np.ones((1, 3)), ONE), torch.ones(2, 4), r"c .*\(batch, 3\).*\(2, 4\)"),
        ((np.ones((1, 3)), ONE), torch.ones(2, 3, dtype=torch.int64), "c .*int64"),
    ],
)
def test_bad_input_is_refused(arguments, c, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without it
    with pytest.raises(InputError, match=message):
        EqualityQP(*arguments)(c)
