"""One method at one size in a process of its own, which can be timed, weighed, and ended when it takes too long or too much.

The parent asks, one request at a time, so that methods can be timed in turn while all of them are alive.
"""

import ctypes
import importlib
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutslots.bench._methods import METHODS, weights_bytes
from cutslots.bench._peers import BETA, GAMMA
from cutslots.qp import MinCut, factors
from cutslots.qp.solvers.dct import FFT_FROM

# A step above this is not repeated.
SLOW_SECONDS = 10.0
# Numbers of the truth that are computed at once, in float64.
TRUTH_AT_ONCE = 2**22


class StoppedError(Exception):
    """The method went over a limit or failed; the message says which or how."""


class Worker:
    """The parent's end."""

    def __init__(self, name: str, size: int, device: str, memory: float) -> None:
        # A server that has imported torch and done nothing else forks the workers: each starts at once and inherits no state.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        self.memory = memory
        self.process = context.Process(
            target=_serve, args=(theirs, name, size, device, memory), daemon=True
        )
        self.process.start()
        theirs.close()

    def ask(self, request: str, limit: float, **arguments: float) -> dict[str, Any]:
        """The answer to `build`, `check` or `time`.

        Raises:
            StoppedError: no answer within `limit` seconds, or none at all; the process is gone then.
        """
        try:
            self.connection.send_bytes(json.dumps([request, arguments]).encode())
            if not self.connection.poll(limit):
                raise StoppedError(f"not done after {limit:.0f} s")
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            self.process.join(10)
            raise StoppedError(
                f"the process died with status {self.process.exitcode}, out of memory if -9"
            ) from error
        except StoppedError:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise StoppedError(answer["error"].format(memory=f"{self.memory / 1e9:.1f} GB"))
        return answer

    def close(self) -> None:
        """End the process: it leaves by itself when nobody is there to ask, unless it is busy."""
        self.connection.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()


