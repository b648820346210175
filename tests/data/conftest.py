"""Data sets that several tests read."""

from collections.abc import Generator
from pathlib import Path

import pytest
from clevr_files import CLEVR_NAME, clevr_features, example, write_records

from cutslots.data import Scene, shards, sources
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
    options = scenes.Options(count=200, size=32)
    info = shards.Info("scenes", {}, {}, scenes.splits(None, options))

    def read(done: dict[str, int]) -> Generator[tuple[str, Scene], None, int]:
        for name, index in sources.indices(info.ranges, done, 200):
            yield name, scenes.render(index, options)
        return 200

    shards.write(read, directory, info, scenes_per_shard=37)
    return directory
