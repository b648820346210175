"""The newest state of a run from the end of its journal."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cutslots.tracking import RunLog
from cutslots.tracking.journal import Latest, latest


def write(folder: Path, *events: dict) -> Path:
    path = folder / "journal.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def metrics(moment: int, step: int, **values: float | str) -> dict:
    return {"time": moment, "kind": "metrics", "step": step, "values": values}


def test_what_a_run_log_writes(home: Path, tmp_path: Path, opened: Callable[..., RunLog]) -> None:
    assert latest(tmp_path / "run") is None
    log = opened()
    log.tags({"state": "running", "sweep": "s"})
    log.metrics(1, {"train/loss": 3.0, "val/ari_fg": 0.25})
    log.metrics(2, {"train/loss": 2.0, "bad": math.nan})
    log.tags({"state": "finished"})
    found = latest(tmp_path / "run")
    assert found is not None
    assert math.isnan(found.metrics.pop("bad")[0])
    assert found.metrics == {"train/loss": (2.0, 2), "val/ari_fg": (0.25, 1)}
    assert found.tags == {"state": "finished", "sweep": "s"}
    assert found.status is None
    assert abs(found.time - time.time()) < 30
    assert log.close("KILLED") == 0
    found = latest(tmp_path / "run")
    assert found is not None
    assert found.status == "KILLED"
    again = opened()
    found = latest(tmp_path / "run")
    assert found is not None
    assert found.status is None  # it was opened again
    again.close()


def test_torn_lines_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, metrics(1000, 1, a=1.0), metrics(2000, 2, a=2.0))
    whole = latest(tmp_path)
    with open(path, "a") as journal:
        journal.write('{"time":3000,"kind":"metrics","step":3,"values":{"a":3.')
    assert latest(tmp_path) == whole == Latest({"a": (2.0, 2)}, 2.0)
    with open(
        path, "a"
    ) as journal:  # a full disk tore it for good, and the next line started afresh
        journal.write("\n\n" + json.dumps(metrics(4000, 4, b="Infinity")) + "\n[1]\n")
    assert latest(tmp_path) == Latest({"a": (2.0, 2), "b": (math.inf, 4)}, 4.0)
    path.write_text('{"time":1')
    assert latest(tmp_path) is None
    path.write_text("")
    assert latest(tmp_path) is None


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """A journal of ten megabytes."""
    numbers = {f"train/metric_{number}": number / 7 for number in range(8)}
    path = write(
        tmp_path,
        metrics(0, 0, **{"only/at_first": 1.0}),
        *(metrics(step, step, **numbers) for step in range(50_000)),
    )
    assert path.stat().st_size > 10_000_000
    return tmp_path


def test_only_the_end_is_read(long_run: Path) -> None:
    found = latest(long_run)
    assert found is not None
    assert found.metrics == {f"train/metric_{number}": (number / 7, 49_999) for number in range(8)}
    assert found.time == 49.999


def test_twenty_runs_a_second_cost_little(long_run: Path) -> None:
    seconds = []
    for _ in range(50):
        start = time.process_time()
        latest(long_run)
        seconds.append(time.process_time() - start)
    assert sorted(seconds)[25] < 0.002  # 0.5 ms on a quiet machine
