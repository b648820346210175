"""The journal, whatever is torn in it."""

import os
from collections.abc import Callable
from pathlib import Path

from stores import local, points

from cutslots.tracking import RunLog, events, sync


def test_a_line_that_starts_afresh_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind":"a"}\n\n{"kind":"b"}\n')
    assert [event["kind"] for event in events(tmp_path)] == ["a", "b"]


def test_half_line_is_cut_off(home: Path, tmp_path: Path, opened: Callable[..., RunLog]) -> None:
    log = opened()
    log.metrics(1, {"loss": 1.0})
    log.close()
    with open(tmp_path / "run" / "journal.jsonl", "a") as journal:
        journal.write('{"time":1,"kind":"metrics","step":2,"values":{"loss"')
    assert sync(tmp_path / "run") == 0  # a reader leaves it alone
    log = opened()
    log.metrics(3, {"loss": 3.0})
    assert log.close() == 0
    assert points(local(home), log.run_id, "loss") == [(1, 1.0), (3, 3.0)]
    kinds = [event["kind"] for event in events(tmp_path / "run")]
    assert kinds == ["open", "metrics", "status", "open", "metrics", "status"]


def test_torn_first_line_does_not_end_the_run(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").write_text(
        '{"time":1,"ki\n{"time":2,"kind":"metrics","step":0,"values":{"a":1}}\n'
    )
    log = opened(say=lambda _: None)
    assert log.close() == 0
    assert local(home).get_run(log.run_id).data.metrics == {"a": 1.0}


def test_full_disk_does_not_stop_training(opened: Callable[..., RunLog]) -> None:
    said: list[str] = []
    log = opened(say=said.append)
    real, log._journal._file = log._journal._file, os.open("/dev/full", os.O_WRONLY)
    log.metrics(1, {"loss": 1.0})
    log.metrics(2, {"loss": 1.0})
    os.close(log._journal._file)
    log._journal._file = real
    log.metrics(3, {"loss": 1.0})
    assert log.close() == 0
    assert [event["step"] for event in events(log.run_dir) if event["kind"] == "metrics"] == [3]
    assert sum("cannot be written" in line for line in said) == 1
