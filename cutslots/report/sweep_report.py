"""The report of a sweep: a folder that a person opens, and other programs read, drawn from the tracking store alone."""

from collections.abc import Callable
from pathlib import Path

from cutslots.errors import InputError
from cutslots.files import write_text
from cutslots.report.importance import Analysis
from cutslots.report.page import html
from cutslots.report.plots import curves_figure, scenes_figure, slices_figure
from cutslots.report.sweep import SweepRuns, markdown, runs_csv, sweep_runs

PAGE, TABLE, RUNS = "index.html", "table.md", "runs.csv"


def write_report(
    name: str, out: Path, analyse: Callable[[SweepRuns], Analysis] | None = None
) -> Path:
    """Write the report of a sweep to a folder of its name; from the same runs it is the same, byte by byte.

    Args:
        out: the folder of reports.
        analyse: tells what came of the settings; without it the report says nothing of that.

    Returns: the sweep's folder: `index.html`, `table.md`, `runs.csv`, and the pictures that the runs have something for.

    Raises:
        InputError: the store cannot be reached, has no such sweep, or none of its trials; or the folder holds something else.
    """
    sweep = sweep_runs(name)
    folder = _folder(name, out)
    found = analyse(sweep) if analyse else None
    captions = {
        "figure.png": scenes_figure(sweep, folder / "figure.png"),
        "curves.png": curves_figure(sweep, folder / "curves.png"),
        "slices.png": slices_figure(sweep, found.slices if found else [], folder / "slices.png"),
    }
    for file in (file for file, caption in captions.items() if caption is None):
        (folder / file).unlink(missing_ok=True)  # of an earlier report, which had something for it
    pictures = {file: caption for file, caption in captions.items() if caption is not None}
    write_text(folder / TABLE, markdown(sweep, found))
    write_text(folder / RUNS, runs_csv(sweep))
    write_text(folder / PAGE, html(sweep, pictures, found))
    return folder


def _folder(name: str, out: Path) -> Path:
    """The sweep's folder, which is there then, and is a report's."""
    if name in (".", "..") or "/" in name:
        raise InputError(
            f"sweep {name!r} has a name that no folder can have; tag its runs with another one."
        )
    folder = out / name
    if (folder / TABLE).exists() and f"# Sweep {name}\n" not in (folder / TABLE).read_text(
        encoding="utf-8"
    ):
        raise InputError(
            f"{folder / TABLE} is of something else than a report of sweep {name!r}. Give another folder with --out."
        )
    if out.is_file() or folder.is_file():
        raise InputError(
            f"--out {out}: {folder if folder.is_file() else out} is a file. Give a folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder
