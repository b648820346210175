"""The journal with torn lines and a full disk, and the state that its end shows."""

import json
import math
import os
import time

from mlflow_stores import points

from cutslots.tracking import events, sync
from cutslots.tracking.journal import Latest, latest


def metrics(time, step, **values):
    return {"time": time, "kind": "metrics", "step": step, "values": values}


def write(folder, *events):
    path = folder / "journal.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_incomplete_line_is_removed_when_the_run_is_resumed(store, tmp_path, open_log):
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


def test_torn_first_line_does_not_end_the_run(store, tmp_path, open_log):
    (tmp_path / "run").mkdir()
    text = '{"time":1,"ki\n\n{"time":2,"kind":"metrics","step":0,"values":{"a":1}}\n'
    (tmp_path / "run" / "journal.jsonl").write_text(text)
    log = open_log(say=lambda _: None)
    assert log.close() == 0
    assert store.get_run(log.run_id).data.metrics == {"a": 1.0}


def test_full_disk_does_not_stop_training(open_log):
    messages = []
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


def test_latest_follows_a_run(tmp_path, open_log):
    assert latest(tmp_path / "run") is None
    log = open_log()
    log.tags({"state": "running", "sweep": "s"})
    log.metrics(1, {"train/loss": 3.0, "val/ari_fg": 0.25})
    log.metrics(2, {"train/loss": 2.0, "minus": -math.inf})
    log.tags({"state": "finished"})
    state = latest(tmp_path / "run")
    assert state is not None
    assert state.metrics == {
        "train/loss": (2.0, 2),
        "val/ari_fg": (0.25, 1),
        "minus": (-math.inf, 2),
    }
    assert state.tags == {"state": "finished", "sweep": "s"}
    assert abs(state.time - time.time()) < 30
    statuses = [state.status]
    for step in (lambda: log.close("KILLED"), open_log):
        step()
        statuses.append(getattr(latest(tmp_path / "run"), "status", "unknown"))
    assert statuses == [None, "KILLED", None]


def test_latest_skips_torn_lines(tmp_path):
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


def test_latest_reads_only_the_end(tmp_path):
    values = {f"train/metric_{number}": number / 7 for number in range(8)}
    lines = (metrics(step, step, **values) for step in range(50_000))
    assert write(tmp_path, metrics(0, 0, first=1.0), *lines).stat().st_size > 10_000_000
    start = time.process_time()
    state = latest(tmp_path)
    assert time.process_time() - start < 0.1  # 2 ms on a quiet machine
    assert state == Latest({name: (value, 49_999) for name, value in values.items()}, 49.999)
