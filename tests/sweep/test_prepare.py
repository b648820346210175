"""Preparing on a Ray cluster: the same shards, the same faults."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutslots import data
from cutslots.data import parallel
from cutslots.data.sources import scenes
from cutslots.errors import InputError
from cutslots.sweep import prepare as launch


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONBREAKPOINT", ""
        )  # Ray sets it for the whole process; it goes again when the cluster does
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_without_a_cluster_it_is_this_machines_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not launch.connected()
    manifest = launch.prepare("scenes", None, tmp_path / "out", scenes.Options(count=10, size=16))
    assert manifest.split("train").count == 8
    assert "ray" not in sys.modules
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert launch.connected()


@pytest.mark.slow
def test_on_ray_the_shards_are_the_same(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(
        launch, "processes", lambda workers: used.append(workers) or parallel.processes(workers)
    )
    assert launch.connected()
    options = scenes.Options(count=40, size=16)
    alone = data.prepare("scenes", None, tmp_path / "alone", options)
    assert launch.prepare("scenes", None, tmp_path / "ray", options).digest == alone.digest
    assert not used
    launch.prepare("scenes", None, tmp_path / "here", options, workers=1)
    assert used == [1]


@pytest.mark.slow
def test_faults_on_ray_reach_the_caller(cluster: None) -> None:
    def negative(item: int) -> int:
        if item == 30:
            raise InputError("item 30 is strange")
        return -item

    seen = []
    with pytest.raises(InputError, match=r"^item 30 is strange$"):
        seen.extend(launch.on_ray(negative, range(50)))
    assert seen == [-number for number in range(30)]
