"""Work spread over processes with the results in order: what `prepare` takes for `map`."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import forkserver
from typing import Any, Protocol

from cutslots.errors import InputError

ALONE_SECONDS = (
    2.0  # what is done in less is not worth the start of other processes, which takes longer
)
AHEAD = 3  # items under way for every process, so that none waits while an earlier item takes long


class Map(Protocol):
    """The built-in `map` of one iterable, or a like of it: results lazily, in the order of the items."""

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]: ...


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(workers: int | None = None) -> Map:
    """A map over processes of this machine, begun in this one and spread when it takes its time.

    Args:
        workers: number of processes; None for one a core. One is the built-in `map`.

    Raises:
        InputError: `workers` is below 1; from the map: a process was killed.
    """
    number = num_cores() if workers is None else workers
    if number < 1:
        raise InputError(f"workers is {workers}; it must be at least 1.")
    if number == 1:
        return map

    def spread(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        source, start = iter(items), time.monotonic()
        while (elapsed := time.monotonic() - start) < ALONE_SECONDS and (
            first := list(islice(source, 1))
        ):
            yield function(first[0])
        if elapsed < ALONE_SECONDS:
            return
        # Not `fork`, which would copy the locks of a progress bar's thread; the server imports once for all processes.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["cutslots.data"])
        pool = ProcessPoolExecutor(number, context, initializer=_follow)
        try:
            with _later_interrupted():
                for _ in range(number):  # a process each, unless one is idle already
                    pool.submit(os.getpid)
            yield from ordered(
                lambda item: pool.submit(function, item),
                lambda future: future.result(),
                source,
                AHEAD * number,
            )
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, perhaps for want of memory. Run again with fewer workers."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return spread


def ordered(
    submit: Callable[[Any], Any], result: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """The results of all items in their order.

    Args:
        submit: starts the work on an item and returns a handle of it.
        result: waits for the result of a handle.
        items: taken as they are needed. A fault of theirs comes up behind the results of all items before it, as it
            would in one process.
        ahead: the most items under way.
    """
    source, waiting, fault = iter(items), deque(), None
    while True:
        while fault is None and len(waiting) < ahead:
            try:
                waiting.append(submit(next(source)))
            except Exception as error:  # StopIteration is the good end
                fault = error
        if not waiting:
            break
        yield result(waiting.popleft())
    if not isinstance(fault, StopIteration):
        assert fault is not None
        raise fault


@contextmanager
def _later_interrupted() -> Iterator[None]:
    """Let Ctrl-C wait until processes have started: a half-started one, and the server that forks them, answer with tracebacks."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # which alone may say what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so the server will have it
    pressed = threading.Event()
    try:
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, lambda *_: pressed.set())
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.is_set() and callable(before):
        before(signal.SIGINT, None)


def _follow() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
