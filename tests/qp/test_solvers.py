"""Every back end on every graph it takes: one battery against the whole program. A new back end joins by its line in BACK_ENDS."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import GAMMAS, GRAPHS, assert_close, on, pixels, random_weights, truth, variables

from cutslots import MinCut
from cutslots.errors import InputError
from cutslots.qp import EdgeList, Gamma, Grid, cholesky, factors, min_cut_program
from cutslots.qp.solvers import BACK_ENDS

TAKEN = [
    pytest.param(name, graph, id=f"{name}-{which}")
    for name, (which, graph) in itertools.product(BACK_ENDS, GRAPHS.items())
    if BACK_ENDS[name].refuses(graph) is None
]
both = pytest.mark.parametrize(("solver", "graph"), TAKEN)


@both
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("terminal_slack", [True, False], ids=["slack", "fixed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_equals_the_whole_program(solver, graph, gamma, terminal_slack, dtype, tolerance):
    weights = random_weights(graph, dtype=dtype)
    solution = on(graph, gamma, beta=1.7, terminal_slack=terminal_slack, solver=solver)(weights)
    assert solution.potentials.dtype == dtype
    assert_close(variables(solution), truth(graph, weights, gamma, 1.7, terminal_slack), tolerance)


@both
def test_derivatives(solver, graph):
    cut = on(graph, GAMMAS[1], solver=solver, beta=-0.4)
    weights = random_weights(graph, batch=1).requires_grad_()

    def everything(weights):
        solution = cut(weights)
        return (
            solution.potentials,
            solution.terminals,
            solution.edges(),
            solution.slacks(),
            *solution.terminal_edges(),
        )

    # Along a random direction in place of one column at a time; every column of one grid is below.
    assert torch.autograd.gradcheck(everything, weights, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda weights: cut(weights).edges(), weights, fast_mode=True
    )


@pytest.mark.parametrize("solver", BACK_ENDS)
def test_derivatives_column_by_column(solver):
    cut, weights = (
        on(Grid(3, 4), GAMMAS[1], solver=solver),
        random_weights(Grid(3, 4), batch=1).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda weights: cut(weights).potentials, weights)


@both
def test_the_map_is_symmetric_and_positive(solver, graph):
    back_end = BACK_ENDS[solver](graph, GAMMAS[1])
    flat = np.prod(graph.shape)
    unit = torch.eye(flat + 2, dtype=torch.float64)
    potentials, terminals = back_end.solve(
        unit[:, :flat].reshape(-1, *graph.shape), unit[:, flat:].clone()
    )
    S = torch.cat([potentials.flatten(1), terminals], dim=1)
    there = np.append(
        np.arange(flat) if graph.vertices is None else graph.vertices, [flat, flat + 1]
    )
    torch.testing.assert_close(S, S.T, atol=1e-12, rtol=0)
    assert torch.linalg.eigvalsh(S[there][:, there]).min() > 0
    missing = np.setdiff1d(np.arange(flat), there)
    assert (S[:, missing] == 0).all(), "a pixel that is not there has a potential"


@both
def test_cuts_of_a_batch_do_not_know_each_other(solver, graph):
    cut = on(graph, GAMMAS[2], solver=solver)
    weights = random_weights(graph, batch=5)
    together = cut(weights).potentials
    alone = torch.cat([cut(each[None]).potentials for each in weights])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)
    poisoned = weights.clone()
    poisoned[1].view(-1)[graph.edges().slot[0]] = float("nan")
    spoilt = cut(poisoned).potentials
    assert not spoilt[1].isfinite().all()
    torch.testing.assert_close(spoilt[[0, 2, 3, 4]], together[[0, 2, 3, 4]], atol=1e-12, rtol=1e-12)


@both
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_is_not_finite_is_refused_when_debugging(solver, graph):
    weights = random_weights(graph)
    weights[2].view(-1)[graph.edges().slot[-1]] = float("inf")
    with (
        pytest.raises(InputError, match=r"weights\[2, .*is inf"),
        torch.autograd.detect_anomaly(check_nan=False),
    ):
        on(graph, solver=solver)(weights)


@both
def test_weights_of_no_edge_do_not_count(solver, graph):
    weights = random_weights(graph)
    other = torch.full_like(weights, float("nan"))
    slot = graph.edges().slot
    other.view(3, -1)[:, slot] = weights.view(3, -1)[:, slot]
    cut, leaf = on(graph, solver=solver), other.requires_grad_()
    found = cut(leaf)
    torch.testing.assert_close(found.potentials, cut(weights).potentials, atol=0, rtol=0)
    (grad,) = torch.autograd.grad(found.potentials.square().sum(), leaf)
    rest = np.setdiff1d(np.arange(grad[0].numel()), slot)
    assert (grad.view(3, -1)[:, rest] == 0).all()
    assert (found.edges().view(3, -1)[:, rest] == 0).all()


@both
def test_weights_of_zero_and_huge_ones(solver, graph):
    cut = on(graph, GAMMAS[1], solver=solver)
    nothing = cut(torch.zeros(2, *graph.layout))
    assert (nothing.potentials == 0).all()
    torch.testing.assert_close(nothing.terminals[:, 0], -nothing.terminals[:, 1])
    weights = random_weights(graph, dtype=torch.float32) * 1e6
    assert_close(variables(cut(weights)), truth(graph, weights, GAMMAS[1]), 2e-5)


@both
def test_an_empty_batch_passes(solver, graph):
    weights = torch.rand(0, *graph.layout, requires_grad=True)
    solution = on(graph, solver=solver)(weights)
    assert solution.potentials.shape == (0, *graph.shape)
    solution.edges().sum().backward()


@both
def test_terminal_edges_are_a_part_of_all_edges(solver, graph):
    solution = on(graph, GAMMAS[1], solver=solver)(random_weights(graph))
    for found, expected in zip(
        solution.terminal_edges(), graph.terminal_edges(solution.edges()), strict=True
    ):
        torch.testing.assert_close(found, expected)


@both
def test_inference_first_and_training_after(solver, graph):
    cut, weights = on(graph, solver=solver), random_weights(graph)
    with torch.inference_mode():
        expected = cut(weights).potentials
    found = cut(weights.requires_grad_()).potentials
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_computed_in_float32(solver, graph, dtype):
    weights, cut = random_weights(graph).to(dtype), on(graph, solver=solver)
    torch.testing.assert_close(
        cut(weights).potentials, cut(weights.float()).potentials, atol=0, rtol=0
    )


@both
def test_memory_order_does_not_matter(solver, graph):
    weights, cut = random_weights(graph, batch=4), on(graph, solver=solver)
    expected = cut(weights).potentials
    strided = torch.stack([weights, weights], dim=-1)[..., 0]
    assert not strided.is_contiguous() or strided.numel() < 2
    torch.testing.assert_close(cut(strided).potentials, expected, atol=1e-14, rtol=0)
    batch_last = weights.movedim(0, -1).contiguous().movedim(-1, 0)
    torch.testing.assert_close(cut(batch_last).potentials, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("solver", BACK_ENDS)
def test_copies_share_the_factor_and_give_the_same(solver):
    cut = MinCut(5, 4, solver=solver)
    twin, weights = copy.deepcopy(cut), random_weights(cut.graph)
    cut(weights)
    torch.testing.assert_close(
        pickle.loads(pickle.dumps(cut))(weights).potentials, cut(weights).potentials
    )
    torch.testing.assert_close(twin(weights).potentials, cut(weights).potentials, atol=0, rtol=0)
    assert not cut.state_dict()
    assert getattr(twin._solver, "factor", None) is getattr(cut._solver, "factor", None)


ALL_PAIRS = [(tail, head) for tail in range(90) for head in range(90) if tail != head]
graphs = st.one_of(
    st.builds(
        lambda height, width, neighbours, interior, seed: Grid(height, width, neighbours, interior, pixels(height, width, seed)),
        st.integers(1, 6), st.integers(1, 6), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 99),
    ),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: pair[0] != pair[1]), max_size=25).map(
        lambda edges: EdgeList(edges, num_vertices=9)
    ),
)  # fmt: skip
exponents = st.floats(-2, 2)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=50, deadline=None)
@given(
    graphs,
    st.sampled_from(["auto", "vertex", "kkt"]),
    st.integers(0, 99),
    exponents,
    exponents,
    exponents,
    st.floats(-3, 3),
)
def test_any_graph_equals_its_program(graph, solver, seed, edge, terminal, vertex, beta):
    gamma = Gamma(10**edge, 10**terminal, 10**vertex)
    weights = random_weights(graph, batch=2, seed=seed)
    found = variables(on(graph, gamma, beta=beta, solver=solver)(weights))
    assert_close(found, truth(graph, weights, gamma, beta), 1e-9)


def test_a_grid_as_a_list_of_edges_is_the_same_graph():
    grid = Grid(5, 6, neighbours=8)
    tail, head, slot = grid.edges()
    between = np.maximum(tail, head) < 30
    edges = EdgeList(np.stack([tail, head], axis=1)[between], 30)
    weights = random_weights(grid)
    listed = weights.view(3, -1)[:, np.concatenate([slot[between], np.arange(8 * 30, 10 * 30)])]
    expected = MinCut.on(grid)(weights)
    found = MinCut.on(edges)(listed)
    torch.testing.assert_close(found.potentials, expected.potentials.flatten(1))
    torch.testing.assert_close(found.terminals, expected.terminals)


def test_the_published_graph_has_the_papers_size():
    """The paper's "over 23,000 constraints" and "over 52,000 variables" are its published code's 23,569 and 52,243."""
    grid = Grid(64, 64, interior_edges=True)
    program = min_cut_program(grid, GAMMAS[0], beta=10.0, terminal_slack=False, as_published=True)
    assert program.A.shape == (23_569, 52_243)
    unused = np.setdiff1d(np.arange(52_243), program.A.tocoo().col)
    assert len(unused) == 4 * (64**2 - 62**2) + 1
    plain = min_cut_program(grid, GAMMAS[0], beta=10.0, terminal_slack=False)
    assert plain.A.shape == (23_569, 52_243 - len(unused))


def test_variables_that_no_row_mentions_change_nothing():
    grid = Grid(4, 5, interior_edges=True)
    weights = random_weights(grid)
    published = min_cut_program(grid, GAMMAS[0], 10.0, terminal_slack=False, as_published=True)
    c = np.zeros((len(published.G), 3))
    c[published.blocks["d"]] = weights.flatten(1).numpy().T
    z = np.linalg.solve(published.kkt().toarray(), published.rhs(c))
    expected = truth(grid, weights, GAMMAS[0], 10.0, terminal_slack=False)
    np.testing.assert_allclose(z[published.blocks["p"]], expected["p"], atol=1e-12)


def test_beta_and_the_terminal_slack_move_the_terminals_only():
    weights = random_weights(GRAPHS["eight-islands"])
    paper, published = (
        on(GRAPHS["eight-islands"])(weights),
        on(GRAPHS["eight-islands"], beta=10.0, terminal_slack=False)(weights),
    )
    torch.testing.assert_close(paper.potentials, published.potentials)
    assert not torch.allclose(paper.terminals, published.terminals)
    torch.testing.assert_close(published.terminal_slack(), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["vertex", "kkt"])
def test_one_factor_serves_every_gamma_and_another_reach_has_its_own(solver):
    weights, graph = random_weights(Grid(5, 5)), Grid(5, 5)
    for gamma in (0.1, 0.5, 3.0):
        cut = MinCut(5, 5, gamma, solver=solver)
        assert_close(
            variables(cut(weights)), truth(graph, weights, Gamma(gamma, gamma, gamma)), 1e-10
        )
    assert len(factors.stored()) == 1
    further = Gamma(1.0, 0.1, 0.1)
    assert_close(
        variables(on(graph, further, solver=solver)(weights)), truth(graph, weights, further), 1e-10
    )
    assert len(factors.stored()) == 2
    MinCut(5, 5, gamma_edge=2.0, gamma_terminal=0.2, gamma_vertex=0.2, solver=solver)
    assert len(factors.stored()) == 2, "the same reach at another scale"


@pytest.mark.parametrize("solver", ["vertex", "kkt"])
def test_scipy_factors_where_cholmod_is_missing(solver, monkeypatch):
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: False)
    for graph in (GRAPHS["grid"], GRAPHS["eight-islands"], Grid(12, 13)):
        weights = random_weights(graph)
        assert_close(
            variables(on(graph, GAMMAS[1], solver=solver)(weights)),
            truth(graph, weights, GAMMAS[1]),
            1e-10,
        )


@pytest.mark.parametrize(
    ("graph", "solver", "chosen"),
    [
        (Grid(9, 9), "auto", "dct"),
        (Grid(9, 9), "kkt", "kkt"),
        (Grid(9, 9, interior_edges=True), "auto", "vertex"),
        (Grid(9, 9, neighbours=8), "auto", "vertex"),
        (Grid(9, 9, pixels=pixels(9, 9)), "auto", "vertex"),
        (GRAPHS["edges"], "auto", "vertex"),
    ],
    ids=str,
)
def test_the_choice_and_its_reason_can_be_asked_for(graph, solver, chosen):
    choice = MinCut.on(graph, solver=solver).choice
    assert choice.name == chosen
    assert choice.why


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinCut(4, 4, neighbours=8, solver="dct"), '8 neighbours. Use solver="vertex"'),
        (
            lambda: MinCut(4, 4, interior_edges=True, solver="dct"),
            'interior edges only. Use solver="vertex"',
        ),
        (
            lambda: MinCut(4, 4, pixels=pixels(4, 4), solver="dct"),
            'of 16 pixels. Use solver="vertex"',
        ),
        (
            lambda: MinCut.on(GRAPHS["edges"], solver="dct"),
            '7 vertices and 7 edges without a grid. Use solver="vertex"',
        ),
        (lambda: MinCut.on(Grid(64, 64), solver="dense"), 'Use solver="auto"'),
        (lambda: MinCut.on(EdgeList(ALL_PAIRS), solver="dense"), 'Use solver="auto"'),
        (
            lambda: MinCut(2048, 2048, solver="kkt"),
            'G numbers for a 2048 x 2048 grid.*Use solver="auto"',
        ),
        (lambda: MinCut(4, 4, beta=float("nan")), "beta is nan"),
        (lambda: MinCut(4, 4, neighbours=6), "neighbours is 6"),
        (lambda: MinCut(4, 4, pixels=np.zeros((4, 4), dtype=bool)), "no True"),
        (lambda: MinCut(4, 4, pixels=np.ones((4, 4))), "float64 of shape .4, 4.; give bool"),
        (
            lambda: MinCut(4, 4, pixels=torch.ones(3, 4, dtype=torch.bool)),
            r"give bool of shape \(4, 4\)",
        ),
        (lambda: EdgeList([(0, 1), (1, 1)]), r"edges\[1\] joins vertex 1 to itself"),
        (lambda: EdgeList([(0, 9)], num_vertices=9), "allows 0 to 8"),
        (lambda: EdgeList([(0, -1)]), "vertices -1 to 0"),
        (lambda: EdgeList(np.ones((1, 2))), r"float64 of shape \(1, 2\)"),
        (lambda: EdgeList([]), "num_vertices is 0"),
    ],
)
def test_bad_graphs_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@both
def test_equals_the_cpu_on_a_gpu(solver, graph, dtype):
    cut, tolerance = on(graph, GAMMAS[1], solver=solver), 1e-10 if dtype == torch.float64 else 1e-5
    for batch in (3, 5, 3):  # the second plan of another batch size must not disturb the first
        weights = random_weights(graph, batch, seed=batch)
        on_gpu = weights.to("cuda", dtype).requires_grad_()
        potentials = cut(on_gpu).potentials
        potentials.square().sum().backward()
        weights.requires_grad_()
        expected = cut(weights).potentials
        expected.square().sum().backward()
        torch.testing.assert_close(
            potentials.cpu().double(), expected, atol=tolerance, rtol=tolerance
        )
        assert on_gpu.grad is not None
        torch.testing.assert_close(
            on_gpu.grad.cpu().double(), weights.grad, atol=10 * tolerance, rtol=10 * tolerance
        )
