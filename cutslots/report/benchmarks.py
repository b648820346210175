"""Figures of benchmarks, drawn from the JSON that they write."""

from pathlib import Path
from typing import Any

from cutslots.report._plots import BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, pyplot, save, tidy

# A colour and a marker per method, in their order; as their numbers differ, every pair is unique.
COLOURS = (ORANGE, BLUE, GREEN, PURPLE, SKY, YELLOW, "#000000")
MARKERS = "os^DvPX<>h*"


def solvers_figure(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of what `cutslots bench solvers` measured: a column a batch, time of a step above, memory below, against size.

    Args:
        figures: what the benchmark returned, or its JSON.
    """
    cells = [cell for cell in figures["cells"] if cell["status"] == "measured"]
    sizes = sorted({cell["size"] for cell in figures["cells"]})
    # A batch measured at one size alone would be a column of dots.
    batches = sorted(
        batch
        for batch in {cell["batch"] for cell in cells}
        if len({c["size"] for c in cells if c["batch"] == batch}) > 1
    ) or sorted({cell["batch"] for cell in cells})
    figure, axes = pyplot().subplots(
        2,
        len(batches),
        figsize=(1 + 4 * len(batches), 7.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, batch in enumerate(batches):
        for row, (key, unit) in enumerate((("seconds", 1e-3), ("memory_bytes", 1e6))):
            axis = axes[row, column]
            for index, (name, method) in enumerate(figures["methods"].items()):
                points = sorted(
                    (c["size"], c[key] / unit)
                    for c in cells
                    if c["method"] == name and c["batch"] == batch and c[key] > 0
                )
                label = name if method.get("exact", True) else f"{name} (another problem, forward)"
                axis.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="--" if method.get("peer") else "-",
                    label=label,
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(sizes, [str(size) for size in sizes])
            tidy(axis)
        axes[0, column].set_title(f"{batch} cut{'s' * (batch > 1)}")
        axes[1, column].set_xlabel("side of the grid, pixels")
    axes[0, 0].set_ylabel("forward and backward, ms")
    axes[1, 0].set_ylabel("memory, MB")
    about = figures["machine"]
    figure.suptitle(
        f"Min-cut programs of a full grid: {about['gpu'] or about['processor']}, {about['threads']} threads"
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    save(figure, path)
