"""Hyperparameter sweeps on Ray: `Sweep`, its ranges, and `main` for the files in sweeps/."""

from collections.abc import Sequence

from cutslots.sweep.spec import ASHA as ASHA
from cutslots.sweep.spec import Baseline as Baseline
from cutslots.sweep.spec import Sweep as Sweep
from cutslots.sweep.spec import choice as choice
from cutslots.sweep.spec import loguniform as loguniform
from cutslots.sweep.spec import randint as randint
from cutslots.sweep.spec import uniform as uniform


def main(*sweeps: Sweep, arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps of a file with its command line, then exit with their status."""
    from cutslots.sweep.cli import main as command_line  # imports MLflow and Optuna: seconds

    raise SystemExit(command_line(*sweeps, arguments=arguments))
