"""What `fit` tells whoever listens: the terminal, the run log, a sweep. One class, every method does nothing until overridden."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class Observer:
    """Base of listeners. `fit` calls it in the training process, on every rank, so a method returns quickly."""

    def started(self, start: Start) -> None: ...

    def progress(self, step: int, values: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, scores: Mapping[str, float], sample: Sample) -> None: ...

    def improved(self, step: int, examples: Examples) -> None:
        """After `evaluated`, when its scores are the best so far; on rank 0 alone."""

    def saved(self, step: int, path: Path, best: bool) -> None: ...

    def said(self, message: str) -> None: ...


class Observers(Observer):
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Observer]) -> None:
        self.listeners = listeners

    def started(self, start: Start) -> None:
        for listener in self.listeners:
            listener.started(start)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        for listener in self.listeners:
            listener.progress(step, values)

    def evaluated(self, step: int, scores: Mapping[str, float], sample: Sample) -> None:
        for listener in self.listeners:
            listener.evaluated(step, scores, sample)

    def improved(self, step: int, examples: Examples) -> None:
        for listener in self.listeners:
            listener.improved(step, examples)

    def saved(self, step: int, path: Path, best: bool) -> None:
        for listener in self.listeners:
            listener.saved(step, path, best)

    def said(self, message: str) -> None:
        for listener in self.listeners:
            listener.said(message)
