"""A training in this process with its log. It does not use Ray, so breakpoints work."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

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
    callbacks = CallbackList([tracking, terminal])
    status: Status = "FAILED"
    options = {"device": device, "resume": resume, "debug": debug}
    try:
        with terminal, _ctrl_c(terminal, debug) as stop:
            result = fit(config, local(data), run_dir, callbacks, stop=stop, **options)
        if stop() and result.step < config.train.steps:
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
def _ctrl_c(terminal: ProgressBar, debug: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts.

    Does nothing if a debugger or host program handles the signal.
    """
    pressed = threading.Event()
    default = signal.default_int_handler
    in_main = threading.current_thread() is threading.main_thread()
    if debug or not in_main or signal.getsignal(signal.SIGINT) is not default:
        yield pressed.is_set
        return

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        terminal.say("Ctrl-C: ends after this step, with a checkpoint. Again: ends now.")

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, default)
