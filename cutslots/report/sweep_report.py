"""The report of a sweep: a folder that a person opens, and other programs read, drawn from the tracking store alone."""

from pathlib import Path

from cutslots.errors import InputError
from cutslots.files import write_text
from cutslots.report.sweep_runs import sweep_runs
from cutslots.report.sweep_tables import markdown, runs_csv

TABLE, RUNS = "table.md", "runs.csv"


def write_report(name: str, out: Path) -> Path:
    """Write the report of a sweep to a folder of its name; from the same runs it is the same, byte by byte.

    Args:
        out: the folder of reports.

    Returns: the sweep's folder.

    Raises:
        InputError: the store cannot be reached, has no such sweep, or none of its trials.
    """
    sweep = sweep_runs(name)
    folder = out / name
    if name in (".", "..") or "/" in name:
        raise InputError(f"sweep {name!r} has a name that no folder can have; tag its runs with another one.")
    write_text(folder / TABLE, markdown(sweep))
    write_text(folder / RUNS, runs_csv(sweep))
    return folder
