"""Reports of sweeps."""

from pathlib import Path

import click

from cutslots.errors import InputError


@click.command
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...")
@click.option("--out", type=click.Path(path_type=Path), default="results", help="output folder")
@click.option(
    "--compare", metavar="SETTING", help="also compare the sweeps over this setting, in OUT"
)
def command(sweeps: tuple[str, ...], out: Path, compare: str | None) -> None:
    """Write tables, figures and a page for each sweep, from MLflow.

    Writes OUT/SWEEP/ for each sweep (default: all): index.html, which opens from disk, table.md,
    runs.csv and figures. Means are over runs that differ only in their seed. The same runs give
    the same files.
    """
    from cutslots.report.pages import write_report
    from cutslots.report.plots import write_comparison
    from cutslots.report.scored_run import sweep_names

    names = list(dict.fromkeys(sweeps or sweep_names()))
    # First because it refuses bad input: the reports of many runs take a while.
    compared = write_comparison(names, compare, out) if compare else []
    for name in names:
        try:
            click.echo(write_report(name, out))
        except InputError as error:
            if sweeps:
                raise
            click.echo(f"skipped: {error}", err=True)
    for path in compared:
        click.echo(path)
