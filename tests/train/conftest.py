"""Small prepared datasets, and models that take a step in a few milliseconds."""

import sys
from pathlib import Path

import pytest
from tiny_runs import TINY, TINY_VIDEO, changed

from cutslots.data import prepare, sources
from cutslots.train.config import RunConfig, preset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=50, size=32))
    return folder


@pytest.fixture(scope="session")
def other_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "other"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=50, size=32, seed=9))
    return folder


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MOVi-A: 5 training and 4 validation clips of 5 frames, 32 x 32."""
    sys.path.append(str(Path(__file__).parents[1] / "data"))
    from raw_files import write_movi

    root = tmp_path_factory.mktemp("clips")
    write_movi(root / "raw")
    prepare("movi_a", root / "raw", root / "prepared", sources.load("movi_a").Options(size=32))
    return root / "prepared"


@pytest.fixture
def config() -> RunConfig:
    return changed(preset("small"), *TINY)


@pytest.fixture
def video_config() -> RunConfig:
    return changed(preset("small-video"), *TINY_VIDEO)


@pytest.fixture(params=["image", "video"])
def any_config(request: pytest.FixtureRequest) -> RunConfig:
    return request.getfixturevalue("config" if request.param == "image" else "video_config")
