"""Graphs, and their programs solved whole in float64: the ground truth for every back end."""

import numpy as np
import torch
from scipy.sparse.linalg import splu

from cutslots.qp import EdgeList, Gamma, Graph, Grid, MinCut, min_cut_program
from cutslots.qp.program import edge_costs

GAMMAS = [Gamma(0.5, 0.5, 0.5), Gamma(1.0, 0.1, 0.03), Gamma(0.2, 2.0, 0.7)]


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """About two thirds of the pixels: with holes, islands and a ragged border."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.65
    mask[height // 2, width // 2] = True
    return mask


GRAPHS: dict[str, Graph] = {
    "pixel": Grid(1, 1),
    "row": Grid(1, 5),
    "column": Grid(4, 1),
    "grid": Grid(6, 9),
    "interior": Grid(7, 6, interior_edges=True),
    "eight": Grid(5, 6, neighbours=8),
    "eight-row": Grid(1, 4, neighbours=8),
    "islands": Grid(8, 9, pixels=pixels(8, 9)),
    "eight-islands": Grid(6, 7, neighbours=8, pixels=pixels(6, 7, 1)),
    "everything": Grid(6, 8, neighbours=8, interior_edges=True, pixels=pixels(6, 8, 2)),
    "edges": EdgeList([(0, 1), (1, 0), (1, 2), (2, 4), (4, 0), (4, 0), (5, 1)], num_vertices=7),
    "no-edges": EdgeList([], num_vertices=3),
}


def layer(graph: Graph, gamma: Gamma = GAMMAS[0], **options) -> MinCut:
    edge, terminal, vertex = gamma
    return MinCut.on(
        graph, gamma_edge=edge, gamma_terminal=terminal, gamma_vertex=vertex, **options
    )


def random(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_weights(graph: Graph, batch: int = 3, dtype=torch.float64, seed=1) -> torch.Tensor:
    return random(batch, *graph.layout, seed=seed, dtype=dtype)


def truth(graph: Graph, weights, gamma, beta=1.0, terminal_slack=True) -> dict[str, np.ndarray]:
    """Every variable of the program, by a solve of the whole KKT matrix."""
    program = min_cut_program(graph, gamma, beta, terminal_slack)
    c = np.zeros((len(program.G), len(weights)))
    c[program.blocks["d"]] = edge_costs(weights.detach().double().numpy(), graph)
    kkt, rhs = program.kkt(), program.rhs(c)
    z = np.linalg.solve(kkt.toarray(), rhs) if graph.num_vertices < 400 else splu(kkt).solve(rhs)
    return {name: z[block] for name, block in program.blocks.items()}


def variables(solution) -> dict[str, np.ndarray]:
    """The layer's solution in the order of the program's variables."""
    graph = solution.graph
    flat = solution.potentials.flatten(1)
    vertices = flat if graph.vertices is None else flat[:, graph.vertices]
    return {
        "d": edge_costs(solution.edges().numpy(), graph),
        "s": edge_costs(solution.slacks().numpy(), graph),
        "p": torch.cat([vertices, solution.terminals], dim=1).numpy().T,
        "s_st": solution.terminal_slack().numpy()[None],
    }


def assert_exact(cut: MinCut, weights: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Compare each block of variables, relative to the size of the whole solution."""
    actual = variables(cut(weights))
    expected = truth(cut.graph, weights, cut.gamma, cut.beta, cut.terminal_slack)
    scale = np.sqrt(np.mean(np.concatenate([values.ravel() for values in expected.values()]) ** 2))
    for name, values in expected.items():
        error = np.abs(actual[name] - values).max(initial=0.0)
        assert error <= tolerance * scale, f"{name}: error {error:.2e}, scale {scale:.2e}"
