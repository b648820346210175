"""Measurement: time, memory, the machine, and one process per measurement."""

import ctypes
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from torch.utils.benchmark import Measurement, Timer

from cutslots.errors import InputError, nearest
from cutslots.files import git_commit
from cutslots.report.tables import Table


def measure(call: Callable[[], object], min_run_time: float = 0.5) -> Measurement:
    """Time a call repeatedly for at least `min_run_time` seconds, synchronised with the GPU."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time)


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds: PyTorch's on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # malloc keeps freed blocks
    return psutil.Process().memory_info().rss


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call holds at its peak beyond those in use before; on a CPU, Linux only."""
    before = memory_in_use(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return 0
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident size
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return max(0, peak - before)


def isolated(module: str, *arguments: object, timeout: float) -> dict[str, Any]:
    """Run `python -m module arguments...`, which prints its results as JSON in its last line.

    Returns: the results and `status` "measured"; or `status` "stopped" and the `reason`: an
        error, the time limit, or a signal.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    # Threads that spin while they wait slow down everything else on a busy machine.
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired:
        return {"status": "stopped", "reason": f"not finished after {timeout:g} s"}
    if done.returncode == 0:
        return {"status": "measured"} | json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        reason = f"killed by signal {-done.returncode}, usually out of memory"
    else:  # the last line of the traceback that begins in the first column is the error
        lines = [line for line in done.stderr.splitlines() if line[:1].strip()]
        reason = lines[-1][:300] if lines else f"exited with status {done.returncode}"
    return {"status": "stopped", "reason": reason}


def check_names(option: str, names: Sequence[str], allowed: Collection[str]) -> None:
    """Raise an InputError for a name that an option does not allow."""
    for name in names:
        if name not in allowed:
            raise InputError(f"{option} has {name!r}. {nearest(name, list(allowed))}")


def show(rows: Sequence[dict[str, Any]], *columns: str) -> None:
    """Print a table of the rows that have these columns, and the reasons why others are missing."""
    cells = [
        [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows
        if "reason" not in row
    ]
    console = Console()
    console.width = max(console.width, 120)  # piped output too
    console.print(Table(columns, cells, columns[1:]).rich())
    for row in rows:
        if "reason" in row:
            print(*row.values(), sep=", ")


def provenance() -> dict[str, Any]:
    """What produced a result: command, commit, time and machine."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "command": shlex.join(["cutslots", *sys.argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": model[1] if model else platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load": os.getloadavg()[0],
        },
    }
