"""What `fit` tells whoever listens: the terminal, the run log, a sweep. One class, every method does nothing until overridden."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Where a run starts."""

    step: int
    steps: int
    num_parameters: int
    device: str
    precision: str
    num_ranks: int = 1


@dataclass(frozen=True)
class Sample:
    """A few evaluated images with everything the model made of them, on the CPU."""

    images: Tensor
    true: Tensor
    outputs: Any


@dataclass(frozen=True)
class Examples:
    """The scenes of the best, the median and the worst score, in this order; fewer where there are fewer.

    Attributes:
        score: its name.
        roles: best, median or worst.
        ids: of the scenes; of clips those of the clips.
        values: their scores.
        sample: the scenes, and what the model makes of them.
    """

    score: str
    roles: list[str]
    ids: list[str]
    values: list[float]
    sample: Sample


class Callback:
    """Base of listeners. `fit` calls it in the training process, on every rank, so a method returns quickly."""

    def on_start(self, start: Start) -> None: ...

    def on_log(self, step: int, values: Mapping[str, float]) -> None: ...

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None: ...

    def on_improve(self, step: int, examples: Examples) -> None:
        """After `evaluated`, when its scores are the best so far; on rank 0 alone."""

    def on_save(self, step: int, path: Path, best: bool) -> None: ...

    def on_message(self, message: str) -> None: ...


class CallbackList(Callback):
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Callback]) -> None:
        self.listeners = listeners

    def on_start(self, start: Start) -> None:
        for listener in self.listeners:
            listener.on_start(start)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.on_log(step, values)

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        for listener in self.listeners:
            listener.on_evaluate(step, scores, sample)

    def on_improve(self, step: int, examples: Examples) -> None:
        for listener in self.listeners:
            listener.on_improve(step, examples)

    def on_save(self, step: int, path: Path, best: bool) -> None:
        for listener in self.listeners:
            listener.on_save(step, path, best)

    def on_message(self, message: str) -> None:
        for listener in self.listeners:
            listener.on_message(message)


QUIET_SECONDS = 10.0


class _Inset(NamedTuple):
    """Leaves two columns for the terminal to echo ^C: a wrapped line would not be erased."""

    content: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.content, options.update(width=options.max_width - 2))


class _Bar(Progress):
    def get_renderable(self) -> RenderableType:
        return _Inset(super().get_renderable())


class ProgressBar(Callback):
    """A live bar with loss, images a second and time left; plain lines every ten seconds where the output is no terminal.

    Args:
        live: False prints lines on a terminal too: a bar would redraw itself over a debugger's prompt.
    """

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self.console = console or Console(file=sys.stderr)
        self.live = live and self.console.is_terminal
        self.bar = _Bar(
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

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_start(self, start: Start) -> None:
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

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        shown = f"loss {values['loss']:.5f}  {values['images_per_second']:.0f} images/s"
        if self.task is not None:
            self.bar.update(self.task, completed=step, values=shown)
        now = time.monotonic()
        if not self.live and (now - self.printed > QUIET_SECONDS or step == self.steps):
            self.printed = now
            left = (now - self.begun) / max(step - self.first, 1) * (self.steps - step)
            self.say(f"step {step:>6}/{self.steps}  {shown}  {clock(left)} left")

    def on_evaluate(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
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

    def on_save(self, step: int, path: Path, best: bool) -> None:
        if best:
            self.say(f"step {step:>6}  best so far: {path.name}")

    def on_message(self, message: str) -> None:
        self.say(message)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A time that passes: 0:07, 12:40, 1:20:05."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