def inputs(size: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same weights, and derivatives of a loss by the potentials, for every method."""
    weights = torch.rand(batch, 6, size, size, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(batch, size, size, generator=torch.Generator().manual_seed(1))
    return weights.to(device), upstream.to(device)


def errors(
    weights: Tensor, upstream: Tensor, potentials: Tensor, gradient: Tensor | None
) -> dict[str, float]:
    """Relative errors against the closed form in float64, over the whole batch."""
    cut = MinCut(weights.shape[2], weights.shape[3], GAMMA, beta=BETA, solver="dct")
    sums: dict[str, tuple[float, float]] = {}
    at_once = max(1, TRUTH_AT_ONCE // weights[0].numel())
    for some in range(0, len(weights), at_once):
        part = slice(some, some + at_once)
        exact_weights = weights[part].double().requires_grad_()
        exact = cut(exact_weights).potentials
        pairs = {"potentials": (potentials[part], exact.detach())}
        if gradient is not None:
            pairs["gradient"] = (
                gradient[part],
                torch.autograd.grad(exact, exact_weights, upstream[part].double())[0],
            )
        for name, (found, true) in pairs.items():
            wrong, whole = sums.get(name, (0.0, 0.0))
            sums[name] = (
                wrong + float((found - true).square().sum()),
                whole + float(true.square().sum()),
            )
    return {f"{name}_error": (wrong / whole) ** 0.5 for name, (wrong, whole) in sums.items()}


def _serve(connection: Connection, name: str, size: int, device: str, memory: float) -> None:
    sys.stdout = sys.stderr  # some peers print
    side = _Side(name, size, torch.device(device))
    side.warm_up()
    if side.device.type == "cpu" and sys.platform == "linux":
        resource.setrlimit(
            resource.RLIMIT_DATA, (_resident("VmData") + int(memory), resource.RLIM_INFINITY)
        )
    while True:
        try:
            request, arguments = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):  # nobody is there to ask
            return
        try:
            answer = getattr(side, request)(**arguments)
        except Exception as error:
            text = (
                f"{type(error).__name__}: {error}".strip()
                .splitlines()[0]
                .replace("{", "(")
                .replace("}", ")")
            )
            out = isinstance(error, MemoryError) or "memory" in text.lower()
            answer = {"error": "more than its limit of {memory}" if out else text}
        try:
            connection.send_bytes(json.dumps(answer).encode())
        except ConnectionError:
            return


class _Side:
    """The worker's end: every public method is a request."""

    def __init__(self, name: str, size: int, device: torch.device) -> None:
        self.method, self.size, self.device = METHODS[name], size, device

    def warm_up(self) -> None:
        """Load what every method needs, so that none is charged for it."""
        if self.method.module:
            importlib.import_module(self.method.module)
        for side, dtype in itertools.product(
            (4, FFT_FROM), (torch.float32, torch.float64)
        ):  # as products, then by FFT
            weights = torch.rand(
                2, 6, side, side, dtype=dtype, device=self.device, requires_grad=True
            )
            MinCut(side, side)(weights).potentials.sum().backward()

    def build(self) -> dict[str, Any]:
        """Make the solver; how long that took, and whether a factor was found on disk."""
        self.before = self._now()
        stored = len(list(factors.folder().glob("*.safetensors")))
        start = time.perf_counter()
        self.solver = self.method.build(self.size, self.device)
        self._wait()
        seconds = time.perf_counter() - start
        from_disk = self.method.cached and stored == len(
            list(factors.folder().glob("*.safetensors"))
        )
        return {"setup_seconds": seconds, "factor_from_disk": from_disk}

    def check(self, batch: int) -> dict[str, Any]:
        """The first steps of a batch: their results against the truth, time and memory."""
        self.weights, self.upstream = inputs(self.size, batch, self.device)
        results: list[Any] = []
        peak, before = self._peak(lambda: results.append(self._step()))
        seconds, potentials, gradient = results.pop()
        if self.method.tolerance is None:
            found = self.solver.against_max_flow(self.weights)
        else:
            found = errors(self.weights, self.upstream, potentials, gradient)
        del potentials, gradient
        if (
            sum(seconds) <= SLOW_SECONDS
        ):  # now without what the first steps make for good, nor what malloc keeps
            with _malloc_returns_what_is_freed():
                peaks = [self._peak(self._step) for _ in range(4 if sum(seconds) < 1 else 1)]
            peak, before = min(peaks, key=lambda each: each[0] - each[1])
        memory = {
            "memory_bytes": peak - self.before,
            "step_bytes": peak - before + self.weights.nbytes + self.upstream.nbytes,
        }
        return (
            found
            | memory
            | {"weights_bytes": weights_bytes(self.size**2, batch), "times": [seconds]}
        )

    def time(self, seconds: float) -> dict[str, Any]:
        """Steps for about so many seconds, each as its forward and its backward time."""
        times, until = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < until:
            times.append(self._step()[0])
        return {"times": times}

    def _step(self) -> tuple[tuple[float, float], Tensor, Tensor | None]:
        self._wait()
        start = time.perf_counter()
        potentials = self.solver.forward(self.weights)
        self._wait()
        middle = time.perf_counter()
        gradient = (
            self.solver.backward(self.upstream) if self.method.tolerance is not None else None
        )
        self._wait()
        return (middle - start, time.perf_counter() - middle), potentials, gradient

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self, call: Callable[[], object]) -> tuple[int, int]:
        """The most memory in use during a call, and what was in use before it."""
        before = self._now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
        call()
        return torch.cuda.max_memory_allocated(
            self.device
        ) if self.device.type == "cuda" else _resident("VmHWM"), before

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(
                0
            )  # freed memory that malloc holds on to would hide what a step takes
        return _resident("VmRSS")


@contextmanager
def _malloc_returns_what_is_freed() -> Iterator[None]:
    """Then the memory in use is what is alive. Afterwards malloc keeps blocks up to 32 MB, as it learns to by itself."""
    trim_threshold, mmap_threshold = -1, -3
    mallopt = ctypes.CDLL(None).mallopt if sys.platform == "linux" else lambda what, value: None
    mallopt(mmap_threshold, 2**16)
    mallopt(trim_threshold, 2**17)
    yield
    mallopt(mmap_threshold, 2**25)
    mallopt(trim_threshold, 2**26)


def _resident(what: str) -> int:
    """A line of this process's status, in bytes: VmRSS now, VmHWM at most, VmData its own."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
    except OSError:  # no Linux: the most ever, which is all the system tells
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
