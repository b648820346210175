"""Datasets that several tests read."""

from pathlib import Path

import pytest
from raw_files import CLEVR_NAME, clevr_record, write_records

from cutslots.data import prepare, shards
from cutslots.data.sources import scenes


@pytest.fixture(scope="session")
def clevr_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records as DeepMind writes them."""
    path = tmp_path_factory.mktemp("raw") / CLEVR_NAME
    return write_records(path, map(clevr_record, range(10)))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 + 20 + 20 built-in scenes at 32 x 32, at most 37 in a shard."""
    directory = tmp_path_factory.mktemp("prepared") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 37 * 32 * 32 * 4)
        prepare("scenes", None, directory, scenes.Options(count=200, size=32), workers=1)
    return directory
