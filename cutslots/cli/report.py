"""tables, figures and a page of sweeps, from MLflow

Writes OUT/SWEEP/ for each sweep: index.html, which opens from disk, table.md, runs.csv and pictures. Means are over runs that
differ in the seed only. Nothing but the tracking store is read, and the same runs give the same files.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which sweeps, and where to."""
    parser.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="default: all sweeps of the tracking store"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of the reports (default results)",
    )
    parser.add_argument(
        "--compare",
        metavar="SETTING",
        help="also OUT/compare-SETTING.md and .png: the sweeps beside each other over this setting",
    )


def run(chosen: argparse.Namespace) -> None:
    """Write the reports."""
    from cutslots.errors import InputError
    from cutslots.report.pages import write_report
    from cutslots.report.plots import write_comparison
    from cutslots.report.sweep import sweep_names

    names = list(dict.fromkeys(chosen.sweeps or sweep_names()))
    # First, for what it refuses: reports of many runs take a while.
    compared = write_comparison(names, chosen.compare, chosen.out) if chosen.compare else []
    for name in names:
        try:
            print(write_report(name, chosen.out), flush=True)
        except InputError as error:
            if chosen.sweeps:
                raise
            print(f"left out: {error}", file=sys.stderr)
    for path in compared:
        print(path)
