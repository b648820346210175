"""The live table of a sweep."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cutslots.launch._format import Labels, about, clock, one_line, score, short, squeeze
from cutslots.launch._snapshot import ENDED, Reading, Row, Snapshot

ROOMY = 120  # columns from which numbers and headings are written out
GAP, VALUE, BAR, LABEL = (
    2,
    6,
    6,
    16,
)  # characters between columns, of a score, of the smallest bar, of the narrowest label
ALWAYS = 4  # of a running trial's details those that labels do not drive away: bar, step, left, images a second
STYLES = {
    "running": "cyan",
    "waiting": "dim",
    "finished": "dim",
    "pruned": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}


class Column(NamedTuple):
    """A column, and what a trial has in it."""

    head: str
    width: int
    cell: Callable[[Row], RenderableType]
    right: bool = True


class Picture:
    """A snapshot drawn into the terminal's width, and never taller than the terminal less one line."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, console.height - 1
        head = [
            self._title(),
            self._counts(),
            self._best(width),
            _text("   ".join(self.snapshot.machine), "dim"),
        ]
        yield from head[:height]
        yield from Trials(self.snapshot, width).sections(height - len(head))

    def _title(self) -> RenderableType:
        left = self.snapshot.left()
        remaining = "" if left is None else f"about {about(left)} left"
        return _apart(
            _text(self.snapshot.title, "bold"),
            Text.assemble((f"{clock(self.snapshot.elapsed)}   ", "dim"), (remaining, "bold")),
        )

    def _counts(self) -> RenderableType:
        counts, total = self.snapshot.counts, self.snapshot.num_trials
        words = [(f"{counts['finished']} of {total} done", "green")]
        words += [
            (f"   {counts[state]} {state}", STYLES[state])
            for state in ("running", "waiting", *ENDED[1:])
            if counts[state]
        ]
        return _apart(_bar(self.snapshot.done()), Text.assemble(*words))

    def _best(self, width: int) -> RenderableType:
        best, metric = self.snapshot.best(), self.snapshot.metric
        if best is None:
            return _text(f"best {metric}   none yet", "dim")
        value, trial = score(best.value), f"   trial {best.number}   "
        label = squeeze(best.label, max(0, width - len(f"best {metric} {value}{trial}")))
        text = Text.assemble(f"best {metric} ", (value, "bold green"), trial, (label, "dim"))
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class Trials:
    """The two tables: running trials by number, then ended ones, best first. The first three columns are those of both."""

    def __init__(self, snapshot: Snapshot, width: int) -> None:
        self.snapshot, self.width = snapshot, width
        self.running, self.ended, self.best = snapshot.running(), snapshot.ended(), snapshot.best()
        number = max(
            len(str(number))
            for number in [snapshot.num_trials - 1, *(row.number for row in snapshot.rows)]
        )
        labels = Labels([row.label for row in snapshot.rows])
        self.details = self._details()
        room = width - number - VALUE - 2 * GAP - _taken(self.details)
        # Labels come first: memory gives way to what tells trials apart, and on a very narrow terminal all the rest does.
        while (len(self.details) > ALWAYS and room < labels.needed) or (
            self.details and room < LABEL
        ):
            room += self.details.pop().width + GAP
        heading, cells = labels.fit(max(1, room))
        named = {row.number: cell for row, cell in zip(snapshot.rows, cells, strict=True)}
        self.first = [
            Column("#", number, lambda row: _text(str(row.number), "dim")),
            Column(
                heading,
                max(map(len, [heading, *cells])),
                lambda row: _text(named[row.number], self._mark(row)),
                right=False,
            ),
            Column(
                "best",
                VALUE,
                lambda row: _text(
                    score(row.value), f"{self._mark(row)} green" if self._mark(row) else ""
                ),
            ),
        ]

    def _mark(self, row: Row) -> str:
        return "bold" if row is self.best else ""

    def sections(self, height: int) -> list[RenderableType]:
        """Running trials come first, but leave a third of the lines to the ended ones."""
        space = (
            height - 2 * bool(self.running) - 2 * bool(self.ended)
        )  # an empty line and a heading each
        kept = min(len(self.ended), space // 3)
        num_running = max(0, min(len(self.running), space - kept))
        num_ended = max(0, min(len(self.ended), space - num_running))
        drawn: list[RenderableType] = []
        if num_running:
            drawn += ["", self._running_table(num_running)]
        if num_ended:
            drawn += ["", self._ended_table(num_ended)]
        return drawn

    def _running_table(self, count: int) -> RenderableType:
        hidden = len(self.running) - count
        shown = self.running[: count - 1] if hidden else self.running
        spare = self.width - _taken([*self.first, *self.details]) + GAP
        details = [
            column._replace(width=min(24, column.width + spare)) if not column.head else column
            for column in self.details
        ]
        table = _table([*self.first, *details], shown)
        if hidden:
            table.add_row("", "", _text(f"and {hidden + 1} more", "dim"))
        return table

    def _ended_table(self, count: int) -> RenderableType:
        failed = [row for row in self.ended if row.state == "failed"]
        others = [row for row in self.ended if row.state != "failed"]
        num_failed = min(len(failed), max(count // 3, count - len(others)))
        others = others[: count - num_failed]
        newest = sorted(failed, key=lambda row: row.number)[len(failed) - num_failed :]
        columns = [
            *self.first,
            Column(
                "took",
                7,
                lambda row: _text("" if row.seconds is None else clock(row.seconds), "dim"),
            ),
        ]
        room = self.width - _taken(columns)
        if room >= 6:
            columns.append(Column("", room, _outcome, right=False))
        return _table(columns, others + newest)

    def _details(self) -> list[Column]:
        """What only a running trial has; the least important last."""
        roomy = self.width >= ROOMY
        written, unit = ("{:,}".format, " GB") if roomy else (short, "G")
        steps = max([3, *(len(written(row.steps)) for row in self.running)])

        def progress(row: Row) -> RenderableType:
            step = self._reading(row).step
            return "" if step is None else _bar(step / max(row.steps, 1))

        def step(row: Row) -> RenderableType:
            step = self._reading(row).step
            return _text("" if step is None else f"{written(step)}/{written(row.steps)}")

        def left(row: Row) -> RenderableType:
            reading = self._reading(row)
            return (
                _text("silent", "yellow")
                if reading.silent
                else _text("" if reading.left is None else about(reading.left))
            )

        def rate(row: Row) -> RenderableType:
            rate = self._reading(row).rate
            return _text("" if rate is None else f"{rate:,.{0 if rate >= 10 else 1}f}")

        def gigabytes(megabytes: float | None) -> RenderableType:
            return _text("" if megabytes is None else f"{megabytes / 1e3:.1f}{unit}", "dim")

        columns = [
            Column("", BAR, progress, right=False),
            Column("step", 2 * steps + 1 if roomy else steps + 5, step),
            Column("left", 6, left),
            Column("images/s" if roomy else "img/s", 8 if roomy else 5, rate),
            Column(
                "memory" if roomy else "mem",
                8 if roomy else 5,
                lambda row: gigabytes(self._reading(row).memory),
            ),
        ]
        if any(reading.gpu_memory is not None for reading in self.snapshot.readings.values()):
            width = 10 if roomy else 5
            columns.append(
                Column(
                    "gpu memory" if roomy else "gpu",
                    width,
                    lambda row: gigabytes(self._reading(row).gpu_memory),
                )
            )
        return columns

    def _reading(self, row: Row) -> Reading:
        return self.snapshot.readings[row.number]


def _outcome(row: Row) -> RenderableType:
    text = Text.assemble(
        (row.state, STYLES[row.state]), (f": {one_line(row.cause)}" if row.cause else "", "dim")
    )
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _taken(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns)


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    # Gaps are columns: how rich counts the padding at a table's edge differs between its versions.
    table = Table(box=None, padding=0, header_style="dim")
    for index, column in enumerate(columns):
        if index:
            table.add_column(width=GAP)
        justify: Any = "right" if column.right else "left"
        table.add_column(
            _text(column.head),
            width=column.width,
            justify=justify,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*_with_gaps([column.cell(row) for column in columns]))
    return table


def _with_gaps(cells: Sequence[RenderableType]) -> list[RenderableType]:
    return [part for cell in cells for part in ("", cell)][1:]


def _apart(left: RenderableType, right: Text) -> Table:
    """One line: `right` at the right edge, whole, and `left` in what remains."""
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(width=GAP)
    line.add_column(justify="right", no_wrap=True, width=right.cell_len)
    line.add_row(left, "", right)
    return line


def _bar(share: float) -> ProgressBar:
    return ProgressBar(1.0, share, complete_style="cyan", finished_style="green")


def _text(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
