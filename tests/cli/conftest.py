"""Models and runs that tests of several commands read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures_runs import log_run, save_tiny_model, train_tiny_run

from cutslots.cli import main
from cutslots.tracking import find_runs, register


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported, untrained model."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def trained_home(
    tmp_path_factory: pytest.TempPathFactory, copy_database: Callable[[Path], Path]
) -> Path:
    home = copy_database(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["prepare", "scenes", "--count", "50", "--size", "32"]) == 0
        for name, gamma in (("low", "0.3"), ("high", "0.7")):
            train_tiny_run(name, "--set", f"cut.gamma={gamma}")
        assert main(["evaluate", "low", "--data", "scenes"]) == 0
        tags = {"dataset": "clevrtex", "set": "clevrtex", "model": "min_cut_slots"}
        log_run(home / "runs" / "[tex]", tags=tags, metrics={"best/ari_fg": 0.5, "best/mse": 200})
        (low,) = [run for run in find_runs("tags.dataset = 'scenes'") if run.name == "low"]
        register("cutslots-scenes", low.run_id, "ari_fg", 0.5)
    return home


@pytest.fixture
def trained(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of runs `low` (scored on test and registered) and `high` on scenes, and `[tex]`."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(trained_home))
    return trained_home
