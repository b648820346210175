"""Work spread over processes or a Ray cluster: the same results in the same order."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cutslots import data
from cutslots.data import parallel
from cutslots.data.sources import scenes
from cutslots.errors import InputError


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use other processes from the first item on."""
    monkeypatch.setattr(parallel, "ALONE_SECONDS", 0.0)


def process_id(item: object) -> int:
    return os.getpid()


def negative(item: int) -> int:
    if item == 30:
        raise InputError("item 30 is damaged")
    return -item


def die(item: int) -> None:
    os._exit(9)


def broken_items() -> Iterator[int]:
    yield from range(20)
    raise InputError("record 20 is damaged")


def test_at_most_so_many_items_are_submitted() -> None:
    pending, most = set(), []

    def submit(item: int) -> int:
        pending.add(item)
        most.append(len(pending))
        return item

    results = parallel.ordered(submit, lambda item: pending.remove(item) or item, range(20), 4)
    assert list(results) == list(range(20))
    assert max(most) == 4


def test_workers_is_checked_and_little_work_starts_no_process() -> None:
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        parallel.in_order(abs, [], 0)
    for workers in (1, 2):
        assert set(parallel.in_order(process_id, range(5), workers)) == {os.getpid()}


def test_errors_come_after_all_earlier_results(at_once: None) -> None:
    for items, message, count in ((range(50), "item 30", 30), (broken_items(), "record 20", 20)):
        seen = []
        with pytest.raises(InputError, match=message):
            seen.extend(parallel.in_order(negative, items, 2))
        assert seen == [-number for number in range(count)]
    with pytest.raises(InputError, match="a worker process was killed"):
        list(parallel.in_order(die, range(50), 2))


def test_processes_write_the_same_shards(tmp_path: Path, at_once: None) -> None:
    options = scenes.Options(count=40, size=16)
    for workers in (1, 2):
        data.prepare("scenes", None, tmp_path / str(workers), options, workers=workers)
    for path in (tmp_path / "1").iterdir():
        assert (tmp_path / "2" / path.name).read_bytes() == path.read_bytes()


def test_ray_is_used_only_if_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert list(parallel.in_order(abs, [-1])) == [1]
    assert "ray" not in sys.modules


@pytest.mark.slow
@pytest.mark.ray
def test_ray_writes_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("PYTHONBREAKPOINT", "")  # Ray sets it for the whole process
    options = scenes.Options(count=40, size=16)
    one = data.prepare("scenes", None, tmp_path / "one", options, workers=1)

    def small(item: int) -> int:  # a module of tests cannot be imported on the cluster
        if item == 30:
            raise InputError("item 30 is damaged")
        return item

    seen = []
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False):
        assert data.prepare("scenes", None, tmp_path / "ray", options).digest == one.digest
        with pytest.raises(InputError, match=r"^item 30 is damaged$"):
            seen.extend(parallel.in_order(small, range(50)))
    assert seen == list(range(30))


SCRIPT = """
import os, signal, sys, threading, time
from cutslots.data import parallel

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(0.3)

def press():
    time.sleep(float(sys.argv[1]))
    os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    parallel.ALONE_SECONDS = 0
    if len(sys.argv) > 1:
        threading.Thread(target=press, daemon=True).start()
    try:
        list(parallel.in_order(work, range(10_000), 2))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["0.1", "0.4", "1.0"])
def test_ctrl_c_while_processes_start_prints_no_traceback(script: list[str], seconds: str) -> None:
    done = subprocess.run(
        [*script, seconds], capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "interrupted"
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(script: list[str], how: signal.Signals) -> None:
    parent = subprocess.Popen(script, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    workers: set[int] = set()
    while len(workers) < 2:
        workers.add(int(parent.stdout.readline()))
    if how is signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, how)  # as the terminal does for Ctrl-C
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
        parent.poll()
    left = [number for number in workers if psutil.pid_exists(number)]
    for number in left:
        os.kill(number, signal.SIGKILL)
    parent.kill()
    parent.wait()
    assert not left
