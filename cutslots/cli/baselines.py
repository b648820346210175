"""Published results."""

import json
from dataclasses import asdict

import click

from cutslots.errors import InputError, nearest


@click.group
def command() -> None:
    """List published results, or log them to MLflow beside our runs."""


@command.command("import")
@click.option("--experiment", default="published", help="MLflow experiment")
def import_(experiment: str) -> None:
    """Log them to MLflow, one finished run per method and training dataset.

    The runs are tagged published=true and use the metric names of `cutslots evaluate`, such as
    clevrtex_camo/test/ari_fg. Importing again changes nothing.
    """
    from cutslots.report.published import records
    from cutslots.tracking import import_records

    if not experiment.strip():
        raise InputError("--experiment must be a name, got an empty one. Leave it out or name one.")
    done = import_records(experiment, records())
    click.echo(
        f"published results in experiment {experiment!r}: {done['added']} runs added, "
        f"{done['changed']} changed, {done['unchanged']} unchanged. "
        "Compare: cutslots best, cutslots ui"
    )


@command.command("list")
@click.option("--dataset", help="only results on this dataset, such as clevrtex_camo")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_(dataset: str | None, as_json: bool) -> None:
    """Print them with their sources and protocols."""
    from cutslots.report.published import ROWS, rows

    names = list(dict.fromkeys(row.dataset for row in ROWS))
    if dataset not in (None, *names):
        raise InputError(f"no published results on --dataset {dataset}. {nearest(dataset, names)}")
    selected = rows(dataset)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in selected], indent=2))
        return
    for name in dict.fromkeys(row.dataset for row in selected):
        click.echo(name)
        on_dataset = [row for row in selected if row.dataset == name]
        width = max(len(row.method) for row in on_dataset)
        for row in on_dataset:
            scores = "  ".join(
                f"{score} {value:g}" + (f" +- {row.spread[score]:g}" if score in row.spread else "")
                for score, value in row.scores.items()
            )
            click.echo(f"  {row.method:<{width}}  {scores}  [{row.source}; {row.protocol}]")
