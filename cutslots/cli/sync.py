"""Deliver what MLflow is missing."""

from pathlib import Path

import click


@click.command
@click.argument("run", metavar="RUN")
def command(run: str) -> int:
    """Send MLflow what a run logged while the tracking store was unreachable.

    RUN is the run's folder or name. The exit status is 1 if events are left.
    """
    from cutslots.runs.lookup import runs_dir
    from cutslots.tracking import sync
    from cutslots.tracking.journal import FILE

    folder = Path(run)
    left = sync(folder if (folder / FILE).exists() else runs_dir() / run)
    click.echo(
        f"{left} events could not be delivered" if left else "the tracking store is up to date"
    )
    return int(left > 0)
