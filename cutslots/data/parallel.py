"""A map over processes of this machine or a Ray cluster, lazily and with the results in order.

`joblib.Parallel(return_as="generator")` is not used: it starts new work whether or not the results
are consumed, so a slow disk fills the memory, and its workers outlive a killed parent.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any

import joblib

from cutslots.errors import InputError

# Work of fewer seconds stays in this process: starting others takes longer.
ALONE_SECONDS = 2.0
AHEAD = 3  # items submitted for every process, so that none waits while an earlier item takes long


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int | None = None
) -> Iterator[Any]:
    """Yield `function(item)` for all items in their order, computed by several processes.

    An exception of an item, or of the iterator of items, is raised after all earlier results.

    Args:
        workers: processes on this machine, 1 for this one only; None for the connected Ray cluster,
            if any, else one for every core.
    """
    ray = sys.modules.get("ray")
    if workers is None and (os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized())):
        return _on_ray(function, items)
    workers = joblib.cpu_count() if workers is None else workers  # respects cgroups
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}.")
    return map(function, items) if workers == 1 else _on_processes(function, items, workers)


def _on_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    remaining, start = iter(items), time.monotonic()
    while time.monotonic() - start < ALONE_SECONDS:
        first = list(islice(remaining, 1))
        if not first:
            return
        yield function(first[0])
    # Not `fork`, which copies locks that other threads hold. The server imports once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cutslots.data.sources"])
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    try:
        # Ctrl-C interrupts the main thread only, so the processes start in another: interrupted
        # while it starts, a process would print a traceback.
        with ThreadPoolExecutor(1) as starter:
            starter.submit(_start_processes, pool, workers).result()
        submit = partial(pool.submit, function)
        yield from ordered(submit, lambda future: future.result(), remaining, AHEAD * workers)
    except BrokenProcessPool:
        remedy = "Use fewer workers if memory ran out."
        raise InputError(f"a worker process was killed. {remedy}") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_processes(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start all processes of a pool, with Ctrl-C blocked in this thread and in them."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit it
    for _ in range(workers):  # the pool starts one process for each, unless one is idle
        pool.submit(os.getpid)


def _end_with_parent() -> None:
    """End this process when its parent ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _on_ray(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Map over the CPUs of a Ray cluster.

    Raw files that are read there (ClevrTex) need the same path on every node, or a URI.
    """
    import ray
    from ray.exceptions import RayTaskError

    if not ray.is_initialized():
        try:
            ray.init()  # at RAY_ADDRESS
        except (ConnectionError, ValueError, RuntimeError) as error:
            address = f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}"
            raise InputError(f"cannot reach {address}: {error}. Unset it.") from None

    def result(handle: Any) -> Any:
        try:
            return ray.get(handle)
        except RayTaskError as error:
            raise error.cause from None  # without Ray's report around it

    work = ray.remote(lambda item: function(item))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    yield from ordered(work.remote, result, items, AHEAD * cpus)


def ordered(
    submit: Callable[[Any], Any], result: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Yield `result(submit(item))` for all items in order, with at most `ahead` submitted."""
    remaining, pending = iter(items), deque()
    fault: Exception | None = None
    while True:
        while fault is None and len(pending) < ahead:
            try:
                pending.append(submit(next(remaining)))
            except Exception as error:  # also StopIteration, the regular end
                fault = error
        if not pending:
            break
        yield result(pending.popleft())
    if fault is not None and not isinstance(fault, StopIteration):
        raise fault
