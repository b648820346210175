"""Callbacks of `fit`, and the one that shows progress in a terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from torch import Tensor

from cutslots.metrics.registry import SCORES, title

LINE_SECONDS = 10.0  # between lines of progress if the output is not a terminal
SHOWN = (*SCORES, "cut_ari_fg", "cut_miou", "video_ari_fg", "video_ari")  # after an evaluation


@dataclass(frozen=True)
class Start:
    """Where a run starts: its first and last step, its model and its hardware."""

    step: int
    steps: int
    num_parameters: int
    device: str
    precision: str
    num_ranks: int = 1


@dataclass(frozen=True)
class Sample:
    """A few evaluated images with the model's outputs, on the CPU."""

    images: Tensor
    true: Tensor
    outputs: Any


@dataclass(frozen=True)
class Examples:
    """The items with the best, median and worst score, in this order; fewer in a tiny split."""

    score: str  # its name
    roles: list[str]  # "best", "median" or "worst"
    ids: list[str]  # of the images or clips
    values: list[float]  # their scores
    sample: Sample  # the items and the model's outputs


class Callback:
    """Base class: every method does nothing.

    `fit` calls the methods in the training process, on every rank, so they should return quickly.
    """

    def on_start(self, start: Start) -> None: ...

    def on_log(self, step: int, values: Mapping[str, float]) -> None: ...

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None: ...

    def on_improve(self, step: int, examples: Examples) -> None:
        """Called after `on_evaluate` if its scores are the best so far; on rank 0 only."""

    def on_save(self, step: int, path: Path, best: bool) -> None: ...

    def on_message(self, message: str) -> None: ...


class CallbackList(Callback):
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        methods = [getattr(callback, name) for callback in self.callbacks]
        return lambda *arguments: [method(*arguments) for method in methods]


class _Progress(progress.Progress):
    """Leaves two columns for the terminal's echo of ^C: a wrapped line cannot be erased."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Constrain(super().get_renderable(), options.max_width - 2)

    def get_renderable(self) -> RenderableType:
        return self


class ProgressBar(Callback):
    """A live bar with loss, images per second and time left; else a line every ten seconds, with
    `live=False` in a terminal too, so that a debugger's prompt stays readable."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self.console = console or Console(file=sys.stderr)
        self.live = live and self.console.is_terminal
        self.bar = _Progress(
            progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(None),
            progress.TextColumn("{task.fields[values]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            expand=True,
        )
        self.printed_at = 0.0

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_start(self, start: Start) -> None:
        self.start, self.started_at = start, time.monotonic()
        origin = f"resumed at step {start.step:,}" if start.step else "from scratch"
        ranks = f"{start.num_ranks} ranks, rank 0 " if start.num_ranks > 1 else ""
        hardware = f"{ranks}on {start.device} in {start.precision}"
        size = f"{start.num_parameters:,} parameters"
        self.say(f"{size}, {hardware}, {origin}, to step {start.steps:,}")
        self.task = self.bar.add_task("", total=start.steps, completed=start.step, values="")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        rate = values["images_per_second"]
        shown = f"loss {values['loss']:.5f}  {rate:.{0 if rate >= 10 else 1}f} images/s"
        self.bar.update(self.task, completed=step, values=shown)
        now, steps = time.monotonic(), self.start.steps
        if not self.live and (now - self.printed_at > LINE_SECONDS or step == steps):
            self.printed_at = now
            left = (now - self.started_at) / max(step - self.start.step, 1) * (steps - step)
            self.say(f"step {step:>6}/{steps}  {shown}  {clock(left)} left")

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        shown = [
            f"{title(name)} {scores[name]:.{1 if name == 'mse' else 3}f}"
            for name in SHOWN
            if name in scores
        ]
        images = f"({scores['num_images']:.0f} validation images)"
        self.say(f"step {step:>6}  {'  '.join(shown)}   {images}")

    def on_save(self, step: int, path: Path, best: bool) -> None:
        if best:
            self.say(f"step {step:>6}  best so far: {path.name}")

    def on_message(self, message: str) -> None:
        self.say(message)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A duration: 0:07, 12:40, 1:20:05."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
