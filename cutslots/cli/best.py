"""The best runs in MLflow."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cutslots.report.leaderboard import Board

# Columns that are dropped first when the terminal is narrow.
DISPENSABLE = ("sweep", "time", "seed", "step", "model")


@click.command
@click.option("--dataset", help="scored dataset, such as clevrtex_camo (default: one board each)")
@click.option("--metric", default="ari_fg", show_default=True, help="ari_fg, ari, miou, mse, ...")
@click.option(
    "--split",
    default="val",
    show_default=True,
    help="val: best validation scores of training; other splits: scores of `cutslots evaluate`",
)
@click.option("--sweep", metavar="NAME", help="only runs of this sweep")
@click.option("--model", help="only runs of this model, such as slot_attention")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="runs per board"
)
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
    from rich.text import Text

    from cutslots.metrics.registry import higher_is_better
    from cutslots.report.leaderboard import cells, notes

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 10_000)
    header, lines = cells(board)
    below = [title for title in ("settings", "id") if terminal and title in header]
    columns = {column[0]: column for column in zip(header, *lines, strict=True)}
    widths = {
        title: 2 + max(map(len, columns[title]))
        for title in header
        if title not in below and title != "run"
    }
    dropped = []
    if terminal:
        for title in DISPENSABLE:
            if title in widths and sum(widths.values()) + 36 > console.width:
                dropped.append(title)
                del widths[title]
    shown = [title for title in header if title in widths]
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    left = ("model", "trained on", "sweep", "settings", "id")
    for title in shown:
        table.add_column(title, no_wrap=True, justify="left" if title in left else "right")
    table.add_column(", ".join(["run", *below]), overflow="fold")
    for line in lines:
        cell = dict(zip(header, line, strict=True))
        run = Text("\n").join(Text(cell[t]) for t in ("run", *below) if cell[t])
        style = {"-": "dim", "1": "bold"}.get(cell["rank"])
        table.add_row(*(Text(cell[title]) for title in shown), run, style=style)
    order = "largest" if higher_is_better(board.metric) else "smallest"
    scored = "best of training" if board.split == "val" else "as evaluated"
    runs = f"{board.num_runs} run{'s' * (board.num_runs != 1)}"
    title = f"{board.dataset} {board.split} ({scored}), {order} {board.metric} first, {runs}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)
    if dropped:
        columns_dropped = ", ".join(dropped)
        console.print(f"Columns hidden to fit the terminal: {columns_dropped}. Use --json for all.")
    for note in notes(board):
        console.print(note, markup=False, soft_wrap=True)
