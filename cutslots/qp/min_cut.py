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
from cutslots.qp._util import LinearMap, finite, floating
from cutslots.qp.graph import Graph
from cutslots.qp.grid import Grid
from cutslots.qp.program import Gamma
from cutslots.qp.solvers._terminals import pull


@dataclass(frozen=True)
class CutSolution:
    """The solution of a batch of min-cut programs.

    Attributes:
        potentials: `(batch, H, W)` on a grid: a real number per vertex, larger on the source's
            side, 0 for a missing pixel. A softmax over several cuts, or a sigmoid of the distance
            to the terminals, turns them into masks.
        terminals: the potentials of s and t.
    """

    potentials: Float[Tensor, "batch *shape"]
    terminals: Float[Tensor, "batch 2"]
    weights: Float[Tensor, "batch *layout"]
    graph: Graph
    gamma: Gamma
    beta: float

    def edges(self) -> Float[Tensor, "batch *layout"]:
        """The edge variables d (how far each edge is cut), in the layout; 0 where no edge exists.

        Source: the paper's Eq. 2 with the slack eliminated, d = (B p) / 2 - w / (2 gamma).
        """
        scaled = self.weights / self.gamma.edge
        for part in self.graph.terminal_edges(scaled):
            part.mul_(self.gamma.edge / self.gamma.terminal)
        return self.graph.only_edges((self._drop() - scaled) / 2)

    def slacks(self) -> Float[Tensor, "batch *layout"]:
        """The slack variables s = d - B p of the edges, in the layout; 0 where no edge exists."""
        return self.edges() - self._drop()

    def terminal_edges(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """The edge variables of s -> vertex and vertex -> t, which define a two-way mask."""
        axes = [1] * len(self.graph.shape)
        source, sink = (self.terminals[:, i].view(-1, *axes) for i in range(2))
        to_source, to_sink = self.graph.terminal_edges(self.weights)
        scale = 1 / (2 * self.gamma.terminal)
        return (
            self.graph.only_vertices((source - self.potentials) / 2 - to_source * scale),
            self.graph.only_vertices((self.potentials - sink) / 2 - to_sink * scale),
        )

    def terminal_slack(self) -> Float[Tensor, " batch"]:
        """The slack of the row p_s - p_t - s_st = beta; 0 up to rounding without this slack."""
        return self.terminals[:, 0] - self.terminals[:, 1] - self.beta

    def _drop(self) -> Tensor:
        maps = self.graph.gradient, self.graph.divergence
        return LinearMap.apply(*maps, self.potentials, self.terminals)


class MinCut(nn.Module):
    """Minimum s-t cuts of a pixel grid, relaxed to equality-constrained quadratic programs.

    Args:
        height, width: size of the grid, at least 1 each.
        gamma: the paper's regularisation, > 0. Potentials scale as 1/gamma.
        neighbours: 4, or 8 with the diagonals.
        interior_edges: leave out edges that start at a border pixel, as in the published code.
        pixels: bool `(height, width)`, the existing pixels; None for all. The others have
            potential 0 and no edges.
        gamma_edge, gamma_terminal, gamma_vertex: separate regularisation of the variables of
            neighbour edges, of terminal edges (and the slack between s and t), and of potentials;
            None: `gamma`. Potentials are smoothed over a reach of
            `sqrt(gamma_edge / (gamma_terminal + gamma_vertex))` pixels, 0.7 at a single gamma.
        beta: drop from s to t (1 in the paper); it moves the terminals only, never a pixel.
        terminal_slack: whether that drop has a slack (paper) or not (published code).
        solver: "auto", or a back end of `cutslots.qp.solvers`; `choice` says which one and why.

    Call it on weights `(batch, C, height, width)`, >= 0, a channel per edge that leaves a pixel:
    right, left, down, up, s->pixel, pixel->t (C = 6); 8 neighbours have down-right, up-left,
    down-left, up-right before the last two (C = 10). It returns a `CutSolution`. Half precisions
    are computed in float32. A weight that is not finite spoils only its own cut; under
    `torch.autograd.detect_anomaly()` it is an error. `MinCut.on(graph)` cuts any other graph.

    Raises:
        InputError: invalid sizes, gammas, solver or weights.
    Source: Eq. 2, 5, 6 of Pervez et al., Differentiable Mathematical Programming for Object-Centric
    Representation Learning (2023).
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
        grid = Grid(height, width, neighbours, interior_edges, pixels)
        self._set_up(grid, gammas, beta, terminal_slack, solver)

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
        """Cuts of any graph, as `MinCut.on(EdgeList(edges))`; weights are in its layout."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        gammas = Gamma.of(gamma, gamma_edge, gamma_terminal, gamma_vertex)
        layer._set_up(graph, gammas, beta, terminal_slack, solver)
        return layer

    def _set_up(
        self, graph: Graph, gamma: Gamma, beta: float, terminal_slack: bool, solver: str
    ) -> None:
        self.graph, self.gamma, self.beta = graph, gamma, finite("beta", beta)
        self.terminal_slack = terminal_slack
        self.choice = solvers.choose(graph, solver)
        self._solver = solvers.BACK_ENDS[self.choice.name](graph, gamma)
        # The constant part of the solution: beta pulls s and t apart evenly and no vertex moves.
        self._pull = pull(graph.num_vertices, gamma, beta, terminal_slack)

    def forward(self, weights: Float[Tensor, "batch *layout"]) -> CutSolution:
        if weights.shape[1:] != self.graph.layout:
            layout = ", ".join(map(str, self.graph.layout))
            got = tuple(weights.shape)
            raise InputError(f"weights must have shape (batch, {layout}), got {got}.")
        weights = floating("weights", weights)
        potentials, terminals = LinearMap.apply(self._forward, self._transposed, weights)
        terminals = torch.stack([terminals[:, 0] + self._pull, terminals[:, 1] - self._pull], dim=1)
        return CutSolution(potentials, terminals, weights, self.graph, self.gamma, self.beta)

    def extra_repr(self) -> str:
        gammas = ", ".join(f"{gamma:g}" for gamma in self.gamma)
        return f"{self.graph}, gamma=({gammas}), solver={self.choice.name}"

    # The potentials are  p = p_0 - 1/2 S B^T w  with S symmetric, so a loss l has
    # dl/dw = -1/2 B S dl/dp: the same solve between the transposed stencils.

    def _forward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        def solve(weights: Tensor) -> tuple[Tensor, Tensor]:
            potentials, terminals = self.graph.divergence(weights)
            return self._solve(potentials.mul_(-0.5), terminals.mul_(-0.5))

        return self._in_chunks(solve, weights)

    def _transposed(self, potentials: Tensor, terminals: Tensor) -> Tensor:
        def solve(potentials: Tensor, terminals: Tensor) -> Tensor:
            potentials, terminals = self._solve(potentials, terminals)
            return self.graph.gradient(potentials.mul_(-0.5), terminals.mul_(-0.5))

        return self._in_chunks(solve, potentials, terminals)

    def _solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        potentials, terminals = self._solver.solve(potentials, terminals)
        if not self.terminal_slack:
            # The drop from s to t is then fixed. It is an eigenvector of the system
            # (solvers/_terminals.py), so it is enough to remove it.
            terminals = terminals.mean(1, keepdim=True).expand_as(terminals).clone()
        return potentials, terminals

    def _in_chunks(self, solve: Callable, *inputs: Tensor) -> Any:
        """`solve` of a batch; on a CPU in chunks whose temporaries fit in caches."""
        chunk, batch = self._solver.CPU_CHUNK, len(inputs[0])
        # The number of chunks depends on the batch, which a traced program leaves open.
        if chunk is None or inputs[0].device.type != "cpu" or torch.compiler.is_compiling():
            return solve(*inputs)
        size = max(1, chunk // self.graph.num_vertices)
        if batch <= size:
            return solve(*inputs)
        outputs: list[Tensor] = []
        for start in range(0, batch, size):
            part = solve(*(values[start : start + size] for values in inputs))
            part = part if isinstance(part, tuple) else (part,)
            outputs = outputs or [values.new_empty(batch, *values.shape[1:]) for values in part]
            for output, values in zip(outputs, part, strict=True):
                output[start : start + size] = values
        return tuple(outputs) if len(outputs) > 1 else outputs[0]
