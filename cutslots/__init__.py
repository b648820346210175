"""cutslots: object-centric learning by differentiable minimum s-t cuts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutslots.qp import CutSolution as CutSolution
    from cutslots.qp import MinCut as MinCut

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the layer on first use: torch takes seconds that `cutslots --help` should not."""
    if name not in ("CutSolution", "MinCut"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cutslots import qp

    return getattr(qp, name)


def __dir__() -> list[str]:
    return [*globals(), "CutSolution", "MinCut"]
