"""What this machine is doing."""

import contextlib
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from cutslots.launch._snapshot import Reading, mean

GPU_SECONDS = 5.0  # between two calls of nvidia-smi


class Gpus(NamedTuple):
    """The GPUs of this machine together: mean percent, megabytes of 10^6 bytes."""

    number: int
    use: float | None
    memory: float
    size: float


class Machine:
    """What this machine is doing, in a few words. The GPUs are asked through nvidia-smi: CUDA stays unused in this process."""

    def __init__(self) -> None:
        self._command = shutil.which("nvidia-smi")
        self._asked, self._gpus, self._looked = -math.inf, None, False
        psutil.cpu_percent()  # the first call has nothing to compare with and says 0

    def facts(self, readings: Iterable[Reading]) -> list[str]:
        """CPU, memory and GPU use; without nvidia-smi, what the running trials tell of theirs."""
        memory, cpu = psutil.virtual_memory(), psutil.cpu_percent()
        facts = [f"cpu {cpu:.0f}%"] if self._looked else []
        self._looked = True
        facts.append(f"memory {memory.percent:.0f}% of {memory.total / 1e9:.0f} GB")
        gpus = self._ask()
        if gpus:
            name = "gpu" if gpus.number == 1 else f"{gpus.number} gpus"
            use = "" if gpus.use is None else f" {gpus.use:.0f}%"
            return [*facts, f"{name}{use}, {gpus.memory / 1e3:.1f} of {gpus.size / 1e3:.0f} GB"]
        use = mean(reading.gpu_use for reading in readings)
        return facts if use is None else [*facts, f"gpu of the trials {use:.0f}%"]

    def _ask(self) -> Gpus | None:
        if self._command is None or time.monotonic() - self._asked < GPU_SECONDS:
            return self._gpus
        query = [
            self._command,
            "--query-gpu=utilization.gpu,memory.used,memory.total",
            "--format=csv,noheader,nounits",
        ]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._gpus = gpus(
                subprocess.run(
                    query, capture_output=True, text=True, timeout=5.0, check=True
                ).stdout
            )
        self._asked = time.monotonic()
        return self._gpus


def gpus(table: str) -> Gpus | None:
    """From nvidia-smi's lines "utilization, MiB used, MiB in all"; a split GPU says [N/A] for its use."""
    number = r"\s*(\d+|\[.*?\])\s*"
    found = [
        match.groups()
        for match in re.finditer(rf"^{number},{number},{number}$", table, re.MULTILINE)
    ]
    known = [
        (use, float(used) * 1.048576, float(size) * 1.048576)
        for use, used, size in found
        if (used + size).isdigit()
    ]
    if not known:
        return None
    use = mean(float(use) if use.isdigit() else None for use, _, _ in known)
    return Gpus(
        len(known), use, sum(used for _, used, _ in known), sum(size for _, _, size in known)
    )
