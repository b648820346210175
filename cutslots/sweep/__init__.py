"""Sweeps on Ray: what a file in sweeps/ imports.

from cutslots.sweep import Sweep, loguniform, main
"""

from collections.abc import Sequence

from cutslots.sweep.spec import Halving as Halving
from cutslots.sweep.spec import Setting as Setting
from cutslots.sweep.spec import Sweep as Sweep
from cutslots.sweep.spec import choices as choices
from cutslots.sweep.spec import integers as integers
from cutslots.sweep.spec import log_uniform as log_uniform
from cutslots.sweep.spec import uniform as uniform


def main(*sweeps: Sweep, arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps of a file as its command line asks, then exit with their status."""
    from cutslots.sweep.cli import main as command  # Ray and MLflow take seconds to import

    raise SystemExit(command(*sweeps, arguments=arguments))
