"""Timing that holds on a noisy machine: the median of repeated runs, and the runs compared in one process."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(function: Callable[[], object], repeats: int = 11, warmup: int = 2) -> float:
    """The median time of a call."""
    times = []
    for repeat in range(warmup + repeats):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if repeat >= warmup:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resident_megabytes() -> float:
    """This process's resident memory, pages of mapped files included."""
    import psutil

    return psutil.Process().memory_info().rss / 1e6
