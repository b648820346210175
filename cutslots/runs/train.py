"""One training in this process with its log: no Ray, so breakpoints work."""

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
    """Run `fit` with progress at the terminal and everything in MLflow: parameters, metrics, data, figures and the best model.

    The first Ctrl-C ends it after the step that it is at, with a checkpoint; a second one, or with `debug` the first, interrupts.

    What a resumed run may change (`RESUMABLE`) is in MLflow's tags, the other options are its parameters. With `debug` nothing
    draws over a debugger's prompt and no thread samples the machine. The run remembers `data` as it is given, a prepared
    folder or the URI of one: the copy of what a URI names may be gone when the run is resumed.

    Raises: what `fit` raises; the run is then marked FAILED (KILLED when interrupted) and stays resumable.
    """
    terminal = terminal or ProgressBar(live=not debug)
    tracking = MLflowCallback(config, data, run_dir, experiment, terminal, system_metrics=not debug)
    status: Status = "FAILED"
    try:
        callbacks = CallbackList([tracking, terminal])
        with terminal, _stop_sign(terminal, debug) as stop:
            result = fit(
                config,
                local(data),
                run_dir,
                callbacks,
                device=device,
                resume=resume,
                debug=debug,
                stop=stop,
            )
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
def _stop_sign(terminal: ProgressBar, debug: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one is a KeyboardInterrupt. Left alone where a debugger or a host program hears it."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    pressed = threading.Event()
    if debug or not ours:
        yield pressed.is_set
        return

    def stop(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        terminal.say("Ctrl-C: ends after this step, with a checkpoint; once more ends it now")

    signal.signal(signal.SIGINT, stop)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
