"""A small prepared set and a model that takes a step in a few milliseconds."""

import sys
from pathlib import Path

import pytest
from tiny_runs import TINY

from cutslots import options
from cutslots.data import prepare, sources
from cutslots.train.config import RunConfig, preset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=50, size=32))
    return folder


@pytest.fixture
def config() -> RunConfig:
    made = preset("small")
    for assignment in TINY:
        made = options.override(made, assignment)
    return made


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature MOVi-A, prepared: 5 training and 4 validation clips of 5 frames, 32 x 32."""
    sys.path.append(str(Path(__file__).parents[1] / "data"))
    from movi_files import write_folder

    root = tmp_path_factory.mktemp("clips")
    write_folder(root / "raw")
    prepare("movi_a", root / "raw", root / "prepared", sources.load("movi_a").Options(size=32))
    return root / "prepared"


@pytest.fixture
def video_config() -> RunConfig:
    made = preset("small-video")
    for assignment in (*TINY, "num_slots=4", "matching.hidden=16", "optim.batch_size=4"):
        made = options.override(made, assignment)
    return made
