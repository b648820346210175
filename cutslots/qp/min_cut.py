"""The differentiable minimum s-t cut of an image grid, or of any graph, as a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.qp import solvers
from cutslots.qp.checks import finite, floating
from cutslots.qp.graph import Graph
from cutslots.qp.grid import Grid
from cutslots.qp.linear_map import LinearMap
from cutslots.qp.program import Gamma
from cutslots.qp.terminals import pull


@dataclass(frozen=True)
class CutSolution:
    """The solution of a batch of min-cut programs.

    Attributes:
        potentials: `(batch, *graph.shape)`, `(batch, H, W)` on a grid: a real number a vertex, larger on the source's side, 0 where
            a grid has no pixel. A softmax over several cuts, or a sigmoid of the distance to the terminals, reads them as masks.
        terminals: `(batch, 2)`, the potentials of s and t.
    """

    potentials: Float[Tensor, "batch *shape"]
    terminals: Float[Tensor, "batch 2"]
    weights: Float[Tensor, "batch *layout"]
    graph: Graph
    gamma: Gamma
    beta: float

    def edges(self) -> Float[Tensor, "batch *layout"]:
        """The edge variables d (how far each edge is cut), in the weights' layout; 0 where no edge exists.

        Source: the paper's Eq. 2 with the slack eliminated, d = (B p) / 2 - w / (2 gamma).
        """
        scaled = self.weights / self.gamma.edge
        for part in self.graph.terminal_edges(scaled):
            part.mul_(self.gamma.edge / self.gamma.terminal)
        return self.graph.only_edges((self._drop() - scaled) / 2)

    def slacks(self) -> Float[Tensor, "batch *layout"]:
        """The slack variables s = d - B p of the edges, in the weights' layout; 0 where no edge exists."""
        return self.edges() - self._drop()

    def terminal_edges(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """The edge variables of `s -> vertex` and `vertex -> t` alone: what a two-way mask needs."""
        source, sink = (
            self.terminals[:, which].view(-1, *[1] * len(self.graph.shape)) for which in range(2)
        )
        to_source, to_sink = self.graph.terminal_edges(self.weights)
        scale = 1 / (2 * self.gamma.terminal)
        return (
            self.graph.only_vertices((source - self.potentials) / 2 - to_source * scale),
            self.graph.only_vertices((self.potentials - sink) / 2 - to_sink * scale),
        )

    def terminal_slack(self) -> Float[Tensor, " batch"]:
        """The slack of the row p_s - p_t - s_st = beta; 0 up to rounding where the program has none."""
        return self.terminals[:, 0] - self.terminals[:, 1] - self.beta

    def _drop(self) -> Tensor:
        return LinearMap.apply(
            self.graph.gradient, self.graph.divergence, self.potentials, self.terminals
        )


class MinCut(nn.Module):
    """Minimum s-t cuts of a pixel grid, relaxed to regularised equality-constrained quadratic programs.

    Args:
        height, width: size of the grid, at least 1 each; any numbers, not only squares or powers of two.
        gamma: the paper's regularisation, > 0. Potentials scale as 1/gamma.
        neighbours: 4, or 8 with the diagonals.
        interior_edges: leave out edges that start at a border pixel, as the published code does (the paper's text has them all).
        pixels: bool `(height, width)`, which pixels are there; None for all. The others have potential 0 and no edge.
        gamma_edge, gamma_terminal, gamma_vertex: separate regularisation of the variables of neighbour edges, of terminal edges
            (and the slack between s and t), and of potentials; each defaults to `gamma`. Potentials are smoothed over a reach of
            `sqrt(gamma_edge / (gamma_terminal + gamma_vertex))` pixels, 0.7 at the paper's single gamma.
        beta: drop from s to t (1 in the paper). It moves the terminals only, never a pixel.
        terminal_slack: whether that drop may give way (paper) or not (published code). It moves the terminals only.
        solver: "auto", or a back end by name; `choice` says which serves and why.

    Call it on weights `(batch, C, height, width)`, >= 0, one channel an edge that leaves a pixel: right, left, down, up,
    s->pixel, pixel->t (C = 6); with 8 neighbours down-right, up-left, down-left, up-right come before the last two (C = 10). It
    returns a `CutSolution`. float32 and float64 are computed as they come, half precisions in float32. A weight that is not
    finite spoils its own cut and no other; under `torch.autograd.detect_anomaly()` it is refused by name. `MinCut.on(graph)` cuts
    any other graph.

    Raises:
        InputError: sizes, gammas, solver or weights that cannot be used.
    Source: Eq. 2, 5, 6 of Pervez et al., Differentiable Mathematical Programming for Object-Centric Representation Learning (2023).
    """

    def __init__(
        self,
        height: int,
        width: int,
        gamma: float = 0.5,
        *,
        neighbours: int = 4,
        interior_edges: bool = False,
        pixels: np.ndarray | Tensor | None = None,
        gamma_edge: float | None = None,
        gamma_terminal: float | None = None,
        gamma_vertex: float | None = None,
        beta: float = 1.0,
        terminal_slack: bool = True,
        solver: str = "auto",
    ) -> None:
        super().__init__()
        gammas = Gamma.of(gamma, gamma_edge, gamma_terminal, gamma_vertex)
        self._set_up(
            Grid(height, width, neighbours, interior_edges, pixels),
            gammas,
            beta,
            terminal_slack,
            solver,
        )

    @classmethod
    def on(
        cls,
        graph: Graph,
        gamma: float = 0.5,
        *,
        gamma_edge: float | None = None,
        gamma_terminal: float | None = None,
        gamma_vertex: float | None = None,
        beta: float = 1.0,
        terminal_slack: bool = True,
        solver: str = "auto",
    ) -> "MinCut":
        """Minimum s-t cuts of any graph, say `MinCut.on(EdgeList(edges))`; weights are in the graph's layout."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._set_up(
            graph,
            Gamma.of(gamma, gamma_edge, gamma_terminal, gamma_vertex),
            beta,
            terminal_slack,
            solver,
        )
        return layer

    def _set_up(
        self, graph: Graph, gamma: Gamma, beta: float, terminal_slack: bool, solver: str
    ) -> None:
        self.graph, self.gamma, self.beta, self.terminal_slack = (
            graph,
            gamma,
            finite("beta", beta),
            terminal_slack,
        )
        self.choice = solvers.choose(graph, solver)
        self._solver = solvers.BACK_ENDS[self.choice.name](graph, gamma)
        # The constant part of the solution: beta pulls s and t apart evenly, so vertices stay where they are.
        self._pull = pull(graph.num_vertices, gamma, beta, terminal_slack)

    def forward(self, weights: Float[Tensor, "batch *layout"]) -> CutSolution:
        weights = self._checked(weights)
        potentials, terminals = LinearMap.apply(self._forward, self._transposed, weights)
        terminals = torch.stack([terminals[:, 0] + self._pull, terminals[:, 1] - self._pull], dim=1)
        return CutSolution(potentials, terminals, weights, self.graph, self.gamma, self.beta)

    def extra_repr(self) -> str:
        edge, terminal, vertex = self.gamma
        return (
            f"{self.graph}, gamma=({edge:g}, {terminal:g}, {vertex:g}), solver={self.choice.name}"
        )

    # The potentials are  p = p_0 - 1/2 S B^T w  with S symmetric. So for a loss l,  dl/dw = -1/2 B S dl/dp : the same solve between
    # the transposed stencils.

    def _forward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_parts(self._solve_weights, weights)

    def _transposed(self, potentials: Tensor, terminals: Tensor) -> Tensor:
        return self._in_parts(self._solve_potentials, potentials, terminals)

    def _solve_weights(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        potentials, terminals = self.graph.divergence(weights)
        return self._solve(potentials.mul_(-0.5), terminals.mul_(-0.5))

    def _solve_potentials(self, potentials: Tensor, terminals: Tensor) -> Tensor:
        potentials, terminals = self._solve(potentials, terminals)
        return self.graph.gradient(potentials.mul_(-0.5), terminals.mul_(-0.5))

    def _solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        potentials, terminals = self._solver.solve(potentials, terminals)
        # Without slack the drop from s to t is fixed; it is an eigenvector of the system (terminals.py), so taking it away is all.
        return potentials, terminals if self.terminal_slack else terminals.mean(
            1, keepdim=True
        ).expand_as(terminals).clone()

    def _in_parts(self, solve: Callable, *inputs: Tensor) -> Any:
        """`solve` of a batch, on a CPU in parts whose temporaries stay in caches and in memory that is already mapped."""
        part = self._solver.PART
        # A program that is traced is to take batches of any size, whose number of parts is not one number.
        if part is None or inputs[0].device.type != "cpu" or torch.compiler.is_compiling():
            return solve(*inputs)
        batch, size = len(inputs[0]), max(1, part // self.graph.num_vertices)
        if batch <= size:
            return solve(*inputs)
        outputs: list[Tensor] = []
        for start in range(0, batch, size):
            found = solve(*(each[start : start + size] for each in inputs))
            found = found if isinstance(found, tuple) else (found,)
            outputs = outputs or [each.new_empty(batch, *each.shape[1:]) for each in found]
            for output, each in zip(outputs, found, strict=True):
                output[start : start + size] = each
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _checked(self, weights: Tensor) -> Tensor:
        if weights.shape[1:] != self.graph.layout:
            raise InputError(
                f"weights have shape {tuple(weights.shape)}; this layer takes (batch, {', '.join(map(str, self.graph.layout))})."
            )
        return floating("weights", weights)
