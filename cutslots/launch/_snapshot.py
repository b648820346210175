"""What is known of a sweep at one moment: its trials, what the journals of the running ones tell, and what follows from it."""

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cutslots.runlog.latest import Latest

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
