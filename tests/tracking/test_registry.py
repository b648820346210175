"""Registered models: versions, and which is the champion."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import client, local

from cutslots import data, options
from cutslots.data.sources import scenes
from cutslots.errors import InputError
from cutslots.runs.train import train_run
from cutslots.tracking import Registered, RunLog, default_uri, find_run, register
from cutslots.train import predict
from cutslots.train.config import preset

NAME = "cutslots-scenes"
TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "optim.batch_size=8",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, made_home: Path) -> Path:
    """The folder of a run of two steps, and in it the model as MLflow stores it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copyfile(made_home / "mlflow.db", folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data.prepare("scenes", None, folder / "data", scenes.Options(count=50, size=32))
        config = preset("small")
        for assignment in (*TINY, "train.steps=2"):
            config = options.override(config, assignment)
        train_run(config, folder / "data", folder / "run", experiment="scenes", device="cpu")
    return folder / "run"


@pytest.fixture
def with_model(trained: Path, opened: Callable[..., RunLog]) -> Callable[..., str]:
    """Makes a run that has the trained model, and gives its id."""

    def made(name: str, **metrics: float) -> str:
        log = opened(name)
        log.tags({"signature": f"s-{name}"})
        log.metrics(2, {f"best/{metric}": value for metric, value in metrics.items()})
        log.artifact(trained / "mlflow-model", "model")
        assert log.close() == 0
        assert log.run_id is not None
        return log.run_id

    return made


def test_the_champion_is_what_mlflow_loads(
    trained: Path, with_model: Callable[..., str], tracked: Callable[[str], None]
) -> None:
    import mlflow.pyfunc

    from cutslots.train import load_model

    run_id = with_model("first")
    assert register(NAME, run_id, "ari_fg", 0.5) == Registered(1, True)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    tracked(default_uri())
    masks = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(images)
    np.testing.assert_array_equal(masks, predict(load_model(trained), images)["masks"])
    version = client(default_uri()).get_model_version(NAME, "1")
    assert version.run_id == run_id
    assert version.tags == {
        "metric": "ari_fg",
        "value": "0.5",
        "run": "first",
        "signature": "s-first",
    }


def test_a_run_has_one_version_and_the_better_one_is_champion(
    home: Path, with_model: Callable[..., str]
) -> None:
    first = with_model("first")
    assert register(NAME, first, "ari_fg", 0.5) == Registered(1, True)
    assert register(NAME, first, "ari_fg", 0.6) == Registered(1, True)
    assert local(home).get_model_version(NAME, "1").tags["value"] == "0.6"
    assert register(NAME, with_model("worse"), "ari_fg", 0.55) == Registered(2, False)
    assert register(NAME, with_model("equal"), "ari_fg", 0.6) == Registered(3, False)
    better = with_model("better")
    assert register(NAME, better, "ari_fg", 0.7) == Registered(4, True)
    assert register(NAME, first, "ari_fg", 0.6) == Registered(1, False)
    assert register("cutslots-other", better, "ari_fg", 0.1) == Registered(1, True)
    assert local(home).get_model_version_by_alias(NAME, "champion").run_id == better
    assert len(local(home).search_model_versions(f"name = '{NAME}'")) == 4


def test_smaller_is_better(with_model: Callable[..., str]) -> None:
    assert register(NAME, with_model("first"), "mse", 10.0) == Registered(
        1, True
    )
    assert register(NAME, with_model("worse"), "mse", 11.0) == Registered(
        2, False
    )
    assert register(NAME, with_model("better"), "mse", 9.0) == Registered(
        3, True
    )


def test_another_metric_asks_the_champions_run(with_model: Callable[..., str]) -> None:
    assert register(NAME, with_model("first", miou=0.4), "ari_fg", 0.9) == Registered(1, True)
    assert register(NAME, with_model("worse"), "miou", 0.3) == Registered(2, False)
    assert register(NAME, with_model("unknown"), "video_ari", 0.1) == Registered(3, True)


def lose_version(store: Any, home: Path, run_id: str) -> None:
    store.delete_model_version(NAME, "1")


def lose_alias(store: Any, home: Path, run_id: str) -> None:
    store.delete_registered_model_alias(NAME, "champion")


def lose_run(store: Any, home: Path, run_id: str) -> None:
    store.delete_run(run_id)


def lose_files(store: Any, home: Path, run_id: str) -> None:
    (home / "artifacts" / "e" / run_id / "artifacts" / "model" / "MLmodel").unlink()


def spoil_value(store: Any, home: Path, run_id: str) -> None:
    store.set_model_version_tag(NAME, "1", "value", "very good")


def point_elsewhere(store: Any, home: Path, run_id: str) -> None:
    store.create_model_version(NAME, str(home), await_creation_for=0)
    store.set_registered_model_alias(NAME, "champion", "2")


@pytest.mark.parametrize(
    "lose", [lose_version, lose_alias, lose_run, lose_files, spoil_value, point_elsewhere]
)
def test_a_champion_of_no_use_gives_way(
    lose: Callable[..., None], home: Path, with_model: Callable[..., str]
) -> None:
    first = with_model("first")
    assert register(NAME, first, "ari_fg", 0.9) == Registered(1, True)
    lose(local(home), home, first)
    registered = register(NAME, with_model("second"), "ari_fg", 0.5)
    assert registered.is_champion
    assert (
        int(local(home).get_model_version_by_alias(NAME, "champion").version)
        == registered.version
        > 1
    )


def test_what_cannot_be_registered(
    home: Path, opened: Callable[..., RunLog], with_model: Callable[..., str]
) -> None:
    log = opened("no model")
    assert log.close() == 0
    assert log.run_id is not None
    with pytest.raises(
        InputError,
        match="it has no model in MLflow. If its folder has one, deliver that first: cutslots sync",
    ):
        register(NAME, log.run_id, "ari_fg", 0.5)
    with pytest.raises(InputError, match="cannot be registered"):
        register(NAME, "0" * 32, "ari_fg", 0.5)
    with pytest.raises(InputError, match="value is nan"):
        register(NAME, log.run_id, "ari_fg", math.nan)
    with pytest.raises(InputError, match="unreachable"):
        register(NAME, log.run_id, "ari_fg", 0.5, tracking_uri="http://127.0.0.1:9")
    assert local(home).search_registered_models() == []


def test_a_trained_run_registers_as_it_is(trained: Path) -> None:
    uri = f"sqlite:///{trained.parent / 'mlflow.db'}"
    store = client(uri)
    (run,) = store.search_runs([store.get_experiment_by_name("scenes").experiment_id])
    found = find_run(run.info.run_id, uri)
    assert found is not None
    assert register(
        NAME, found.run_id, "ari_fg", found.metrics["best/ari_fg"], tracking_uri=uri
    ) == Registered(1, True)
    assert store.get_model_version(NAME, "1").tags["signature"] == found.tags["signature"]
