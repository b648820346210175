"""A run in this process: what it remembers."""

import json
import shutil
from pathlib import Path

import pytest
from fixtures_runs import train_tiny_run

from cutslots import data
from cutslots.cli import main
from cutslots.data.sources import scenes
from cutslots.files import home


@pytest.mark.slow
def test_run_on_a_uri_is_resumed_without_the_cached_copy(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/dataset"
    data.prepare("scenes", None, tmp_path / "dataset", scenes.Options(count=50, size=32))
    train_tiny_run("far", "--data", uri, steps=1)
    assert json.loads((home() / "runs/far/run.json").read_text())["data"] == uri
    shutil.rmtree(home() / "cache", ignore_errors=True)
    assert main(["train", "scenes", "--resume", "far", "--steps", "2"]) == 0
