"""Verify a prepared dataset."""

import click

from cutslots.cli.common import dataset_path, summary


@click.command
@click.argument("dataset", metavar="DIR")
def command(dataset: str) -> int:
    """Verify a prepared dataset: files, checksums, schema, masks.

    DIR is a prepared folder, its name in CUTSLOTS_HOME/data, or a URI. The exit status is 1 if
    there is a problem.
    """
    from cutslots.data import Manifest, check, local

    path = dataset_path(dataset)
    problems = check(path)
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    if problems:
        click.echo(
            "Run the same `cutslots prepare` with --overwrite to write the dataset again.", err=True
        )
        return 1
    click.echo(f"{path}: complete and undamaged; {summary(Manifest.load(local(path)))}")
    return 0
