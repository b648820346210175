"""A sweep as a person at the terminal sees it: a live table, or plain lines where the output is no terminal.

    with View("gamma search", rows, total=40, metric="val/ari_fg") as view:
        ...  # the sweep goes on; `rows` is asked once a second
        view.say("a line above the table")

What a trial is doing is read from the journal in its folder. A folder on another machine leaves those columns empty.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cutslots.tracking.journal import Latest, latest
from cutslots.train.callbacks import clock as clock

REFRESH_SECONDS, STATUS_SECONDS = 1.0, 30.0


class View:
    """Shows a sweep from a thread of its own, until left; the last table stays on the screen.

    Nothing that goes wrong in it reaches the sweep: it is said once.

    Args:
        rows: the trials as they are now, those that are known so far; called from the view's thread.
        total: how many trials there will be, or what tells it.
        metric: name of the objective.
        console: None is standard error.
    """

    def __init__(
        self,
        title: str,
        rows: Callable[[], Sequence[Row]],
        total: int | Callable[[], int],
        metric: str,
        smaller_is_better: bool = False,
        console: Console | None = None,
    ) -> None:
        self.title, self.metric, self.smaller_is_better = title, metric, smaller_is_better
        self._rows, self._total = rows, total
        # A log file of a build server may ask for colours, and is no terminal all the same.
        self.console = console or Console(
            file=sys.stderr, force_interactive=None if sys.stderr.isatty() else False
        )
        interactive = self.console.is_interactive and not self.console.is_dumb_terminal
        # What others print goes above the table, unless it goes to a file.
        screen = sys.stdout.isatty()
        self._live = (
            Live(console=self.console, auto_refresh=False, redirect_stdout=screen)
            if interactive
            else None
        )
        self._lines, self._machine = Lines(), Machine()
        self._traces: dict[int, Trace] = {}
        self._begun = time.monotonic()
        self._failed, self._stop = False, threading.Event()
        self._drawing = (
            threading.RLock()
        )  # a signal's handler may say something while its thread is saying something
        self._thread = threading.Thread(target=self._run, name="sweep view", daemon=True)

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        with self._harmless():
            if self._live:
                self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)
        with self._harmless():
            if self._live:
                self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        with self._harmless(), self._drawing:
            self._print(text)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            with self._harmless():
                self._refresh()
            stopped = self._stop.wait(REFRESH_SECONDS)
        with self._harmless():
            self._refresh(last=True)

    def _refresh(self, last: bool = False) -> None:
        snapshot = self.snapshot()
        with self._drawing:
            if self._live:
                self._draw(self._live, Picture(snapshot))
                return
            for line in self._lines.new(snapshot, last):
                self._print(line)

    def _draw(self, live: Live, picture: Picture) -> None:
        try:
            # Two columns stay free for the terminal to echo ^C: a wrapped line would not be erased.
            live.update(Constrain(picture, self.console.width - 2), refresh=True)
        except Exception:
            live.update(
                "", refresh=True
            )  # what cannot be drawn would also keep lines from being printed above it
            raise

    def snapshot(self) -> Snapshot:
        """The sweep as it is now."""
        rows, now = list(self._rows()), time.monotonic()
        readings = {row.number: self._reading(row, now) for row in rows if row.state == "running"}
        self._traces = {
            number: trace for number, trace in self._traces.items() if number in readings
        }
        return Snapshot(
            title=self.title,
            metric=self.metric,
            smaller_is_better=self.smaller_is_better,
            total=self._total() if callable(self._total) else self._total,
            rows=rows,
            readings=readings,
            machine=self._machine.facts(readings.values()),
            elapsed=now - self._begun,
        )

    def _reading(self, row: Row, now: float) -> Reading:
        trace = self._traces.setdefault(row.number, Trace())
        try:
            return trace.look(latest(row.run_dir), row.steps, now)
        except OSError:  # a folder that cannot be read tells as little as one that is not here
            return Reading()

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        # rich answers a closed pipe with SystemExit.
        try:
            yield
        except (Exception, SystemExit) as error:
            if self._failed:
                return
            self._failed = True
            with contextlib.suppress(Exception, SystemExit), self._drawing:
                self._print(
                    f"the view of the sweep has a fault, the sweep goes on: {type(error).__name__}: {one_line(str(error))}"
                )


class Lines:
    """The plain lines of a sweep: what has happened since the last look, and every 30 s where it stands."""

    def __init__(self) -> None:
        self._states: dict[int, str] | None = None
        self._best, self._status = "", -math.inf

    def new(self, snapshot: Snapshot, last: bool = False) -> list[str]:
        """The lines to print now; the last look ends with where the sweep stands."""
        lines = []
        for row in sorted(snapshot.rows, key=lambda row: row.number):
            # What had ended before the first look is of an earlier day; the status line counts it.
            before = (
                row.state
                if self._states is None and row.state in ENDED
                else (self._states or {}).get(row.number, "waiting")
            )
            if before == "waiting" and (
                row.state == "running" or (row.state in ENDED and row.seconds is not None)
            ):
                lines.append(f"trial {row.number} starts: {row.label}")
            if before != row.state and row.state in ENDED:
                lines.append(_ended(row, snapshot.metric))
        self._states = {row.number: row.state for row in snapshot.rows}
        best = snapshot.best()
        text = f"{score(best.value)}, trial {best.number} ({best.label})" if best else ""
        if best and text != self._best:
            self._best = text
            lines.append(f"best {snapshot.metric} so far: {text}")
        if last or snapshot.elapsed - self._status >= STATUS_SECONDS:
            self._status = snapshot.elapsed
            lines.append(_status(snapshot))
        return lines


def _ended(row: Row, metric: str) -> str:
    took = "" if row.seconds is None else f" after {clock(row.seconds)}"
    value = "" if row.value is None else f", {metric} {score(row.value)}"
    return f"trial {row.number} {row.state}{took}{value}" + (
        f": {one_line(row.cause)}" if row.cause else ""
    )


def _status(snapshot: Snapshot) -> str:
    counts, left, best = snapshot.counts, snapshot.left(), snapshot.best()
    words = [f"{clock(snapshot.elapsed)}  {counts['finished']} of {snapshot.num_trials} done"]
    words += [
        f"{counts[state]} {state}" for state in ("running", "waiting", *ENDED[1:]) if counts[state]
    ]
    words += [f"best {score(best.value)} (trial {best.number})"] if best else []
    words += [f"about {about(left)} left"] if left is not None else []
    return ", ".join([*words, *snapshot.machine])


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


SILENT_SECONDS = 300.0  # the machine is sampled every ten seconds: a longer silence is a process that hangs or is gone
ENDED = ("finished", "pruned", "failed", "interrupted")


@dataclass(frozen=True)
class Row:
    """One trial of a sweep.

    Args:
        label: what distinguishes it: "paper, seed 1", or "gamma 0.31  learning_rate 0.0008", two spaces between pairs.
        state: waiting, running, finished, pruned, failed or interrupted.
        steps: of the whole training.
        value: best objective so far.
        seconds: since it was started; when it has ended, how long it took.
        cause: of a failure or a pruning.
    """

    number: int
    label: str
    state: str
    run_dir: Path
    steps: int
    value: float | None
    seconds: float | None
    cause: str | None = None


@dataclass(frozen=True)
class Reading:
    """What the journal of a running trial tells; None where it tells nothing. Memory in megabytes of 10^6 bytes."""

    step: int | None = None
    rate: float | None = None  # images a second
    left: float | None = None  # seconds
    memory: float | None = None  # of the process
    gpu_memory: float | None = None  # of the GPUs it uses, by whomever
    gpu_use: float | None = None  # percent
    silent: bool = False


class Trace:
    """Successive looks at the journal of one running trial."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = (
            None  # step and when it was seen: the pace is measured from here
        )
        self._newest: tuple[int, float] = (0, 0.0)
        self._heard: tuple[object, float] = (None, 0.0)  # the newest line and when it was seen

    def look(self, found: Latest | None, steps: int, now: float) -> Reading:
        """`now` is a monotonic clock of this machine: that of another one, which writes the journal, may be wrong."""
        if found is None:
            return Reading()
        numbers = {name: value for name, (value, _) in found.metrics.items()}
        step = found.metrics["train/loss"][1] if "train/loss" in found.metrics else None
        line = (found.time, step)
        self._heard = self._heard if self._heard[0] == line else (line, now)
        if step is not None and (
            self._first is None or step < self._newest[0]
        ):  # new, or set back to an earlier checkpoint
            self._first = self._newest = (step, now)
        elif step is not None and step > self._newest[0]:
            self._newest = (step, now)
        return Reading(
            step=step,
            rate=numbers.get("train/images_per_second"),
            left=self._left(steps, now),
            memory=numbers.get("system/process_rss_megabytes"),
            gpu_memory=sum(held) if (held := _gpus(numbers, "memory_usage_megabytes")) else None,
            gpu_use=mean(_gpus(numbers, "utilization_percentage")),
            silent=now - self._heard[1] > SILENT_SECONDS,
        )

    def _left(self, steps: int, now: float) -> float | None:
        if self._first is None or self._newest[0] <= self._first[0]:
            return None
        pace = (self._newest[1] - self._first[1]) / (self._newest[0] - self._first[0])
        return max(0.0, pace * (steps - self._newest[0]) - (now - self._newest[1]))


