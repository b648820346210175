"""Back ends of the min-cut program: one per file, all the same symmetric linear map.

With edges and slacks eliminated the program is one system in the potentials,

    M p = gamma_t beta q - B^T w / 2 ,    M = B^T G_d B / 2 + gamma_v I + gamma_t q q^T

with q = e_s - e_t, and a back end applies S = M^-1. S is symmetric, so the backward pass is the
same call. A new back end is one file here and one line in `BACK_ENDS`; tests/qp/test_solvers.py
tests it on every graph that it accepts.
"""

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from cutslots.errors import InputError, nearest
from cutslots.qp.graph import Graph
from cutslots.qp.program import Gamma
from cutslots.qp.solvers.dct import Dct as Dct
from cutslots.qp.solvers.dense import Dense as Dense
from cutslots.qp.solvers.kkt import Kkt as Kkt
from cutslots.qp.solvers.vertex import Vertex as Vertex


@runtime_checkable
class Solver(Protocol):
    """Built once for a graph and its gammas, applied to every batch."""

    CPU_CHUNK: ClassVar[int | None]  # potentials to solve at once on a CPU; None: all

    def __init__(self, graph: Graph, gamma: Gamma) -> None: ...

    @staticmethod
    def refuses(graph: Graph) -> str | None:
        """Why this back end cannot solve a graph, and which can; None if it can."""
        ...

    def solve(self, potentials: Tensor, terminals: Tensor) -> tuple[Tensor, Tensor]:
        """S of right-hand sides `(batch, *graph.shape)` and `(batch, 2)`, in the same shapes."""
        ...


BACK_ENDS: dict[str, type[Solver]] = {"dct": Dct, "vertex": Vertex, "kkt": Kkt, "dense": Dense}


class Choice(NamedTuple):
    """The back end of a program, and the reason for it."""

    name: str
    why: str


def choose(graph: Graph, solver: str = "auto") -> Choice:
    """The back end that `solver` selects for a graph.

    Raises:
        InputError: an unknown name, or a graph that the named back end cannot solve.
    """
    if solver == "auto":
        if Dct.refuses(graph) is None:
            return Choice("dct", "a full grid of 4 neighbours has a closed-form solution")
        return Choice("vertex", f"{graph} has no closed form; its vertex matrix is factored once")
    if solver not in BACK_ENDS:
        raise InputError(f"unknown solver {solver!r}. {nearest(solver, ['auto', *BACK_ENDS])}")
    refusal = BACK_ENDS[solver].refuses(graph)
    if refusal:
        raise InputError(refusal)
    return Choice(solver, "selected by name")
