"""A run as a person at the terminal sees it."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cutslots.train.observer import Observer, Sample, Start

QUIET_SECONDS = 10.0


class Terminal(Observer):
    """A live bar with loss, images a second and time left; plain lines every ten seconds where the output is no terminal.

    Args:
        live: False prints lines on a terminal too: a bar would redraw itself over a debugger's prompt.
    """

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self.console = console or Console(file=sys.stderr)
        self.live = live and self.console.is_terminal
        self.bar = Progress(
            TextColumn("step {task.completed:>6.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task: TaskID | None = (
            None  # added once the number of steps is known: a column formats it
        )
        self.begun, self.first, self.steps = time.monotonic(), 0, 0
        self.printed = 0.0

    def __enter__(self) -> "Terminal":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def started(self, start: Start) -> None:
        self.first, self.steps, self.begun = start.step, start.steps, time.monotonic()
        origin = f"resumed at step {start.step}" if start.step else "from scratch"
        where = (
            start.device
            if start.num_ranks == 1
            else f"{start.num_ranks} ranks, here {start.device},"
        )
        self.say(
            f"{start.num_parameters:,} parameters on {where} in {start.precision}, {origin}, to step {start.steps:,}"
        )
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(
            "training", total=start.steps, completed=start.step, values=""
        )

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        shown = f"loss {values['loss']:.5f}  {values['images_per_second']:.0f} images/s"
        if self.task is not None:
            self.bar.update(self.task, completed=step, values=shown)
        now = time.monotonic()
        if not self.live and (now - self.printed > QUIET_SECONDS or step == self.steps):
            self.printed = now
            left = (now - self.begun) / max(step - self.first, 1) * (self.steps - step)
            self.say(f"step {step:>6}/{self.steps}  {shown}  {clock(left)} left")

    def evaluated(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        cuts = ""
        if "cut_ari_fg" in scores:
            cuts = (
                f"   by cut masks: ARI-FG {scores['cut_ari_fg']:.3f}  mIoU {scores['cut_miou']:.3f}"
            )
        clips = ""
        if "video_ari_fg" in scores:
            clips = (
                f"   over clips: ARI-FG {scores['video_ari_fg']:.3f}  ARI {scores['video_ari']:.3f}"
            )
        self.say(
            f"step {step:>6}  ARI-FG {scores['ari_fg']:.3f}  ARI {scores['ari']:.3f}  mIoU {scores['miou']:.3f}"
            f"  MSE {scores['mse']:.1f}{cuts}{clips}   ({scores['num_images']:.0f} validation images)"
        )

    def saved(self, step: int, path: Path, best: bool) -> None:
        if best:
            self.say(f"step {step:>6}  best so far: {path.name}")

    def said(self, message: str) -> None:
        self.say(message)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A time that passes: 0:07, 12:40, 1:20:05."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
