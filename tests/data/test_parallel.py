"""Work spread over processes: the same results in the same order, faults included."""

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
    """Spread from the first item on."""
    monkeypatch.setattr(parallel, "ALONE_SECONDS", 0.0)


def test_ordered_keeps_order_and_takes_no_more_than_it_may() -> None:
    under_way, most = set(), 0

    def submit(item: int) -> int:
        nonlocal most
        under_way.add(item)
        most = max(most, len(under_way))
        return item

    def result(handle: int) -> int:
        under_way.remove(handle)
        return handle * handle

    assert list(parallel.ordered(submit, result, iter(range(20)), 4)) == [
        number * number for number in range(20)
    ]
    assert most == 4
    assert list(parallel.ordered(submit, result, [], 4)) == []


def test_a_fault_comes_behind_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise InputError("record 3 is damaged")

    def result(handle: int) -> int:
        if handle == 7:
            raise InputError("item 7 is strange")
        return handle

    seen = []
    with pytest.raises(InputError, match="record 3 is damaged"):
        seen.extend(parallel.ordered(int, result, items(), 9))
    assert seen == [0, 1, 2]
    for ahead in (1, 9):
        seen = []
        with pytest.raises(InputError, match="item 7"):
            seen.extend(parallel.ordered(int, result, range(20), ahead))
        assert seen == list(range(7))


def test_one_worker_is_this_process_and_none_is_refused() -> None:
    assert parallel.processes(1) is map
    with pytest.raises(InputError, match="workers is 0"):
        parallel.processes(0)


def test_little_work_starts_no_process() -> None:
    assert set(parallel.processes(2)(_process, range(5))) == {os.getpid()}


def _process(item: object) -> int:
    return os.getpid()


def _negative(item: int) -> int:
    if item == 30:
        raise InputError("item 30 is strange")
    return -item


def _die(item: int) -> None:
    os._exit(9)


def test_processes_give_the_same_shards(tmp_path: Path, at_once: None) -> None:
    options = scenes.Options(count=40, size=16)
    alone = data.prepare("scenes", None, tmp_path / "alone", options)
    spread = data.prepare("scenes", None, tmp_path / "spread", options, map=parallel.processes(2))
    assert spread.digest == alone.digest
    for path in (tmp_path / "alone").glob("*.arrow"):
        assert (tmp_path / "spread" / path.name).read_bytes() == path.read_bytes()


def test_faults_of_processes_reach_the_caller(at_once: None) -> None:
    seen = []
    with pytest.raises(InputError, match="item 30 is strange"):
        seen.extend(parallel.processes(2)(_negative, range(50)))
    assert seen == [-number for number in range(30)]
    with pytest.raises(InputError, match="a worker process was killed"):
        list(parallel.processes(2)(_die, range(50)))


SLEEPERS = """
import os, sys, time
from cutslots.data import parallel

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(0.5)

if __name__ == "__main__":
    parallel.ALONE_SECONDS = 0
    list(parallel.processes(2)(work, range(10_000)))
"""


STARTING = """
import os, signal, sys, threading, time
from cutslots.data import parallel

def press():  # while the server from which processes are forked imports what they need
    time.sleep(float(sys.argv[1]))
    os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    parallel.ALONE_SECONDS = 0
    threading.Thread(target=press, daemon=True).start()
    try:
        list(parallel.processes(2)(time.sleep, [0.01] * 10_000))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_ctrl_c_while_processes_start_is_no_traceback(tmp_path: Path, seconds: float) -> None:
    script = tmp_path / "starting.py"
    script.write_text(STARTING)
    command = [sys.executable, str(script), str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
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
