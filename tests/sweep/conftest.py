"""Fixtures: real sweeps in their own processes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driver_process import DriverProcess

from cutslots.data import prepare, sources
from cutslots.tracking import RunLog


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared scenes and with a database, which takes MLflow seconds to make."""
    folder = tmp_path_factory.mktemp("made")
    prepare("scenes", None, folder / "scenes", sources.load("scenes").Options(count=60, size=32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert (
            RunLog(folder / "home" / "run", experiment="first", run_name="first").close(timeout=120)
            == 0
        )
    return folder


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Iterator[Callable[..., DriverProcess]]:
    """Starts sweeps, each with its own home folder."""
    with sweeps(made, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def compared(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, DriverProcess]]:
    """The finished sweep `workers.py` with one and with two workers per trial."""
    with sweeps(made, tmp_path_factory.mktemp("compared")) as make:
        found = {1: make("workers.py"), 2: make("workers.py")}
        for number, driver in found.items():
            assert driver.run("--retries", "0", "--workers-per-trial", str(number)) == 0, (
                driver.output()
            )
        yield found


@contextmanager
def sweeps(made: Path, folder: Path) -> Iterator[Callable[..., DriverProcess]]:
    """Starts sweeps, and kills their remaining processes at the end."""
    every: list[DriverProcess] = []

    def make(file: str = "tiny.py", env: dict[str, str] | None = None) -> DriverProcess:
        home = folder / f"home-{len(every)}"
        home.mkdir()
        shutil.copyfile(made / "home" / "mlflow.db", home / "mlflow.db")
        every.append(DriverProcess(home, made / "scenes", file, env))
        return every[-1]

    try:
        yield make
    finally:
        for each in every:
            each.kill_rest()
