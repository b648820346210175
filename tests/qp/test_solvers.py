"""One battery for every back end on every graph that it accepts, against the whole program."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from ground_truth import GAMMAS, GRAPHS, assert_exact, layer, pixels, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from cutslots import MinCut
from cutslots.errors import InputError
from cutslots.qp import EdgeList, Gamma, Grid, cholesky, factors, min_cut_program
from cutslots.qp.solvers import BACK_ENDS

ACCEPTED = [
    pytest.param(name, graph, id=f"{name}-{label}")
    for name, (label, graph) in itertools.product(BACK_ENDS, GRAPHS.items())
    if BACK_ENDS[name].refuses(graph) is None
]
every = pytest.mark.parametrize(("solver", "graph"), ACCEPTED)


@every
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("slack", [True, False], ids=["slack", "fixed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_solution_equals_whole_program(solver, graph, gamma, slack, dtype, tolerance):
    cut, weights = (
        layer(graph, gamma, beta=1.7, terminal_slack=slack, solver=solver),
        random_weights(graph, dtype=dtype),
    )
    assert cut(weights).potentials.dtype == dtype
    assert_exact(cut, weights, tolerance)


@every
def test_derivatives(solver, graph):
    cut = layer(graph, GAMMAS[1], solver=solver, beta=-0.4)
    weights = random_weights(graph, batch=1).requires_grad_()

    def outputs(weights):
        solution = cut(weights)
        edges = (solution.edges(), solution.slacks(), *solution.terminal_edges())
        return solution.potentials, solution.terminals, *edges

    # Along a random direction, which is fast; every column of one grid is tested below.
    assert torch.autograd.gradcheck(outputs, weights, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda w: cut(w).edges(), weights, fast_mode=True)


@pytest.mark.parametrize("solver", BACK_ENDS)
def test_derivatives_column_by_column(solver):
    cut = layer(Grid(3, 4), GAMMAS[1], solver=solver)
    weights = random_weights(cut.graph, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: cut(w).potentials, weights)


@every
def test_map_is_symmetric_and_positive(solver, graph):
    size = int(np.prod(graph.shape))
    unit = torch.eye(size + 2, dtype=torch.float64)
    potentials, terminals = BACK_ENDS[solver](graph, GAMMAS[1]).solve(
        unit[:, :size].reshape(-1, *graph.shape), unit[:, size:].clone()
    )
    S = torch.cat([potentials.flatten(1), terminals], dim=1)
    vertices = np.arange(size) if graph.vertices is None else graph.vertices
    existing = np.append(vertices, [size, size + 1])
    torch.testing.assert_close(S, S.T, atol=1e-12, rtol=0)
    assert torch.linalg.eigvalsh(S[existing][:, existing]).min() > 0
    assert (S[:, np.setdiff1d(np.arange(size), existing)] == 0).all()


@every
def test_cuts_of_a_batch_are_independent(solver, graph):
    cut = layer(graph, GAMMAS[2], solver=solver)
    weights = random_weights(graph, batch=5)
    together = cut(weights).potentials
    alone = torch.cat([cut(single[None]).potentials for single in weights])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)
    weights[1].view(-1)[graph.edges().slot[0]] = float("nan")
    spoilt = cut(weights).potentials
    assert not spoilt[1].isfinite().all()
    others = [0, 2, 3, 4]
    torch.testing.assert_close(spoilt[others], together[others], atol=1e-12, rtol=1e-12)


@every
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_detect_anomaly_reports_infinite_weights(solver, graph):
    weights = random_weights(graph)
    weights[2].view(-1)[graph.edges().slot[-1]] = float("inf")
    anomaly = torch.autograd.detect_anomaly(check_nan=False)
    with pytest.raises(InputError, match=r"weights\[2, .*inf"), anomaly:
        layer(graph, solver=solver)(weights)


@every
def test_weights_without_an_edge_have_no_effect(solver, graph):
    weights, slot = random_weights(graph), graph.edges().slot
    other = torch.full_like(weights, float("nan"))
    other.view(3, -1)[:, slot] = weights.view(3, -1)[:, slot]
    cut, leaf = layer(graph, solver=solver), other.requires_grad_()
    solution = cut(leaf)
    torch.testing.assert_close(solution.potentials, cut(weights).potentials, atol=0, rtol=0)
    (grad,) = torch.autograd.grad(solution.potentials.square().sum(), leaf)
    rest = np.setdiff1d(np.arange(grad[0].numel()), slot)
    assert (grad.view(3, -1)[:, rest] == 0).all()
    assert (solution.edges().view(3, -1)[:, rest] == 0).all()


@every
def test_zero_huge_and_no_weights(solver, graph):
    cut = layer(graph, GAMMAS[1], solver=solver)
    zero = cut(torch.zeros(2, *graph.layout))
    assert (zero.potentials == 0).all()
    torch.testing.assert_close(zero.terminals[:, 0], -zero.terminals[:, 1])
    assert_exact(cut, random_weights(graph, dtype=torch.float32) * 1e6, 2e-5)
    empty = cut(torch.rand(0, *graph.layout, requires_grad=True))
    assert empty.potentials.shape == (0, *graph.shape)
    empty.edges().sum().backward()


@every
def test_terminal_edges_equal_those_of_all_edges(solver, graph):
    solution = layer(graph, GAMMAS[1], solver=solver)(random_weights(graph))
    expected = graph.terminal_edges(solution.edges())
    torch.testing.assert_close(solution.terminal_edges(), expected)


@every
def test_inference_mode_first_and_training_later(solver, graph):
    cut, weights = layer(graph, solver=solver), random_weights(graph)
    with torch.inference_mode():
        expected = cut(weights).potentials
    potentials = cut(weights.requires_grad_()).potentials
    potentials.square().sum().backward()
    torch.testing.assert_close(potentials, expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_computed_in_float32(solver, graph, dtype):
    weights, cut = random_weights(graph).to(dtype), layer(graph, solver=solver)
    expected = cut(weights.float()).potentials
    torch.testing.assert_close(cut(weights).potentials, expected, atol=0, rtol=0)


@every
def test_memory_order_has_no_effect(solver, graph):
    weights, cut = random_weights(graph, batch=4), layer(graph, solver=solver)
    expected = cut(weights).potentials
    strided = torch.stack([weights, weights], dim=-1)[..., 0]
    batch_last = weights.movedim(0, -1).contiguous().movedim(-1, 0)
    assert not strided.is_contiguous() or strided.numel() < 2
    for other in (strided, batch_last):
        torch.testing.assert_close(cut(other).potentials, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("solver", BACK_ENDS)
def test_copies_share_the_factor_and_give_the_same(solver):
    cut = MinCut(5, 4, solver=solver)
    twin, weights = copy.deepcopy(cut), random_weights(cut.graph)
    expected = cut(weights).potentials
    torch.testing.assert_close(pickle.loads(pickle.dumps(cut))(weights).potentials, expected)
    torch.testing.assert_close(twin(weights).potentials, expected, atol=0, rtol=0)
    assert not cut.state_dict()
    assert getattr(twin._solver, "factor", None) is getattr(cut._solver, "factor", None)


pairs = st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: pair[0] != pair[1])
side, exponent = st.integers(1, 6), st.floats(-2, 2)
graphs = st.one_of(
    st.builds(
        lambda h, w, n, interior, seed: Grid(h, w, n, interior, pixels(h, w, seed)),
        *(side, side, st.sampled_from([4, 8]), st.booleans(), st.integers(0, 99)),
    ),
    st.lists(pairs, max_size=25).map(lambda edges: EdgeList(edges, num_vertices=9)),
)
gammas = st.tuples(exponent, exponent, exponent).map(lambda x: Gamma(*(10**e for e in x)))
solvers = st.sampled_from(["auto", "vertex", "kkt"])


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=50, deadline=None)
@given(graphs, solvers, st.integers(0, 99), gammas, st.floats(-3, 3))
def test_any_graph_equals_its_program(graph, solver, seed, gamma, beta):
    cut = layer(graph, gamma, beta=beta, solver=solver)
    assert_exact(cut, random_weights(graph, batch=2, seed=seed), 1e-9)


def test_channels_of_a_grid_are_the_edges_that_leave_a_pixel():
    grid = Grid(2, 2, neighbours=8)
    ends = {"right": (0, 1), "left": (1, 0), "down": (0, 2), "up": (2, 0), "down_right": (0, 3),
            "up_left": (3, 0), "down_left": (1, 2), "up_right": (2, 1), "source": (4, 0),
            "sink": (0, 5)}  # fmt: skip
    assert set(grid.channels) == set(ends)
    listed = set(zip(*(array.tolist() for array in grid.edges()), strict=True))
    for channel, (tail, head) in ends.items():
        pixel = head if channel == "source" else tail
        assert (tail, head, 4 * grid.channels.index(channel) + pixel) in listed, channel


def test_program_of_the_published_code_has_the_papers_size():
    """ "Over 23,000 constraints" and "over 52,000 variables" are the code's 23,569 and 52,243.

    The code also counts edge variables of border pixels and a slack that no constraint mentions.
    """
    grid = Grid(64, 64, interior_edges=True)
    program = min_cut_program(grid, GAMMAS[0], beta=10.0, terminal_slack=False)
    unused = 4 * (64**2 - 62**2) + 1
    assert program.A.shape == (23_569, 52_243 - unused)


def test_beta_and_terminal_slack_move_the_terminals_only():
    graph = GRAPHS["eight-islands"]
    weights = random_weights(graph)
    paper, published = layer(graph)(weights), layer(graph, beta=10.0, terminal_slack=False)(weights)
    torch.testing.assert_close(paper.potentials, published.potentials)
    assert not torch.allclose(paper.terminals, published.terminals)
    torch.testing.assert_close(published.terminal_slack(), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["vertex", "kkt"])
def test_one_factor_serves_every_gamma_of_the_same_reach(solver):
    graph = Grid(5, 5)
    weights = random_weights(graph)
    for gamma in (0.1, 0.5, 3.0):
        assert_exact(MinCut(5, 5, gamma, solver=solver), weights)
    assert len(factors.stored()) == 1
    assert_exact(layer(graph, Gamma(1.0, 0.1, 0.1), solver=solver), weights)
    assert len(factors.stored()) == 2
    layer(graph, Gamma(2.0, 0.2, 0.2), solver=solver)
    assert len(factors.stored()) == 2


@pytest.mark.parametrize("solver", ["vertex", "kkt"])
def test_scipy_factors_without_cholmod(solver, monkeypatch):
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: False)
    for graph in (GRAPHS["grid"], GRAPHS["eight-islands"], Grid(12, 13)):
        assert_exact(layer(graph, GAMMAS[1], solver=solver), random_weights(graph))


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
def test_choice_of_a_back_end(graph, solver, chosen):
    choice = MinCut.on(graph, solver=solver).choice
    assert choice.name == chosen
    assert choice.why


ALL_PAIRS = [(tail, head) for tail in range(90) for head in range(90) if tail != head]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinCut(4, 4, neighbours=8, solver="dct"), "dct.*8 neighbours.*vertex"),
        (lambda: MinCut(4, 4, interior_edges=True, solver="dct"), "dct.*interior.*vertex"),
        (lambda: MinCut(4, 4, pixels=pixels(4, 4), solver="dct"), "dct.*of 16 pixels.*vertex"),
        (lambda: MinCut.on(GRAPHS["edges"], solver="dct"), "dct.*7 vertices.*vertex"),
        (lambda: MinCut.on(Grid(64, 64), solver="dense"), "dense.*64 x 64.*auto"),
        (lambda: MinCut.on(EdgeList(ALL_PAIRS), solver="dense"), "dense.*8010 edges.*auto"),
        (lambda: MinCut(2048, 2048, solver="kkt"), "kkt.* G numbers.*2048 x 2048.*auto"),
        (lambda: MinCut(4, 4, solver="dtc"), "dtc.*'dct'"),
        (lambda: MinCut(4, 4, beta=float("nan")), "beta.*nan"),
        (lambda: MinCut(0, 4), "height.*0"),
        (lambda: MinCut(4, 4, gamma=0.0), "gamma.*0"),
        (lambda: MinCut(4, 4, gamma_vertex=float("nan")), "gamma_vertex.*nan"),
        (lambda: MinCut(4, 4, neighbours=6), "neighbours.*6"),
        (lambda: MinCut(4, 4, pixels=np.zeros((4, 4), dtype=bool)), "pixels.*True"),
        (lambda: MinCut(4, 4, pixels=np.ones((4, 4))), r"pixels.*float64.*\(4, 4\)"),
        (lambda: MinCut(4, 4, pixels=torch.ones(3, 4).bool()), r"pixels.*\(4, 4\).*\(3, 4\)"),
        (lambda: EdgeList([(0, 1), (1, 1)]), r"edges\[1\].*vertex 1"),
        (lambda: EdgeList([(0, 9)], num_vertices=9), "edges.*0 to 8.*0 to 9"),
        (lambda: EdgeList([(0, -1)]), "edges.*-1 to 0"),
        (lambda: EdgeList(np.ones((1, 2))), r"edges.*float64.*\(1, 2\)"),
        (lambda: EdgeList([]), "num_vertices.*0"),
    ],
)
def test_bad_graphs_and_options_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@every
def test_gpu_equals_the_cpu(solver, graph, dtype, tolerance):
    cut = layer(graph, GAMMAS[1], solver=solver)
    for batch in (3, 5, 3):  # the plan of one batch size must not disturb another
        weights = random_weights(graph, batch, seed=batch)
        leaf = weights.to("cuda", dtype).requires_grad_()
        potentials = cut(leaf).potentials
        potentials.square().sum().backward()
        expected = cut(weights.requires_grad_()).potentials
        expected.square().sum().backward()
        for actual, reference, scale in (
            (potentials, expected, 1),
            (leaf.grad, weights.grad, 10),
        ):
            assert actual is not None
            limit = {"atol": scale * tolerance, "rtol": scale * tolerance}
            torch.testing.assert_close(actual.cpu().double(), reference, **limit)
