"""Fixtures of all tests; jaxtyping checks the annotated shapes while tests run."""

from jaxtyping import install_import_hook

CHECKED = ["cutslots.qp", "cutslots.nn", "cutslots.models", "cutslots.metrics"]
install_import_hook(CHECKED, "beartype.beartype")

import os  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from fixtures_runs import copy_database, make_run  # noqa: E402, F401

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


RAY = ("browser", "cluster", "sweep")  # folders of tests that start Ray, or stop all of this user


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # A file's tests stay together, for the sake of what they share.
        starts_ray = item.get_closest_marker("ray") or Path(item.path).parent.name in RAY
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray else Path(item.path).stem))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the folders of screenshots; the processes of pytest-xdist cannot print."""
    reports = (report for some in terminalreporter.stats.values() for report in some)
    noted = (note for report in reports for note in getattr(report, "user_properties", ()))
    for folder in sorted({value for name, value in noted if name == "screenshots"}):
        terminalreporter.write_line(f"screenshots: {folder}")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the home folder of the person who runs it."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path_factory.mktemp("factors")))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)  # Ray sets it for subprocesses too
