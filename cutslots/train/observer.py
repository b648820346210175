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


class Observer:
    """Base of listeners. `fit` calls it in the training process, on every rank, so a method returns quickly."""

    def started(self, start: Start) -> None: ...

    def progress(self, step: int, values: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, scores: Mapping[str, float], sample: Sample) -> None: ...

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

    def saved(self, step: int, path: Path, best: bool) -> None:
        for listener in self.listeners:
            listener.saved(step, path, best)

    def said(self, message: str) -> None:
        for listener in self.listeners:
            listener.said(message)
