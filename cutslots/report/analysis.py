"""What Optuna tells of a sweep's settings, as those have it who write and draw it; `cutslots.launch.analysis` asks Optuna."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Slice:
    """The objective over one setting of the space.

    Attributes:
        setting: its whole name.
        logarithmic: whether it was sampled so.
        choices: of a setting that is no number, in the space's order; None of numbers.
        range: the smallest and the largest number of the space; 0 and 0 of choices.
        finished: value and objective of each finished run, best first.
        pruned: value and last reading of each run that the sweep ended early.
    """

    setting: str
    logarithmic: bool
    choices: list[Any] | None
    range: tuple[float, float]
    finished: list[tuple[Any, float]]
    pruned: list[tuple[Any, float]]


@dataclass(frozen=True)
class Analysis:
    """What came of the settings.

    Attributes:
        importance: the share of the objective's variance by setting, largest first, summing to 1; empty where nothing is told.
        about: how that was found and from how many runs, or why nothing is told; a sentence or two.
        slices: a slice a setting, the most important first; without those of which only one value was tried.
    """

    importance: dict[str, float]
    about: str
    slices: list[Slice] = field(default_factory=list)
