"""Models in MLflow: packaged with a run, registered with a champion."""

import math
import sys

import numpy as np
import pytest
from mlflow_stores import client

from cutslots.errors import InputError
from cutslots.tracking import default_uri, register
from cutslots.train import export

NAME = "cutslots-scenes"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def with_model(home, tmp_path, exported, make_run):
    """Creates a run that has the model; its MLflow id."""
    return lambda name, **metrics: make_run(
        tmp_path / name,
        tags={"signature": f"s-{name}"},
        metrics={f"best/{metric}": value for metric, value in metrics.items()},
        artifacts={"model": exported.with_name("mlflow")},
    )


def test_packaged_model_is_json_and_safetensors(exported):
    suffixes = {path.suffix for path in exported.with_name("mlflow").rglob("*") if path.is_file()}
    assert suffixes == {"", ".json", ".safetensors", ".txt", ".yaml"}  # "" is MLmodel; no pickle


@pytest.mark.parametrize("loader", ["cutslots.tracking", "cutslots.runlog"])
def test_champion_loads_and_predicts(loader, exported, home, with_model, use_store):
    """`cutslots.runlog` is the loader of models that earlier versions logged."""
    import mlflow.pyfunc

    run_id = with_model("first")
    (logged,) = (home / "artifacts" / "e" / run_id).rglob("MLmodel")
    logged.write_text(logged.read_text().replace("cutslots.tracking", loader))
    assert register(NAME, run_id, "ari_fg", 0.5) == (1, True)
    version = client(default_uri()).get_model_version(NAME, "1")
    tags = {"metric": "ari_fg", "value": "0.5", "run": "first", "signature": "s-first"}
    assert (version.run_id, version.tags) == (run_id, tags)
    use_store(default_uri())
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    assert loader in sys.modules
    masks = loaded.predict(IMAGES)
    assert (masks.shape, masks.dtype) == ((3, 32, 32), np.uint8)
    expected = export.predict(export.load_model(exported), IMAGES)["masks"]
    np.testing.assert_array_equal(masks, expected)
    large = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    assert loaded.predict(large).shape == (3, 32, 32)
    with pytest.raises(mlflow.MlflowException, match="schema"):
        loaded.predict(IMAGES.astype(np.float32))


def test_run_has_one_version_and_the_better_one_is_champion(store, with_model):
    first = with_model("first")
    assert register(NAME, first, "ari_fg", 0.5) == (1, True)
    assert register(NAME, first, "ari_fg", 0.6) == (1, True)
    assert store.get_model_version(NAME, "1").tags["value"] == "0.6"
    assert register(NAME, with_model("worse"), "ari_fg", 0.55) == (2, False)
    assert register(NAME, with_model("equal"), "ari_fg", 0.6) == (3, False)
    better = with_model("better")
    assert register(NAME, better, "ari_fg", 0.7) == (4, True)
    assert register(NAME, first, "ari_fg", 0.6) == (1, False)
    assert register("cutslots-other", better, "ari_fg", 0.1) == (1, True)
    assert store.get_model_version_by_alias(NAME, "champion").run_id == better
    assert len(store.search_model_versions(f"name = '{NAME}'")) == 4


def test_smaller_mse_is_better(with_model):
    for version, (value, is_champion) in enumerate([(10.0, True), (11.0, False), (9.0, True)], 1):
        assert register(NAME, with_model(str(value)), "mse", value) == (version, is_champion)


def test_another_metric_is_read_from_the_champions_run(with_model):
    assert register(NAME, with_model("first", miou=0.4), "ari_fg", 0.9) == (1, True)
    assert register(NAME, with_model("worse"), "miou", 0.3) == (2, False)
    assert register(NAME, with_model("unknown"), "video_ari", 0.1) == (3, True)


def lose_files(store, home, run_id):
    (home / "artifacts" / "e" / run_id / "artifacts" / "model" / "MLmodel").unlink()


def register_without_run(store, home, run_id):
    store.create_model_version(NAME, str(home), await_creation_for=0)
    store.set_registered_model_alias(NAME, "champion", "2")


@pytest.mark.parametrize(
    "lose",
    [
        lambda store, home, run_id: store.delete_model_version(NAME, "1"),
        lambda store, home, run_id: store.delete_registered_model_alias(NAME, "champion"),
        lambda store, home, run_id: store.delete_run(run_id),
        lambda store, home, run_id: store.set_model_version_tag(NAME, "1", "value", "very good"),
        lose_files,
        register_without_run,
    ],
)
def test_unusable_champion_is_replaced(lose, home, store, with_model):
    first = with_model("first")
    assert register(NAME, first, "ari_fg", 0.9) == (1, True)
    lose(store, home, first)
    registered = register(NAME, with_model("second"), "ari_fg", 0.5)
    champion = store.get_model_version_by_alias(NAME, "champion")
    assert registered == (int(champion.version), True)
    assert registered.version > 1


def test_rejected_registrations(store, open_log, monkeypatch):
    log = open_log("no model")
    assert log.close() == 0
    with pytest.raises(InputError, match="no model in MLflow.*cutslots sync"):
        register(NAME, log.run_id, "ari_fg", 0.5)
    with pytest.raises(InputError, match="cannot register.*" + "0" * 32):
        register(NAME, "0" * 32, "ari_fg", 0.5)
    with pytest.raises(InputError, match="ari_fg must be finite.*nan"):
        register(NAME, log.run_id, "ari_fg", math.nan)
    assert store.search_registered_models() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="unreachable"):
        register(NAME, log.run_id, "ari_fg", 0.5)
