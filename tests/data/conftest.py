"""Datasets that several tests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from clevr_files import CLEVR_NAME, clevr_features, example, write_records

from cutslots.data import Scene, shards
from cutslots.data.sources import scenes


@pytest.fixture(scope="session")
def clevr_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records as DeepMind writes them."""
    path = tmp_path_factory.mktemp("raw") / CLEVR_NAME
    return write_records(path, (example(clevr_features(index)) for index in range(10)))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 + 20 + 20 procedural scenes at 32 x 32 in several shards."""
    directory = tmp_path_factory.mktemp("prepared") / "scenes"
    source = scenes.Scenes(None, scenes.Options(count=200, size=32))
    source.find()
    info = shards.Info("scenes", {}, {}, source.splits())

    def read(done: dict[str, int]) -> Iterator[tuple[str, Scene]]:
        for name, number in source.records(info.ranges, done):
            yield name, source.decode(number, source.options)

    shards.write(read, directory, info, scenes_per_shard=37)
    return directory
