"""the best runs that MLflow knows, with published figures beside them

A board a set, the best run first. Published figures of the same set stand below, marked, with their source, and without a rank.
A run's name or id is what `cutslots evaluate`, `predict` and `export` take.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutslots.report.leaderboard import Board

BELOW = ("settings", "id")  # stand below a run's name on a terminal
RUN_WIDTH = 36  # room for an id
GAP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, and by what."""
    parser.add_argument(
        "--dataset",
        metavar="SET",
        help="the set that was scored, such as clevrtex_camo; default a board for each",
    )
    parser.add_argument(
        "--metric",
        default="ari_fg",
        help="ari_fg (default), ari, miou, mse, cut_ari_fg, video_ari_fg, ...",
    )
    parser.add_argument(
        "--split",
        default="val",
        help="val (default): the best validation scores of training; another one: what `cutslots evaluate` logged of it",
    )
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep")
    parser.add_argument("--model", help="only runs of this model, such as slot_attention")
    parser.add_argument("--limit", type=int, default=20, help="runs a board, at most (default 20)")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(chosen: argparse.Namespace) -> None:
    """Print the boards."""
    from cutslots.report.leaderboard import leaderboards

    boards = leaderboards(
        chosen.metric,
        dataset=chosen.dataset,
        split=chosen.split,
        sweep=chosen.sweep,
        model=chosen.model,
        limit=chosen.limit,
    )
    if chosen.json:
        print(json.dumps([asdict(board) for board in boards], indent=2))
        return
    for number, board in enumerate(boards):
        if number:
            print()
        _drawn(board) if sys.stdout.isatty() else _plain(board)


def _title(board: "Board") -> str:
    from cutslots.metrics.registry import higher_is_better

    order = "smallest" if not higher_is_better(board.metric) else "largest"
    measured = "best of training" if board.split == "val" else "as evaluated"
    count = f"{board.num_runs} run{'s' * (board.num_runs != 1)}"
    return f"{board.dataset} {board.split} ({measured}), {order} {board.metric} first, {count}"


def _plain(board: "Board") -> None:
    from cutslots.report.leaderboard import cells, notes

    header, lines = cells(board)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    print(_title(board))
    for line in [header, *lines]:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    for note in notes(board):
        print(note)


def _drawn(board: "Board") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cutslots.report.leaderboard import cells, notes

    console = Console(highlight=False)
    header, lines = cells(board)
    shown, left_out = _fitting(header, lines, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for title in shown:
        table.add_column(
            title,
            no_wrap=True,
            justify="left" if title in ("model", "trained on", "sweep") else "right",
        )
    table.add_column("run, settings, id", overflow="fold")
    for line in lines:
        cell = dict(zip(header, (escape(text) for text in line), strict=True))
        below = [f"[dim]{cell[title]}[/dim]" for title in BELOW if cell.get(title)]
        style = "dim" if cell["rank"] == "-" else "bold" if cell["rank"] == "1" else None
        table.add_row(
            *(cell[title] for title in shown), "\n".join([cell["run"], *below]), style=style
        )
    console.print(_title(board), style="bold", markup=False)
    console.print(table)
    for note in [
        *(
            [f"For want of width without {', '.join(left_out)}: --json has all."]
            if left_out
            else []
        ),
        *notes(board),
    ]:
        console.print(note, markup=False)


def _fitting(header: list[str], lines: list[list[str]], width: int) -> tuple[list[str], list[str]]:
    """The columns besides the last that leave it room, and those that do not."""
    columns = {cells[0]: cells for cells in zip(header, *lines, strict=True)}
    widths = {
        title: GAP + max(map(len, cells))
        for title, cells in columns.items()
        if title not in ("run", *BELOW)
    }
    left_out: list[str] = []
    # The score that orders the board is the second column, and stays.
    for title in (
        "sweep",
        "time",
        *reversed(header[2 : header.index("model")]),
        "seed",
        "step",
        "model",
    ):
        if sum(widths.values()) + RUN_WIDTH > width and title in widths:
            del widths[title]
            left_out.append(title)
    return list(widths), left_out
