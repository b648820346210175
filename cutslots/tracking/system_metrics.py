"""What the machine was doing while a run went on."""

import contextlib
import sys
import threading
import time
from typing import Self

import psutil

from cutslots.tracking.run_log import RunLog


class SystemMetrics:
    """Samples the machine every `interval` seconds into a run log, under the names MLflow uses, until closed.

    The step of a sample is the seconds since the run was first opened, so that a resumed run continues its curves.
    GPUs are those on which this process holds memory.
    """

    def __init__(self, log: RunLog, interval: float = 10.0) -> None:
        self._log, self._interval = log, interval
        self._process = psutil.Process()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call has nothing to compare with and says 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop sampling. Close before the run log."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(
                self._interval
            )  # a last sample at the end: short runs have one too
            # A counter the machine lacks, or a log closed first, is no reason to disturb a training.
            with contextlib.suppress(Exception):
                self._log.metrics(int(time.time() - self._log.started), self.sample())

    def sample(self) -> dict[str, float]:
        """The present numbers: percent, or megabytes of 10^6 bytes, as each name says."""
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        disk = psutil.disk_usage(str(self._log.run_dir))
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_rss_megabytes": self._process.memory_info().rss / 1e6,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        if network is not None and self._network is not None:  # None on a machine without a network
            numbers["network_receive_megabytes"] = (
                network.bytes_recv - self._network.bytes_recv
            ) / 1e6
            numbers["network_transmit_megabytes"] = (
                network.bytes_sent - self._network.bytes_sent
            ) / 1e6
        return {f"system/{name}": value for name, value in (numbers | _gpus()).items()}


def _gpus() -> dict[str, float]:
    torch = sys.modules.get("torch")
    # Asking a GPU that this process does not use would put a context of half a gigabyte on it.
    if torch is None or not torch.cuda.is_initialized():
        return {}
    numbers = {}
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index) == 0:
            continue
        free, total = torch.cuda.mem_get_info(index)
        numbers[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / 1e6
        numbers[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
        try:
            numbers[f"gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
        except Exception:  # torch needs nvidia-ml-py for it; a run is not worth less without
            continue
    return numbers