def _gpus(numbers: Mapping[str, float], what: str) -> list[float]:
    return [
        value for name, value in numbers.items() if re.fullmatch(rf"system/gpu_\d+_{what}", name)
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment."""

    title: str
    metric: str
    smaller_is_better: bool
    total: int
    rows: Sequence[Row]
    readings: Mapping[int, Reading]  # by number, of the running trials
    machine: Sequence[str]
    elapsed: float
    counts: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = Counter(row.state for row in self.rows)
        counts["waiting"] += max(
            0, self.total - len(self.rows)
        )  # a search makes its trials as it goes
        object.__setattr__(self, "counts", counts)

    @property
    def num_trials(self) -> int:
        """Of the whole sweep."""
        return max(self.total, len(self.rows))

    def running(self) -> list[Row]:
        """By number."""
        return sorted(
            (row for row in self.rows if row.state == "running"), key=lambda row: row.number
        )

    def ended(self) -> list[Row]:
        """Best first; failed ones, and those without a value, last."""
        return sorted((row for row in self.rows if row.state in ENDED), key=self._rank)

    def best(self) -> Row | None:
        """The best trial so far, running or ended; a failed one is not it, whatever it reached."""
        first = min(self.rows, key=self._rank, default=None)
        return first if first and not self._unranked(first) else None

    def _rank(self, row: Row) -> tuple[bool, float, int]:
        if row.value is None or self._unranked(row):
            return True, 0.0, row.number
        return False, row.value if self.smaller_is_better else -row.value, row.number

    def _unranked(self, row: Row) -> bool:
        return row.state == "failed" or row.value is None or not math.isfinite(row.value)

    def done(self) -> float:
        """The share of the sweep that is behind us, from 0 to 1."""
        behind = float(sum(self.counts[state] for state in ENDED))
        for row in self.running():
            behind += (self.readings[row.number].step or 0) / max(row.steps, 1)
        return min(1.0, behind / max(1, self.num_trials))

    def left(self) -> float | None:
        """Seconds to the end of the sweep, as many trials at a time as now; None when nothing tells how long a trial takes."""
        running = self.running()
        known = {row.number: self.readings[row.number].left for row in running}
        lasted = mean(row.seconds for row in self.rows if row.state in ("finished", "pruned"))
        if lasted is None:
            lasted = mean(
                (row.seconds or 0.0) + left
                for row in running
                if (left := known[row.number]) is not None
            )
        if lasted is None or not running:
            return None
        free = []  # when each of the places of the running trials is free
        for row in running:
            left = known[row.number]
            free.append(max(0.0, lasted - (row.seconds or 0.0)) if left is None else left)
        heapq.heapify(free)
        for _ in range(self.counts["waiting"]):
            heapq.heapreplace(free, free[0] + lasted)
        return max(free)


def about(seconds: float) -> str:
    """An estimated time, which deserves two figures: 40s, 12m, 1h20m, 3d4h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"


def score(value: float | None) -> str:
    """An objective, five characters or little more."""
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def short(number: int) -> str:
    """A number of steps in four characters: 950, 1.2k, 20k, 1.5M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            # Never rounded up: a training is not over before it is.
            return (
                str(number // size)
                if number >= 10 * size
                else f"{number * 10 // size / 10:.1f}".removesuffix(".0")
            ) + letter
    return str(number)


def one_line(text: str) -> str:
    """Without the colours and line breaks that an error's text may bring."""
    return " ".join(Text.from_ansi(text).plain.split())


def squeeze(label: str, width: int) -> str:
    """A label in `width` characters: its words lose their ends first, for its numbers say more, then it loses its middle."""
    for longest in range(max(width, 4), 3, -1):
        shorter = re.sub(
            r"\b[^\W\d][\w.]*", lambda word, longest=longest: _cut(word[0], longest), label
        )
        if len(shorter) <= width:
            return shorter
    end = (width - 1) // 2
    return f"{label[: width - 1 - end]}…{label[len(label) - end :]}" if width > 2 else label[:width]


def _cut(word: str, width: int) -> str:
    return word if len(word) <= width else word[: width - 1] + "…" if width > 2 else word[:width]


class Labels:
    """The labels of all trials, to be shown in few characters.

    Those that give values to the same names, "gamma 0.31  depth 4" and "gamma 0.2  depth 8", become columns under those names.

    Attributes:
        needed: characters without which values are lost.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._values = [
            dict(part.split(" ") for part in parts) if _paired(parts := label.split("  ")) else {}
            for label in labels
        ]
        found = Counter(tuple(values) for values in self._values if values).most_common(1)
        self._names = found[0][0] if found and found[0][1] > 1 else ()
        columns = [
            [values[name] for values in self._values if tuple(values) == self._names]
            for name in self._names
        ]
        self._narrowest = [max(map(len, column)) for column in columns]
        self.needed = (
            _width(self._narrowest) if columns else min(30, max(map(len, labels), default=0))
        )

    def fit(self, width: int) -> tuple[str, list[str]]:
        """A heading, and each label, in `width` characters; what is not in columns is squeezed."""
        if not self._names or _width(self._narrowest) > width:
            return "trial", [squeeze(label, width) for label in self.labels]
        widths = self._narrowest
        for longest in range(
            1, max(map(len, self._names)) + 1
        ):  # names as whole as there is room for
            wider = [
                max(least, min(len(name), longest))
                for least, name in zip(self._narrowest, self._names, strict=True)
            ]
            widths = wider if _width(wider) <= width else widths
        heading = _padded(
            [_cut(name, room) for name, room in zip(self._names, widths, strict=True)], widths
        )
        return heading, [
            _padded(list(values.values()), widths)
            if tuple(values) == self._names
            else squeeze(label, width)
            for label, values in zip(self.labels, self._values, strict=True)
        ]


def _paired(parts: Sequence[str]) -> bool:
    return all(part.count(" ") == 1 for part in parts)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


GPU_SECONDS = 5.0  # between two calls of nvidia-smi


class Gpus(NamedTuple):
    """The GPUs of this machine together: mean percent, megabytes of 10^6 bytes."""

    number: int
    use: float | None
    memory: float
    size: float


class Machine:
    """What this machine is doing, in a few words. The GPUs are asked through nvidia-smi: CUDA stays unused in this process."""

    def __init__(self) -> None:
        self._command = shutil.which("nvidia-smi")
        self._asked, self._gpus, self._looked = -math.inf, None, False
        psutil.cpu_percent()  # the first call has nothing to compare with and says 0

    def facts(self, readings: Iterable[Reading]) -> list[str]:
        """CPU, memory and GPU use; without nvidia-smi, what the running trials tell of theirs."""
        memory, cpu = psutil.virtual_memory(), psutil.cpu_percent()
        facts = [f"cpu {cpu:.0f}%"] if self._looked else []
        self._looked = True
        facts.append(f"memory {memory.percent:.0f}% of {memory.total / 1e9:.0f} GB")
        gpus = self._ask()
        if gpus:
            name = "gpu" if gpus.number == 1 else f"{gpus.number} gpus"
            use = "" if gpus.use is None else f" {gpus.use:.0f}%"
            return [*facts, f"{name}{use}, {gpus.memory / 1e3:.1f} of {gpus.size / 1e3:.0f} GB"]
        use = mean(reading.gpu_use for reading in readings)
        return facts if use is None else [*facts, f"gpu of the trials {use:.0f}%"]

    def _ask(self) -> Gpus | None:
        if self._command is None or time.monotonic() - self._asked < GPU_SECONDS:
            return self._gpus
        query = [
            self._command,
            "--query-gpu=utilization.gpu,memory.used,memory.total",
            "--format=csv,noheader,nounits",
        ]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._gpus = gpus(
                subprocess.run(
                    query, capture_output=True, text=True, timeout=5.0, check=True
                ).stdout
            )
        self._asked = time.monotonic()
        return self._gpus


def gpus(table: str) -> Gpus | None:
    """From nvidia-smi's lines "utilization, MiB used, MiB in all"; a split GPU says [N/A] for its use."""
    number = r"\s*(\d+|\[.*?\])\s*"
    found = [
        match.groups()
        for match in re.finditer(rf"^{number},{number},{number}$", table, re.MULTILINE)
    ]
    known = [
        (use, float(used) * 1.048576, float(size) * 1.048576)
        for use, used, size in found
        if (used + size).isdigit()
    ]
    if not known:
        return None
    use = mean(float(use) if use.isdigit() else None for use, _, _ in known)
    return Gpus(
        len(known), use, sum(used for _, used, _ in known), sum(size for _, _, size in known)
    )
