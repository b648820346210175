"""A sweep as a person at the terminal sees it: a live table, or plain lines where the output is no terminal.

    with View("gamma search", rows, total=40, metric="val/ari_fg") as view:
        ...  # the sweep goes on; `rows` is asked once a second
        view.say("a line above the table")

What a trial is doing is read from the journal in its folder. A folder on another machine leaves those columns empty.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live

from cutslots.launch._format import about, clock, one_line, score
from cutslots.launch._machine import Machine
from cutslots.launch._picture import Picture
from cutslots.launch._snapshot import ENDED, Reading, Row, Snapshot, Trace
from cutslots.runlog.latest import latest

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
            live.update(picture, refresh=True)
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
