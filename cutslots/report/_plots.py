"""What all figures of lines and dots have in common."""

from pathlib import Path
from typing import Any

from cutslots.files import atomic

# Colours that colour-blind readers tell apart, on white and in print (Okabe and Ito, Color universal design, 2008).
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)


def pyplot() -> Any:
    """matplotlib's pyplot, which draws to files and needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def tidy(axis: Any) -> None:
    """A pale grid behind what is drawn, and no frame above and to the right."""
    axis.grid(True, which="major", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG and close the figure; without the writer's version and the like, so that the same figure gives the same bytes."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot().close(figure)
