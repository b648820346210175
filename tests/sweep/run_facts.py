"""Facts about runs from their folders, also while they run."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cutslots.tracking.journal import events, latest
from cutslots.train import checkpoint, fit
from cutslots.train.config import from_json


def status(run: Path) -> str | None:
    """The status of a run; None while it runs, or if it was killed."""
    state = latest(run)
    return state and state.status


def stretches(run: Path) -> list[list[int]]:
    """The logged steps of every process that has trained in `run`, one after the other."""
    steps: list[list[int]] = []
    for event in events(run):
        if event["kind"] == "open":
            steps.append([])
        elif event["kind"] == "metrics" and "train/loss" in event["values"]:
            steps[-1].append(event["step"])
    return steps


def last_step(run: Path) -> int:
    """The last step that a run has logged."""
    return next((steps[-1] for steps in reversed(stretches(run)) if steps), 0)


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint, 0 without one."""
    paths = checkpoint.steps(run / "checkpoints")
    return int(paths[-1].stem.partition("-")[2]) if paths else 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights and the optimiser's state of a run's last checkpoint, by name."""
    state = checkpoint.newest(run / "checkpoints")
    assert state is not None
    return dict(_tensors({name: state[name] for name in ("model", "optimizer")}))


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def undisturbed(run: Path, data: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of the same run, trained in this process without a stop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(from_json((run / "config.json").read_text()), data, folder, device="cpu")
    finally:
        torch.set_num_threads(threads)
    return weights(folder)


def written(run: Path) -> dict[str, int]:
    """When each checkpoint was written, and how often the run was opened."""
    times = {path.name: path.stat().st_mtime_ns for path in run.glob("checkpoints/*")}
    return {**times, "opened": len(stretches(run))}


def assert_resumed(run: Path, *after: int, end: int = 200) -> None:
    """The run was resumed after each of these steps or later, and logged every step."""
    first, *resumed = stretches(run)
    assert len(resumed) == len(after), [first, *resumed]
    assert all(steps[0] > step for steps, step in zip(resumed, after, strict=True)), resumed
    assert sorted({*first, *itertools.chain(*resumed)}) == list(range(5, end + 1, 5))


def logged(run: Path, name: str) -> dict[int, float]:
    """One of a run's metrics by step."""
    metrics = [event for event in events(run) if event["kind"] == "metrics"]
    return {e["step"]: float(e["values"][name]) for e in metrics if name in e["values"]}
