"""What the browser showed is kept, and the end of the tests' output says where."""

import os
from pathlib import Path

import pytest

KEPT = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder for screenshots."""
    given = os.environ.get("CUTSLOTS_SCREENSHOTS")
    folder = Path(given).resolve() if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    request.config.stash[KEPT] = folder
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if KEPT in config.stash:
        terminalreporter.write_line(f"screenshots: {config.stash[KEPT]}")
