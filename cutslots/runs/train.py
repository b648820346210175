"""A training in this process with its log. It does not use Ray, so breakpoints work."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cutslots.data import local
from cutslots.runs.mlflow_callback import MLflowCallback
from cutslots.tracking.run_log import Status
from cutslots.train import Result, RunConfig, fit
from cutslots.train.callbacks import CallbackList, ProgressBar


def train_run(
    config: RunConfig,
    data: Path | str,
    run_dir: Path,
    *,
    experiment: str,
    device: str | None = None,
    resume: bool = False,
    debug: bool = False,
    terminal: ProgressBar | None = None,
) -> Result:
    """Run `fit` with a progress bar and a log in MLflow.

    The first Ctrl-C ends it after the current step, with a checkpoint; the second one at once.

    Args:
        data: a prepared folder or its URI; the run stores it as given.
        debug: no progress bar over a debugger's prompt, no thread that samples the machine, and
            the first Ctrl-C interrupts.

    Raises: what `fit` raises. The run is marked FAILED (KILLED if interrupted); it can be resumed.
    """
    terminal = terminal or ProgressBar(live=not debug)
    tracking = MLflowCallback(config, data, run_dir, experiment, terminal, system_metrics=not debug)
    callbacks, pressed = CallbackList([tracking, terminal]), threading.Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        terminal.say("Ctrl-C: ends after this step, with a checkpoint. Again: ends now.")

    # A debugger or host program may handle the signal itself.
    ours = not debug and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ctrl_c = signal_handler(press, *((signal.SIGINT,) if ours else ()))
    status: Status = "FAILED"
    options = {"device": device, "resume": resume, "debug": debug}
    try:
        with terminal, ctrl_c:
            result = fit(config, local(data), run_dir, callbacks, stop=pressed.is_set, **options)
        if pressed.is_set() and result.step < config.train.steps:
            raise KeyboardInterrupt
        tracking.finished(result)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        tracking.ended("interrupted")
        raise
    except Exception as error:
        tracking.ended("failed", str(error))
        raise
    finally:
        tracking.close(status)
    return result


@contextlib.contextmanager
def signal_handler(handle: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Call `handle` on these signals; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
