"""A run in this process on remote data."""

import json
import shutil

import pytest

from cutslots import data
from cutslots.cli import main
from cutslots.data.sources import scenes
from cutslots.files import home

SMALLEST = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "optim.batch_size=8",
)


@pytest.mark.slow
def test_a_run_on_a_uri_is_resumed_without_the_copy(tmp_path):
    folder = tmp_path / "set"
    data.prepare("scenes", None, folder, scenes.Options(count=50, size=32))
    uri = f"file://{folder}"
    sets = [word for value in SMALLEST for word in ("--set", value)]
    assert main(["train", "scenes", "--data", uri, "--name", "far", "--steps", "1", *sets]) == 0
    assert json.loads((home() / "runs/far/run.json").read_text())["data"] == uri
    shutil.rmtree(home() / "cache")
    assert main(["train", "scenes", "--resume", "far", "--steps", "2"]) == 0
