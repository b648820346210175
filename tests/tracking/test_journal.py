"""The journal with torn lines and a full disk, and the state that its end shows."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow_stores import points

from cutslots.tracking import RunLog, events, sync
from cutslots.tracking.journal import Latest, latest


def write(folder: Path, *events: dict[str, Any]) -> Path:
    path = folder / "journal.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def metrics(time: int, step: int, **values: float | str) -> dict[str, Any]:
    return {"time": time, "kind": "metrics", "step": step, "values": values}


def test_empty_line_is_no_event(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind":"a"}\n\n{"kind":"b"}\n')
    assert [event["kind"] for event in events(tmp_path)] == ["a", "b"]


def test_incomplete_line_is_removed_when_the_run_is_resumed(
    store: Any, tmp_path: Path, open_log: Callable[..., RunLog]
) -> None:
    log = open_log()
    log.metrics(1, {"loss": 1.0})
    log.close()
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"loss"' + "1" * 100_000)
    assert sync(tmp_path / "run") == 0  # a reader leaves it
    log = open_log()
    log.metrics(3, {"loss": 3.0})
    assert log.close() == 0
    assert points(store, log.run_id, "loss") == [(1, 1.0), (3, 3.0)]
    kinds = [event["kind"] for event in events(tmp_path / "run")]
    assert kinds == ["open", "metrics", "status", "open", "metrics", "status"]


def test_torn_first_line_does_not_end_the_run(
    store: Any, tmp_path: Path, open_log: Callable[..., RunLog]
) -> None:
    (tmp_path / "run").mkdir()
    text = '{"time":1,"ki\n{"time":2,"kind":"metrics","step":0,"values":{"a":1}}\n'
    (tmp_path / "run" / "journal.jsonl").write_text(text)
    log = open_log(say=lambda _: None)
    assert log.close() == 0
    assert store.get_run(log.run_id).data.metrics == {"a": 1.0}


def test_full_disk_does_not_stop_training(open_log: Callable[..., RunLog]) -> None:
    messages: list[str] = []
    log = open_log(say=messages.append)
    real, log._journal._file = log._journal._file, os.open("/dev/full", os.O_WRONLY)
    log.metrics(1, {"loss": 1.0})
    log.metrics(2, {"loss": 1.0})
    os.close(log._journal._file)
    log._journal._file = real
    log.metrics(3, {"loss": 1.0})
    assert log.close() == 0
    assert [event["step"] for event in events(log.run_dir) if event["kind"] == "metrics"] == [3]
    assert sum("No space left" in message for message in messages) == 1


def test_latest_follows_a_run(tmp_path: Path, open_log: Callable[..., RunLog]) -> None:
    def state() -> Latest:
        state = latest(tmp_path / "run")
        assert state is not None
        return state

    assert latest(tmp_path / "run") is None
    log = open_log()
    log.tags({"state": "running", "sweep": "s"})
    log.metrics(1, {"train/loss": 3.0, "val/ari_fg": 0.25})
    log.metrics(2, {"train/loss": 2.0, "bad": math.nan})
    log.tags({"state": "finished"})
    assert math.isnan(state().metrics["bad"][0])
    assert state().metrics["train/loss"] == (2.0, 2)
    assert state().metrics["val/ari_fg"] == (0.25, 1)
    assert state().tags == {"state": "finished", "sweep": "s"}
    assert state().status is None
    assert abs(state().time - time.time()) < 30
    assert log.close("KILLED") == 0
    assert state().status == "KILLED"
    resumed = open_log()
    assert state().status is None
    resumed.close()


def test_latest_skips_torn_lines(tmp_path: Path) -> None:
    path = write(tmp_path, metrics(1000, 1, a=1.0), metrics(2000, 2, a=2.0))
    with open(path, "a") as journal:
        journal.write('{"time":3000,"kind":"metrics","step":3,"values":{"a":3.')
    assert latest(tmp_path) == Latest({"a": (2.0, 2)}, 2.0)
    with open(path, "a") as journal:
        journal.write("\n\n" + json.dumps(metrics(4000, 4, b="Infinity")) + "\n[1]\n")
    assert latest(tmp_path) == Latest({"a": (2.0, 2), "b": (math.inf, 4)}, 4.0)
    for text in ('{"time":1', ""):
        path.write_text(text)
        assert latest(tmp_path) is None


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """The folder of a run with a journal of 10 MB."""
    values = {f"train/metric_{number}": number / 7 for number in range(8)}
    lines = (metrics(step, step, **values) for step in range(50_000))
    assert write(tmp_path, metrics(0, 0, first=1.0), *lines).stat().st_size > 10_000_000
    return tmp_path


def test_latest_reads_only_the_end_in_less_than_two_milliseconds(long_run: Path) -> None:
    state, seconds = None, []
    for _ in range(50):
        start = time.process_time()
        state = latest(long_run)
        seconds.append(time.process_time() - start)
    assert state is not None
    assert state.metrics == {f"train/metric_{n}": (n / 7, 49_999) for n in range(8)}
    assert state.time == 49.999
    assert sorted(seconds)[25] < 0.002  # 0.5 ms on a quiet machine
