"""The progress of a sweep: a live table on a terminal, plain lines elsewhere.

The steps of running trials are read from the journals in their folders.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cutslots.metrics.registry import higher_is_better
from cutslots.tracking.journal import latest
from cutslots.train.callbacks import clock

REFRESH_SECONDS, STATUS_SECONDS = 1.0, 30.0
# The states of a trial in a table, and their style.
STYLES = {
    "running": "cyan",
    "waiting": "dim",
    "finished": "green",
    "pruned": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}
ENDED = ("finished", "pruned", "interrupted", "failed")


@dataclass(frozen=True)
class TrialRow:
    """A row of the table of trials.

    Attributes:
        label: its settings, such as "paper, seed 1" or "gamma 0.31  learning_rate 0.0008".
        state: one of `STYLES`.
        steps: of the full training.
        value: the best objective so far.
        seconds: elapsed time, or total time of an ended trial.
        cause: the reason of a failure or early stop.
    """

    number: int
    label: str
    state: str
    run_dir: Path
    steps: int
    value: float | None = None
    seconds: float | None = None
    cause: str | None = None


class Display:
    """Shows the trials from a background thread. Its errors never reach the sweep.

    Args:
        rows: returns the trials that exist so far.
        total: returns how many trials there will be.
        metric: name of the objective.
    """

    def __init__(
        self,
        title: str,
        rows: Callable[[], Sequence[TrialRow]],
        total: Callable[[], int],
        metric: str,
        console: Console,
    ) -> None:
        self.title, self.metric, self.console = title, metric, console
        self._get_rows, self._get_total = rows, total
        live = console.is_interactive and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._first_steps: dict[int, tuple[int, float]] = {}
        self._states: dict[int, str] | None = None
        self._best, self._status_time, self._failed = "", -math.inf, False
        self._begun, self._stop = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep display", daemon=True)

    def __enter__(self) -> Self:
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
        """Print a line, above the table if there is one."""
        with self._harmless():
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(REFRESH_SECONDS)
            with self._harmless():
                rows = list(self._get_rows())
                if self._live:
                    # Two columns stay free for the terminal's echo of ^C: a wrapped line stays.
                    table = Constrain(self.table(rows), self.console.width - 2)
                    self._live.update(table, refresh=True)
                else:
                    for line in self.lines(rows, last):
                        self.say(line)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # rich exits if a pipe is closed
            if not self._failed:
                self._failed = True
                self.say(f"progress display failed, the sweep continues: {error!r}")

    def table(self, rows: Sequence[TrialRow]) -> RenderableType:
        """A summary and the trials, running ones first, in the size of the terminal."""
        width, height = self.console.width, self.console.height
        steps = {row.number: self._step(row) for row in rows if row.state == "running"}
        order = sorted(rows, key=lambda row: (*self._rank(row), row.number))
        running = sorted((row for row in rows if row.number in steps), key=lambda row: row.number)
        shown = running + [row for row in order if row.state in ENDED]
        room = max(1, height - 6)
        hidden, shown = len(shown) - room, shown[:room]
        # The settings take the remaining width and are cut with an ellipsis.
        longest = max([len(row.label) for row in shown] + [len("settings")])
        table = Table(box=None, pad_edge=False, expand=True, width=min(width, longest + 64))
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("state", no_wrap=True, width=11)
        for name in ("step", "best", "elapsed", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in shown:
            step, left = steps.get(row.number, (None, None))
            cells = [
                str(row.number),
                row.label,
                row.state,
                "" if step is None else f"{step}/{row.steps}",
                "" if row.value is None else f"{row.value:.4g}",
                "" if row.seconds is None else clock(row.seconds),
                "" if left is None else clock(left),
            ]
            table.add_row(*map(Text, cells), style=STYLES[row.state])
        summary = [Text(self.title, "bold"), Text(self._summary(rows, steps)), Text("")]
        more = [Text(f"and {hidden} more", "dim")] if hidden > 0 else []
        for line in summary:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*summary, table, *more)

    def lines(self, rows: Sequence[TrialRow], last: bool = False) -> list[str]:
        """Changes since the last call, and a summary every 30 s and at the end."""
        lines = []
        for row in sorted(rows, key=lambda row: row.number):
            old = (self._states or {}).get(row.number, "waiting")
            if row.state == old or (self._states is None and row.state in ENDED):
                continue  # it ended in an earlier session
            if old == "waiting" and row.state != "waiting" and row.seconds is not None:
                lines.append(f"trial {row.number} started: {row.label}")
            if row.state in ENDED:
                took = "" if row.seconds is None else f" after {clock(row.seconds)}"
                value = "" if row.value is None else f", {self.metric} {row.value:.4g}"
                cause = (
                    f": {' '.join(Text.from_ansi(row.cause).plain.split())}" if row.cause else ""
                )
                lines.append(f"trial {row.number} {row.state}{took}{value}{cause}")
        self._states = {row.number: row.state for row in rows}
        best = min(rows, key=self._rank, default=None)
        if best and math.isfinite(self._rank(best)[0]):
            text = (
                f"best {self.metric} so far: {best.value:.4g}, trial {best.number} ({best.label})"
            )
            lines += [text] if text != self._best else []
            self._best = text
        if last or time.monotonic() - self._status_time >= STATUS_SECONDS:
            self._status_time = time.monotonic()
            steps = {row.number: self._step(row) for row in rows if row.state == "running"}
            lines.append(self._summary(rows, steps))
        return lines

    def _summary(
        self, rows: Sequence[TrialRow], steps: dict[int, tuple[int | None, float | None]]
    ) -> str:
        counts, total = Counter(row.state for row in rows), max(self._get_total(), len(rows))
        counts["waiting"] += total - len(rows)
        words = [f"{clock(time.monotonic() - self._begun)}  {counts['finished']} of {total} done"]
        words += [
            f"{counts[name]} {name}" for name in STYLES if name != "finished" and counts[name]
        ]
        best = min(rows, key=self._rank, default=None)
        if best and math.isfinite(self._rank(best)[0]):
            words.append(f"best {self.metric} {best.value:.4g} (trial {best.number})")
        # Assumes that every open trial takes the mean time, with as many at a time as now.
        took = [row.seconds or 0 for row in rows if row.state in ("finished", "pruned")]
        took = took or [
            (row.seconds or 0) + left
            for row in rows
            if (left := steps.get(row.number, (0, None))[1])
        ]
        if took and steps:
            done = sum(
                (steps[row.number][0] or 0) / row.steps for row in rows if row.number in steps
            )
            left = sum(took) / len(took) * (counts["waiting"] + len(steps) - done) / len(steps)
            words.append(f"about {clock(left)} left")
        return ", ".join(words)

    def _step(self, row: TrialRow) -> tuple[int | None, float | None]:
        """The last logged step of a running trial, and its estimated seconds left."""
        try:
            logged = latest(row.run_dir)
        except OSError:
            logged = None
        step = max((at for _, at in logged.metrics.values()), default=None) if logged else None
        if step is None:
            return None, None
        now = time.monotonic()
        first, since = self._first_steps.setdefault(row.number, (step, now))
        left = (now - since) / (step - first) * (row.steps - step) if step > first else None
        return step, left

    def _rank(self, row: TrialRow) -> tuple[float, bool]:
        """Sort key: best first; failed trials and trials without a value last."""
        if row.state == "failed" or row.value is None or not math.isfinite(row.value):
            return math.inf, row.state == "failed"
        return (-row.value if higher_is_better(self.metric) else row.value), False
