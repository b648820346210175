"""published figures: list them, or log them to MLflow beside our own runs

`import` makes one finished run a method and training set, tagged published=true, with its figures under the names that
`cutslots evaluate` logs ours by, such as clevrtex_camo/test/ari_fg: MLflow's comparison then has both in one line. Importing
again changes nothing.
"""

import argparse
import json
from dataclasses import asdict

from cutslots.errors import InputError, nearest

EXPERIMENT = "published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of the two."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    importing = what.add_parser(
        "import",
        help="log them to MLflow as runs tagged published=true; what is there stays as it is",
    )
    importing.add_argument(
        "--experiment", default=EXPERIMENT, help=f"the MLflow experiment (default {EXPERIMENT})"
    )
    listing = what.add_parser("list", help="print them with their sources and protocols")
    listing.add_argument("--dataset", help="of this set only, such as clevrtex_camo")
    listing.add_argument("--json", action="store_true", help="print them as JSON")


def run(chosen: argparse.Namespace) -> None:
    """Print what was done, or the rows."""
    if chosen.what == "import":
        _import(chosen.experiment)
    else:
        _list(chosen.dataset, chosen.json)


def _import(experiment: str) -> None:
    from cutslots.report.published import records
    from cutslots.tracking import import_records

    if not experiment.strip():
        raise InputError("--experiment is empty; give a name, or leave it out.")
    done = import_records(experiment, records())
    print(
        f"published figures in experiment {experiment!r}: {done.made} runs made, {done.changed} changed, "
        f"{done.unchanged} there already. Beside ours: cutslots ui, cutslots best"
    )


def _list(dataset: str | None, as_json: bool) -> None:
    from cutslots.report.published import ROWS, rows

    known = list(dict.fromkeys(row.dataset for row in ROWS))
    if dataset not in (None, *known):
        raise InputError(
            f"--dataset {dataset}: nothing published is known of it. {nearest(dataset, known)}"
        )
    found = rows(dataset)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return
    for name in dict.fromkeys(row.dataset for row in found):
        print(name)
        of_set = [row for row in found if row.dataset == name]
        width = max(len(row.method) for row in of_set)
        for row in of_set:
            figures = "  ".join(
                _figure(score, value, row.spread.get(score)) for score, value in row.scores.items()
            )
            print(f"  {row.method:<{width}}  {figures}  [{row.source}; {row.protocol}]")


def _figure(score: str, value: float, spread: float | None) -> str:
    return f"{score} {value:g}" + (f" +- {spread:g}" if spread is not None else "")
