"""Programs written out and solved whole, in float64: what every back end is held to."""

import numpy as np
import torch
from scipy.sparse.linalg import splu

from cutslots.qp import EdgeList, Gamma, Graph, Grid, MinCut, min_cut_program
from cutslots.qp.program import edge_costs

GAMMAS = [Gamma(0.5, 0.5, 0.5), Gamma(1.0, 0.1, 0.03), Gamma(0.2, 2.0, 0.7)]


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """About two thirds of the pixels: with holes, islands and a ragged border."""
    there = np.random.default_rng(seed).random((height, width)) < 0.65
    there[height // 2, width // 2] = True
    return there


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


def on(graph: Graph, gamma: Gamma = GAMMAS[0], **options) -> MinCut:
    return MinCut.on(
        graph,
        gamma_edge=gamma.edge,
        gamma_terminal=gamma.terminal,
        gamma_vertex=gamma.vertex,
        **options,
    )


def random_weights(
    graph: Graph, batch: int = 3, dtype=torch.float64, seed: int = 1
) -> torch.Tensor:
    return torch.rand(
        batch, *graph.layout, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


def truth(graph: Graph, weights, gamma, beta=1.0, terminal_slack=True):
    """Every variable of the program, by a solve of the whole KKT matrix: dense, or sparse where that would not fit."""
    program = min_cut_program(graph, gamma, beta, terminal_slack)
    c = np.zeros((len(program.G), len(weights)))
    c[program.blocks["d"]] = edge_costs(weights.double().numpy(), graph)
    kkt, rhs = program.kkt(), program.rhs(c)
    z = np.linalg.solve(kkt.toarray(), rhs) if graph.num_vertices < 400 else splu(kkt).solve(rhs)
    return {name: z[block] for name, block in program.blocks.items()}


def variables(solution):
    """The layer's answer in the order of the program's variables."""
    graph = solution.graph
    flat = solution.potentials.flatten(1)
    vertices = flat if graph.vertices is None else flat[:, graph.vertices]
    return {
        "d": edge_costs(solution.edges().numpy(), graph),
        "s": edge_costs(solution.slacks().numpy(), graph),
        "p": torch.cat([vertices, solution.terminals], dim=1).numpy().T,
        "s_st": solution.terminal_slack().numpy()[None],
    }


def assert_close(found, expected, tolerance):
    """Each block of variables, relative to the size of the whole solution (a block can vanish while others do not)."""
    scale = np.sqrt(np.mean(np.concatenate([values.ravel() for values in expected.values()]) ** 2))
    for name, values in expected.items():
        error = np.abs(found[name] - values)
        worst = np.unravel_index(error.argmax(), values.shape) if values.size else ()
        assert not values.size or error[worst] <= tolerance * scale, (
            f"{name}: error {error[worst]:.2e} > {tolerance:.0e} x {scale:.2e}; "
            f"worst at {worst}: {found[name][worst]} instead of {values[worst]}"
        )
