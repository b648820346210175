"""The progress of a sweep: a live table on a terminal, a summary every 30 s elsewhere.

The steps of running trials are read from the journals in their folders.
"""

import contextlib
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cutslots.metrics.registry import higher_is_better
from cutslots.sweep.study import Trial
from cutslots.tracking.journal import latest
from cutslots.train.callbacks import clock

STATUS_SECONDS = 30.0
HARMLESS = contextlib.suppress(Exception, SystemExit)  # rich exits if a pipe is closed
# The states of a trial, and their style in the table.
STYLES = {
    "running": "cyan",
    "waiting": "dim",
    "finished": "green",
    "pruned": "yellow",
    "interrupted": "yellow",
    "failed": "red",
}


class Display:
    """Shows the trials; its errors never reach the sweep.

    Args:
        trials: returns the trials that have begun.
        total: returns how many trials there will be.
        metric: name of the objective.
        console: default: standard error, also after it is redirected.
    """

    def __init__(
        self,
        title: str,
        trials: Callable[[], Sequence[Trial]],
        total: Callable[[], int],
        metric: str,
        console: Console | None = None,
    ) -> None:
        # FORCE_COLOR must not make a file a terminal.
        live = None if sys.stderr.isatty() else False
        console = console or Console(file=sys.stderr, force_interactive=live)
        self.title, self.metric, self.console = title, metric, console
        self._trials, self._total = trials, total
        self._begun, self._status_time = time.monotonic(), -math.inf
        self._live = None
        if console.is_interactive and not console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=console,
                refresh_per_second=1,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        with HARMLESS:
            if self._live:
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with HARMLESS:
            if self._live:
                self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        with HARMLESS:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self) -> None:
        """Print a summary without a terminal, if the last one is 30 s old."""
        if not self._live and time.monotonic() - self._status_time >= STATUS_SECONDS:
            self._status_time = time.monotonic()
            with HARMLESS:
                self.say(self.summary())

    def _render(self) -> RenderableType:
        try:
            return self.table()
        except Exception as error:
            return Text(f"no table of trials, the sweep continues: {error!r}")

    def table(self) -> Table:
        """The trials, running ones first, then the best, and a summary; it fits the terminal."""
        # Two columns stay free for the terminal's echo of ^C: a wrapped line stays.
        table = Table(box=None, pad_edge=False, width=self.console.width - 2)
        table.title, table.title_justify = Text(self.title, "bold"), "left"
        table.caption, table.caption_justify = self.summary(), "left"
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("state", no_wrap=True, width=11)
        for name in ("step", "best", "elapsed"):
            table.add_column(name, justify="right", no_wrap=True)
        shown = [trial for trial in self._trials() if trial.state != "waiting"]
        shown.sort(key=lambda trial: (trial.state != "running", self._rank(trial), trial.number))
        room = max(1, self.console.height - 8)
        for trial in shown[:room]:
            step = f"{_step(trial)}/{trial.config.train.steps}" if trial.state == "running" else ""
            value = "" if trial.value is None else f"{trial.value:.4g}"
            elapsed = "" if trial.elapsed is None else clock(trial.elapsed)
            cells = (str(trial.number), trial.label, trial.state, step, value, elapsed)
            table.add_row(*map(Text, cells), style=STYLES[trial.state])
        if len(shown) > room:
            table.add_row("", f"and {len(shown) - room} more", style="dim")
        return table

    def summary(self) -> str:
        """Elapsed time, trials by state, the best one, and the estimated time left."""
        trials = self._trials()
        counts, total = Counter(trial.state for trial in trials), max(self._total(), len(trials))
        counts["waiting"] += total - len(trials)
        words = [f"{clock(time.monotonic() - self._begun)}  {counts['finished']} of {total} done"]
        words += [
            f"{counts[name]} {name}" for name in STYLES if counts[name] and name != "finished"
        ]
        best = min(trials, key=self._rank, default=None)
        if best and math.isfinite(self._rank(best)):
            words.append(f"best {self.metric} {best.value:.4g} (trial {best.number})")
        # Assumes that every open trial takes the mean time, with as many at a time as now.
        took = [t.seconds for t in trials if t.state in ("finished", "pruned") and t.seconds]
        running = [trial.elapsed or 0.0 for trial in trials if trial.state == "running"]
        if took and running:
            rest = statistics.fmean(took) * (counts["waiting"] + len(running)) - sum(running)
            words.append(f"about {clock(max(0.0, rest) / len(running))} left")
        return ", ".join(words)

    def _rank(self, trial: Trial) -> float:
        """Sort key: best first; infinity for failed trials and trials without a value."""
        if trial.state == "failed" or trial.value is None or not math.isfinite(trial.value):
            return math.inf
        return -trial.value if higher_is_better(self.metric) else trial.value


def _step(trial: Trial) -> int:
    """The last logged step of a trial, 0 before the first."""
    with contextlib.suppress(OSError):
        if logged := latest(trial.run_dir):
            return max((step for _, step in logged.metrics.values()), default=0)
    return 0
