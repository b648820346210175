"""deliver to MLflow what a run logged while the tracking store was away"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's folder or name")


def run(chosen: argparse.Namespace) -> int:
    """Deliver; status 1 when something is left."""
    from cutslots.runs.lookup import runs_dir
    from cutslots.tracking import sync
    from cutslots.tracking.journal import FILE

    folder = Path(chosen.run_dir)
    left = sync(folder if (folder / FILE).exists() else runs_dir() / chosen.run_dir)
    print(
        "everything is in the tracking store"
        if not left
        else f"{left} events are still undelivered"
    )
    return 1 if left else 0
