"""Fixtures: real sweeps in their own processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driver_process import DriverProcess

from cutslots.data import prepare, sources


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=60, size=32))
    return folder


@pytest.fixture
def sweep(
    scenes: Path, copy_database: Callable[[Path], Path], tmp_path: Path
) -> Iterator[Callable[..., DriverProcess]]:
    """Starts sweeps, each with its own home folder."""
    with sweeps(scenes, copy_database, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def compared(
    scenes: Path,
    copy_database: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[int, DriverProcess]]:
    """The finished sweep `workers.py` with one and with two workers per trial."""
    with sweeps(scenes, copy_database, tmp_path_factory.mktemp("compared")) as make:
        drivers = {number: make("workers.py") for number in (1, 2)}
        for number, driver in drivers.items():
            status = driver.run("--retries", "0", "--workers-per-trial", str(number))
            assert status == 0, driver.output()
        yield drivers


@contextmanager
def sweeps(
    scenes: Path, copy_database: Callable[[Path], Path], folder: Path
) -> Iterator[Callable[..., DriverProcess]]:
    """Starts sweeps, and kills their remaining processes at the end."""
    drivers: list[DriverProcess] = []

    def make(file: str = "tiny.py", env: dict[str, str] | None = None) -> DriverProcess:
        home = copy_database(folder / f"home-{len(drivers)}")
        drivers.append(DriverProcess(home, scenes, file, env))
        return drivers[-1]

    try:
        yield make
    finally:
        for driver in drivers:
            driver.kill_rest()
