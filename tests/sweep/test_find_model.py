"""How a person names a model, and what is known of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cutslots import data, options
from cutslots.data.sources import scenes
from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.lookup import find_model
from cutslots.runs.provenance import log_scores, origin
from cutslots.runs.train import train_run
from cutslots.tracking import add_metrics, default_uri, fetch_model, find_runs, register
from cutslots.train import checkpoint, load_model, predict
from cutslots.train.config import preset

SMALLEST = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "optim.batch_size=8",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished run, `first`, its scores on a test split, and its model in the registry."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data.prepare(
            "scenes",
            None,
            folder / "data" / "scenes",
            scenes.Options(count=50, size=32, style="textured"),
        )
        config = preset("small")
        for assignment in (*SMALLEST, "train.steps=4", "train.eval_every=2"):
            config = options.override(config, assignment)
        train_run(
            config,
            folder / "data" / "scenes",
            folder / "runs" / "first",
            experiment="scenes",
            device="cpu",
        )
        log_scores(
            find_model("first"), "clevrtex_camo", "test", {"ari_fg": 0.25, "num_images": 2000.0}
        )
        (run,) = find_runs()
        register("cutslots-scenes", run.run_id, "ari_fg", 0.5)
    return folder


@pytest.fixture
def run_id(made: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the run, in a test that works in its home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(made))
    (run,) = find_runs()
    return run.run_id


def masks(path: Path) -> np.ndarray:
    return predict(load_model(path), IMAGES)["masks"]


def test_every_name_is_the_same_model(
    made: Path, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = masks(made / "runs" / "first" / "checkpoints" / checkpoint.BEST)
    best = made / "runs" / "first" / "checkpoints" / checkpoint.BEST
    for reference in ("first", str(made / "runs" / "first"), str(best), run_id):
        assert find_model(reference) == best
    assert find_model(str(made / "runs" / "first" / "model")) == made / "runs" / "first" / "model"
    (tmp_path / "first").mkdir()  # of pictures, say
    monkeypatch.chdir(tmp_path)
    assert find_model("first") == best
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="nor an exported model at photos"):
        find_model("photos")
    addresses = (
        "models:/cutslots-scenes@champion",
        "models:/cutslots-scenes/1",
        f"runs:/{run_id}",
        f"runs:/{run_id}/model",
    )
    for reference in addresses:
        folder = find_model(reference)
        assert folder.is_relative_to(home() / "cache")
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "fetched.json",
            "weights.safetensors",
        ]
        np.testing.assert_array_equal(masks(folder), truth)


def test_a_run_whose_folder_is_elsewhere_is_fetched(made: Path, run_id: str) -> None:
    truth = masks(find_model("first"))
    shutil.move(made / "runs" / "first", made / "away")
    try:
        folder = find_model(run_id)
        assert folder.is_relative_to(home() / "cache")
        np.testing.assert_array_equal(masks(folder), truth)
    finally:
        shutil.move(made / "away", made / "runs" / "first")


def test_what_is_known_goes_with_the_model(made: Path, run_id: str, tmp_path: Path) -> None:
    best = find_model("first")
    state = checkpoint.load(best)
    known = origin(best)
    (run,) = find_runs()
    assert run.tags["set"] == known["trained_on"] == "scenes_textured"
    assert run.tags["data_digest"] == known["data_digest"] == state["data_digest"]
    assert {name: known[name] for name in ("run", "signature", "step")} == {
        "run": "first",
        "signature": state["signature"],
        "step": state["step"],
    }
    assert known["commit"] == run.tags["commit"]
    assert known["scores"]["validation"] == {
        name: value for name, value in state["best"].items() if name != "step"
    }
    assert known["scores"]["clevrtex_camo test"] == {"ari_fg": 0.25, "num_images": 2000.0}
    # The registry tells the same; the exported folder what was known when it was written.
    fetched = origin(find_model("models:/cutslots-scenes@champion"))
    assert fetched.pop("scores") == {
        where: pytest.approx(values) for where, values in known["scores"].items()
    }
    assert fetched == {name: value for name, value in known.items() if name != "scores"}
    exported = origin(made / "runs" / "first" / "model")
    assert exported["signature"] == known["signature"]
    assert list(exported["scores"]) == ["validation"]
    # A checkpoint by itself knows its training, and no more.
    shutil.copyfile(best, tmp_path / "lone.pt")
    assert set(origin(tmp_path / "lone.pt")) == {"signature", "step", "data_digest", "scores"}
    # The best scores are not those of another checkpoint.
    other = tmp_path / "other.pt"
    checkpoint.save(other, {**state, "step": state["step"] + 1}, 9)
    assert origin(other)["scores"] == {}


def test_scores_of_a_fetched_model_go_to_its_run(made: Path, run_id: str) -> None:
    log_scores(
        find_model("models:/cutslots-scenes@champion"), "elsewhere", "test", {"ari_fg": 0.75}
    )
    log_scores(find_model(f"runs:/{run_id}"), "elsewhere", "val", {"ari_fg": 0.5}, partial=True)
    (run,) = find_runs()
    assert {name: value for name, value in run.metrics.items() if name.startswith("elsewhere")} == {
        "elsewhere/test/ari_fg": 0.75
    }
    assert run.status == "FINISHED"
    assert not add_metrics("0" * 32, 1, {"ari_fg": 0.75})


def test_a_registered_name_is_looked_up_anew(made: Path, run_id: str) -> None:
    folder = fetch_model("models:/cutslots-scenes@champion")
    assert json.loads((folder / "fetched.json").read_text())["version"] == 1
    (folder / "config.json").write_text("{}")
    fetch_model("models:/cutslots-scenes@champion")
    assert masks(folder).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/nothing@champion", "MLflow has no model models:/nothing@champion"),
        (
            "models:/cutslots-scenes@challenger",
            "MLflow has no model models:/cutslots-scenes@challenger",
        ),
        ("models:/cutslots-scenes/7", "MLflow has no model models:/cutslots-scenes/7"),
        ("models:/cutslots-scenes", "is no address of a model in MLflow. Give models:/NAME@ALIAS"),
        ("runs:/" + "0" * 32, "MLflow has no model runs:/000"),
        ("0" * 32, "no run, checkpoint or model"),
        ("nothing", "not a model's address in MLflow such as models:/NAME@champion"),
    ],
)
def test_what_is_not_there(reference: str, message: str, run_id: str) -> None:
    with pytest.raises(InputError, match=message):
        find_model(reference)


def test_files_that_are_gone_and_a_store_that_was_never_made(
    made: Path, run_id: str, tmp_path: Path, monkeypatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(default_uri())
    client.create_registered_model("foreign")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pkl").write_bytes(b"")
    client.create_model_version("foreign", (tmp_path / "foreign").as_uri(), await_creation_for=0)
    with pytest.raises(InputError, match="it is not a model of cutslots"):
        find_model("models:/foreign/1")
    without = client.create_run("0").info.run_id
    with pytest.raises(InputError, match=f"MLflow has no model runs:/{without}: "):
        find_model(without)
    client.delete_run(without)
    shutil.rmtree(tmp_path / "foreign")
    with pytest.raises(
        InputError, match="MLflow has no model models:/foreign/1: .*No such artifact"
    ):
        find_model("models:/foreign/1")
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "new"))
    with pytest.raises(InputError, match="there is no tracking store at sqlite:"):
        find_model("models:/foreign/1")
