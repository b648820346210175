"""Data, runs, a sweep, factors and an MLflow store of commit f4b9cf5 stay readable and continue.

tests/old_version/README.md describes the files. Only the command line and files are used here.
"""

import hashlib
import json
import platform
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import EARLIER_SMALL
from PIL import Image
from safetensors.numpy import load_file

from cutslots.cli import main
from cutslots.train.config import from_json

HERE = Path(__file__).parent / "old_version"
WRITTEN_IN = "/tmp/cutslots-old"
PATHS = [  # tables and columns of the MLflow store that hold paths
    ("runs", "artifact_uri"),
    ("tags", "value"),
    ("datasets", "dataset_source"),
    ("experiments", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]
with tarfile.open(HERE / "old.tar.xz") as packed:
    RECORD: dict[str, Any] = json.load(packed.extractfile("record.json"))  # type: ignore[arg-type]
FINISHED = next(run for run in RECORD["weights"] if run.startswith("scenes-small-"))
# Options of the presets have changed since.
VIDEO = [text for text in EARLIER_SMALL if "best_metric" not in text]
EARLIER = {"small": EARLIER_SMALL, "small-video": VIDEO}
CHAMPION = "models:/cutslots-scenes@champion"
# Other processors and versions of torch round differently.
MACHINE = [torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine()]
EXACT = RECORD["machine"] == MACHINE
same_machine = pytest.mark.skipif(not EXACT, reason="other processor or torch: other last digits")


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the files of the old version, in use as home and cache of factors."""
    with tarfile.open(HERE / "old.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    for path in (path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl")):
        path.write_text(path.read_text().replace(WRITTEN_IN, str(tmp_path)))
    for path in tmp_path.glob("home/*/*/mlflow.json"):  # all of each journal is in MLflow
        delivered = json.loads(path.read_text())
        delivered["position"] = path.with_name("journal.jsonl").stat().st_size
        path.write_text(json.dumps(delivered))
    with sqlite3.connect(tmp_path / "home" / "mlflow.db") as store:
        for table, column in PATHS:
            change = f"update {table} set {column} = replace({column}, ?, ?)"
            store.execute(change, (WRITTEN_IN, str(tmp_path)))
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path / "factors"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def earlier(arguments: list[str]) -> list[str]:
    """Recorded arguments of `cutslots train`, with the options that presets had then."""
    preset = arguments[arguments.index("--preset") + 1]
    changes = EARLIER.get(preset, ["train.best_metric=ari_fg"])
    return ["train", *arguments, *(word for text in changes for word in ("--set", text))]


def weights_digest(run: Path) -> str:
    path = sorted(run.glob("checkpoints/step-*.pt"))[-1]
    model = torch.load(path, weights_only=True)["model"]
    values = (name.encode() + model[name].numpy().tobytes() for name in sorted(model))
    return hashlib.sha256(b"".join(values)).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("name", ["scenes", "movi_a"])
def test_prepared_data_are_accepted(name: str, old: Path, capsys) -> None:
    assert main(["check", name]) == 0
    run = {"scenes": "vertex", "movi_a": "video"}[name]
    trained_on = torch.load(old / f"home/runs/{run}/checkpoints/best.pt", weights_only=True)
    assert trained_on["data_digest"] in capsys.readouterr().out


@same_machine
def test_preparing_again_gives_the_same_bytes(old: Path) -> None:
    assert main(["prepare", "scenes", "again", "--count", "30", "--size", "16"]) == 0
    names = {path.name for path in (old / "home/data/scenes").iterdir()}
    assert names == {path.name for path in Path("again").iterdir()}
    for name in names - {"manifest.json"}:
        assert (old / "home/data/scenes" / name).read_bytes() == Path("again", name).read_bytes()
    manifests = [old / "home/data/scenes/manifest.json", Path("again/manifest.json")]
    before, now = (json.loads(path.read_text()) | {"version": ""} for path in manifests)
    assert before == now


def test_finished_data_and_runs_are_not_made_again(old: Path) -> None:
    before = snapshot(old / "home/data") | snapshot(old / "home/runs")
    assert main(["prepare", "scenes", "--count", "30", "--size", "16"]) == 0
    assert main(earlier(RECORD["train"][0])) == 0
    assert snapshot(old / "home/data") | snapshot(old / "home/runs") == before


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(old: Path) -> None:
    run = old / "home/runs/resumed"
    assert weights_digest(run) == RECORD["weights"]["resumed"]
    assert main(["train", "scenes", "--resume", "resumed"]) == 0
    assert (run / "checkpoints/step-00000020.pt").is_file()
    if EXACT:
        assert weights_digest(run) == RECORD["weights"]["uninterrupted"]


@same_machine
@pytest.mark.parametrize("arguments", RECORD["train"][:5], ids=lambda arguments: arguments[-1])
def test_training_again_gives_the_same_weights(arguments: list[str], old: Path) -> None:
    options, name = arguments, FINISHED
    if "--name" in arguments:
        *options, _, name = arguments
    assert main([*earlier(options), "--name", "again"]) == 0
    assert weights_digest(old / "home/runs/again") == RECORD["weights"][name]


@pytest.mark.parametrize(
    "name", ["vertex", "slot-attention", "video", "resumed", "exported", FINISHED, CHAMPION]
)
def test_old_weights_have_the_same_scores(name: str, old: Path) -> None:
    data = "movi_a" if name == "video" else "scenes"
    model = str(old / "home/exported") if name == "exported" else name
    if name == CHAMPION:
        name = RECORD["best"][0]["entries"][0]["name"]
    factors = snapshot(old / "factors")
    assert main(["evaluate", model, "--data", data, "--json", "scores.json"]) == 0
    scores = json.loads(Path("scores.json").read_text())["sets"][0]["scores"]
    recorded = RECORD["scores"][name]
    scores = {score: scores[score] for score in recorded}  # there are more today
    assert scores == (recorded if EXACT else pytest.approx(recorded, rel=1e-3, abs=1e-2))
    assert snapshot(old / "factors") == factors  # found, not computed again


def test_old_weights_are_exported_and_used(old: Path) -> None:
    exported = old / "home/exported"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save("black.png")
    assert main(["export", "vertex", "out"]) == 0
    config, old_config = (
        from_json((path / "config.json").read_text()) for path in (Path("out"), exported)
    )
    assert config == old_config  # newer options have their defaults
    now, before = (load_file(path / "weights.safetensors") for path in (Path("out"), exported))
    assert now.keys() == before.keys()
    assert all(np.array_equal(now[name], before[name]) for name in now)
    assert main(["predict", "vertex", "black.png", "--out", "predicted"]) == 0
    assert Image.open("predicted/masks/black.png").size == (16, 16)


def test_the_leaderboard_is_that_of_the_old_store(capsys) -> None:
    assert main(["best", "--dataset", "scenes", "--limit", "20", "--json"]) == 0
    boards = (json.loads(capsys.readouterr().out), RECORD["best"])
    keys = ("rank", "name", "run_id", "model", "value", "scores", "step", "seed", "state")
    now, before = ([[row[key] for key in keys] for row in board["entries"]] for [board] in boards)
    assert now == before


@pytest.mark.ray
@pytest.mark.slow
def test_an_old_sweep_is_resumed_without_training_its_trials_again(old: Path) -> None:
    runs = old / "home/runs"
    before = snapshot(runs)
    shutil.copy(HERE / "sweep.py", "sweep.py")
    resume = [sys.executable, "sweep.py", "--resume"]
    subprocess.run(resume, check=True, timeout=300)
    assert snapshot(runs) == before
    subprocess.run([*resume, "--trials", "3"], check=True, timeout=300)
    checkpoints = {name: state for name, state in before.items() if name.endswith(".pt")}
    assert checkpoints.items() <= snapshot(runs).items()
    assert len(json.loads((old / "home/sweeps/old/trials.json").read_text())) == 5
    trained = {path.name for path in runs.iterdir()} - {Path(name).parts[-3] for name in before}
    assert len(trained) == 1
