"""References to models and runs, and the provenance of a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures_runs import train_tiny_run

from cutslots import data
from cutslots.cli import main
from cutslots.data.sources import scenes
from cutslots.errors import InputError
from cutslots.files import home
from cutslots.runs.lookup import find_model, stored_run
from cutslots.runs.provenance import log_scores, origin
from cutslots.tracking import default_uri, fetch_model, find_runs, register
from cutslots.train import checkpoint, load_model, predict

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
CHAMPION = "models:/cutslots-scenes@champion"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, copy_database: Callable[[Path], Path]) -> Path:
    """A home with a finished run, `first`, scores on a test split, and its model registered."""
    folder = copy_database(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        out = str(folder / "data" / "scenes")
        options = ["--count", "50", "--size", "32", "--style", "textured"]
        assert main(["prepare", "scenes", out, *options]) == 0
        train_tiny_run("first", "--data", out, "--set", "train.eval_every=2", steps=4)
        scores = {"ari_fg": 0.25, "num_images": 2000.0}
        log_scores(find_model("first"), "clevrtex_camo", "test", scores)
        (run,) = find_runs()
        register("cutslots-scenes", run.run_id, "ari_fg", 0.5)
    return folder


@pytest.fixture(autouse=True)
def run_id(made: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the run; tests work in its home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(made))
    (run,) = find_runs()
    return run.run_id


def masks(path: Path) -> np.ndarray:
    return predict(load_model(path), IMAGES)["masks"]


def test_references_to_a_local_model(
    made: Path, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = made / "runs" / "first"
    best = run_dir / "checkpoints" / checkpoint.BEST
    for reference in ("first", str(run_dir), str(best), run_id):
        assert find_model(reference) == best
    assert find_model(str(run_dir / "model")) == run_dir / "model"
    for reference in ("first", str(run_dir), run_id):
        assert stored_run(reference)[0] == run_dir
    (tmp_path / "first").mkdir()  # a folder of images, for example
    monkeypatch.chdir(tmp_path)
    assert find_model("first") == best
    with pytest.raises(InputError, match="no run .*first/model"):
        stored_run(str(run_dir / "model"))


def test_references_to_a_model_in_mlflow(made: Path, run_id: str) -> None:
    expected = masks(find_model("first"))
    registered = (CHAMPION, "models:/cutslots-scenes/1", f"runs:/{run_id}", f"runs:/{run_id}/model")
    folders = [find_model(reference) for reference in registered]
    shutil.move(made / "runs" / "first", made / "away")  # the id of its run means a download
    folders.append(find_model(run_id))
    shutil.move(made / "away", made / "runs" / "first")
    for folder in folders:
        assert folder.is_relative_to(home() / "cache")
        files = sorted(path.name for path in folder.iterdir())
        assert files == ["config.json", "fetched.json", "weights.safetensors"]
        np.testing.assert_array_equal(masks(folder), expected)


def test_origin(made: Path, run_id: str, tmp_path: Path) -> None:
    best = find_model("first")
    state, facts = checkpoint.load(best), origin(best)
    (run,) = find_runs()
    assert run.tags["set"] == facts["trained_on"] == "scenes_textured"
    assert run.tags["data_digest"] == facts["data_digest"] == state["data_digest"]
    assert (facts["run"], facts["commit"]) == ("first", run.tags["commit"])
    assert (facts["signature"], facts["step"]) == (state["signature"], state["step"])
    validation = {name: value for name, value in state["best"].items() if name != "step"}
    assert facts["scores"]["validation"] == validation
    assert facts["scores"]["clevrtex_camo test"] == {"ari_fg": 0.25, "num_images": 2000.0}
    # The registry knows the same, an exported folder what was known when it was written.
    fetched = origin(find_model(CHAMPION))
    scores = {where: pytest.approx(values) for where, values in facts["scores"].items()}
    assert fetched == {**facts, "scores": scores}
    exported = origin(made / "runs" / "first" / "model")
    assert exported["signature"] == facts["signature"]
    assert list(exported["scores"]) == ["validation"]
    # A checkpoint outside a run knows only its training, and its scores if it is the best.
    shutil.copyfile(best, tmp_path / "lone.pt")
    assert set(origin(tmp_path / "lone.pt")) == {"signature", "step", "data_digest", "scores"}
    other = tmp_path / "other.pt"
    checkpoint.save(other, {**state, "step": state["step"] + 1}, 9)
    assert origin(other)["scores"] == {}


def test_scores_of_a_downloaded_model_are_added_to_its_run() -> None:
    log_scores(find_model(CHAMPION), "elsewhere", "test", {"ari_fg": 0.75})
    (run,) = find_runs()
    added = {name: value for name, value in run.metrics.items() if name.startswith("elsewhere")}
    assert added == {"elsewhere/test/ari_fg": 0.75}
    assert run.status == "FINISHED"


def test_registered_name_is_downloaded_each_time() -> None:
    folder = fetch_model(CHAMPION)
    assert json.loads((folder / "fetched.json").read_text())["version"] == 1
    (folder / "config.json").write_text("{}")
    fetch_model(CHAMPION)
    assert masks(folder).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "reference",
    [
        "models:/nothing@champion",
        "models:/cutslots-scenes@challenger",
        "models:/cutslots-scenes/7",
        "models:/cutslots-scenes",
        "runs:/" + "0" * 32,
        "0" * 32,
        "nothing",
    ],
)
def test_unknown_reference(reference: str) -> None:
    with pytest.raises(InputError, match=reference):
        find_model(reference)


def test_models_without_files_or_store(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(default_uri())
    client.create_registered_model("foreign")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pkl").write_bytes(b"")
    client.create_model_version("foreign", (tmp_path / "foreign").as_uri(), await_creation_for=0)
    with pytest.raises(InputError, match="not a cutslots model"):
        find_model("models:/foreign/1")
    without = client.create_run("0").info.run_id
    with pytest.raises(InputError, match=f"runs:/{without}"):
        find_model(without)
    client.delete_run(without)
    shutil.rmtree(tmp_path / "foreign")
    with pytest.raises(InputError, match="models:/foreign/1: .*No such artifact"):
        find_model("models:/foreign/1")
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "new"))
    with pytest.raises(InputError, match="sqlite:.* does not exist"):
        find_model("models:/foreign/1")


@pytest.mark.slow
def test_run_on_a_uri_is_resumed_without_the_cached_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    uri = f"file://{tmp_path}/dataset"
    data.prepare("scenes", None, tmp_path / "dataset", scenes.Options(count=50, size=32))
    train_tiny_run("far", "--data", uri, steps=1)
    assert json.loads((home() / "runs/far/run.json").read_text())["data"] == uri
    shutil.rmtree(home() / "cache", ignore_errors=True)
    assert main(["train", "scenes", "--resume", "far", "--steps", "2"]) == 0
