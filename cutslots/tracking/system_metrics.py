"""Load of the machine during a run: CPU, memory, and the GPUs on which this process has memory."""

import contextlib
import sys
import threading
import time
from typing import Any

import psutil

from cutslots.tracking.run_log import RunLog


class SystemMetrics:
    """Samples the machine every `interval` seconds into a run log, under MLflow's names.

    The step is the number of seconds since the run was first opened, so that a resumed run
    continues its curves. Close it before the run log.
    """

    def __init__(self, log: RunLog, interval: float = 10.0) -> None:
        self._log, self._interval, self._stop = log, interval, threading.Event()
        psutil.cpu_percent()  # the first call only starts the measurement
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._interval)  # samples at the end, too, for short runs
            with contextlib.suppress(Exception):  # a missing counter must not stop a training
                self._log.metrics(int(time.time() - self._log.started), sample())


def sample() -> dict[str, float]:
    """The present load in percent or megabytes (10^6 bytes), as each name says."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "process_rss_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    # Querying a GPU that this process does not use would allocate half a gigabyte there.
    torch: Any = sys.modules.get("torch")
    for gpu in range(torch.cuda.device_count()) if torch and torch.cuda.is_initialized() else ():
        if torch.cuda.memory_reserved(gpu):
            free, total = torch.cuda.mem_get_info(gpu)
            values[f"gpu_{gpu}_memory_usage_megabytes"] = (total - free) / 1e6
            values[f"gpu_{gpu}_memory_usage_percentage"] = 100 * (total - free) / total
            with contextlib.suppress(Exception):  # needs nvidia-ml-py
                values[f"gpu_{gpu}_utilization_percentage"] = float(torch.cuda.utilization(gpu))
    return {f"system/{name}": value for name, value in values.items()}
