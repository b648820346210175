"""The best runs in MLflow."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cutslots.cli.common import POSITIVE

if TYPE_CHECKING:
    from cutslots.report.leaderboard import Board

# Columns that are dropped first when the terminal is narrow.
DISPENSABLE = ("sweep", "time", "seed", "step", "model")


@click.command
@click.option("--dataset", help="scored dataset, such as clevrtex_camo (default: one board each)")
@click.option("--metric", default="ari_fg", help="ari_fg, ari, miou, mse, ...")
@click.option(
    "--split",
    default="val",
    help="val: best validation scores of training; other splits: scores of `cutslots evaluate`",
)
@click.option("--sweep", metavar="NAME", help="only runs of this sweep")
@click.option("--model", help="only runs of this model, such as slot_attention")
@click.option("--limit", type=POSITIVE, default=20, help="runs per board")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def command(
    dataset: str | None,
    metric: str,
    split: str,
    sweep: str | None,
    model: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the best runs in MLflow beside published results.

    One board per dataset, best run first. Published results on the same dataset are listed below
    with their source and without a rank. `cutslots evaluate`, `predict` and `export` take the name
    or id of a run.
    """
    from cutslots.report.leaderboard import leaderboards

    boards = leaderboards(
        metric, dataset=dataset, split=split, sweep=sweep, model=model, limit=limit
    )
    if as_json:
        click.echo(json.dumps([asdict(board) for board in boards], indent=2))
    else:
        for board in boards:
            _print(board)


def _print(board: "Board") -> None:
    """Print a board; on a terminal the settings and id are below the name of a run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cutslots.metrics.registry import higher_is_better
    from cutslots.report.leaderboard import cells, notes

    terminal = sys.stdout.isatty()
    width = None if terminal else 10_000
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    header, lines = cells(board)
    last = ["run", *(title for title in ("settings", "id") if terminal and title in header)]
    columns = {title: column for title, *column in zip(header, *lines, strict=True)}
    shown = [title for title in header if title not in last]
    for title in DISPENSABLE:
        used = sum(2 + max(map(len, [name, *columns[name]])) for name in shown)
        if title in shown and used + 36 > console.width:
            shown.remove(title)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    left = ("model", "trained on", "sweep", "settings", "id")
    for title in shown:
        table.add_column(title, no_wrap=True, justify="left" if title in left else "right")
    table.add_column(", ".join(last), overflow="fold")
    for line in lines:
        row = dict(zip(header, line, strict=True))
        run = "\n".join(row[title] for title in last if row[title])
        style = {"-": "dim", "1": "bold"}.get(row["rank"])
        table.add_row(*(row[title] for title in shown), run, style=style)
    order = "largest" if higher_is_better(board.metric) else "smallest"
    scored = "best of training" if board.split == "val" else "as evaluated"
    runs = f"{board.num_runs} run{'s' * (board.num_runs != 1)}"
    title = f"{board.dataset} {board.split} ({scored}), {order} {board.metric} first, {runs}"
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    hidden = [title for title in header if title not in (*last, *shown)]
    if hidden:
        console.print(f"Columns hidden to fit: {', '.join(hidden)}. Use --json for all.")
    for note in notes(board):
        console.print(note, soft_wrap=True)
