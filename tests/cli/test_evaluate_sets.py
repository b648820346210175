"""`cutslots evaluate` on several datasets, with an untrained model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import tiny_config

from cutslots.cli import main
from cutslots.data import Batches, Manifest, Scene, prepare, shards, sources
from cutslots.data.record import Ranges
from cutslots.files import home, write_text
from cutslots.runs.mlflow_callback import MLflowCallback
from cutslots.tracking import find_runs
from cutslots.train import checkpoint, evaluate, load_model
from cutslots.train.callbacks import ProgressBar, Start
from cutslots.train.config import to_json
from cutslots.train.evaluate import tiles_scores
from cutslots.train.export import load_weights

MATERIALS = ("brick", "moss")
KINDS = ("ari_fg", "ari", "miou", "miou_fg")  # scores of masks


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, `textured` (5 test images), `odd` (48 x 48), `untested` (no test split, two others).

    And `outd`, like ClevrTex OOD: two cubes of two materials in each of 7 test images, 64 x 64.
    """
    folder, scenes = tmp_path_factory.mktemp("datasets"), sources.load("scenes").Options
    prepare("scenes", None, folder / "plain", scenes(count=50, size=32))
    prepare("scenes", None, folder / "textured", scenes(count=50, size=32, style="textured"))
    prepare("scenes", None, folder / "odd", scenes(count=10, size=48))
    untested: Ranges = {"val": (0, 2), "held_out": (2, 4), "train": (4, 5)}
    prepare("scenes", None, folder / "untested", scenes(count=10, size=32), untested)
    only_val: Ranges = {"val": (0, 2), "train": (2, 4)}
    prepare("scenes", None, folder / "only_val", scenes(count=10, size=32, seed=1), only_val)

    def read():
        for number in range(7):
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            mask[8:24, 8:24], mask[32:60, 20:56] = 1, 2
            objects = tuple({"shape": "cube", "material": material} for material in MATERIALS)
            yield "test", Scene(f"outd_{number}", image, mask, objects)

    settings = {"size": 64, "crop": 0.8, "variant": "outd"}
    manifest = Manifest("clevrtex", {"images": 7}, settings, {"test": (0, 7)})
    with shards.writing(folder / "outd", manifest) as writer:
        writer.write(read())
        writer.finish(7)
    return folder


def save_checkpoint(run: Path, model: Path) -> None:
    """The weights of an exported model as the best checkpoint of a run."""
    config, weights = load_weights(model)
    hashes = {"signature": "0123456789ab", "data_digest": "ba9876543210"}
    state = {"config": to_json(config), "model": weights, "step": 3, **hashes}
    checkpoint.save(run / "checkpoints" / checkpoint.BEST, state, 1)


def evaluated(tmp_path: Path, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """What the command writes as JSON and as a table."""
    written = ["--json", tmp_path / "out.json", "--table", tmp_path / "out.md"]
    assert main(["evaluate", *map(str, [*arguments, *written])]) == 0
    return json.loads((tmp_path / "out.json").read_text()), (tmp_path / "out.md").read_text()


def cells(table: str, first: str) -> list[str]:
    """The cells of the row whose first one this is."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_several_datasets_in_one_table(datasets, model, copy_database, tmp_path, capsys):
    """A folder, a dataset by name and one of twice the model's size; scores are in MLflow."""
    run = copy_database(home()) / "runs" / "tiny"
    save_checkpoint(run, model)
    about = {"source": "scenes", "data": "nowhere", "experiment": "sets"}
    write_text(run / "run.json", json.dumps(about))
    shutil.copytree(datasets / "textured", home() / "data" / "textured")

    sets = ["--data", datasets / "plain", "--data", "textured", "--data", datasets / "outd"]
    keys = ["--by", "material", "--by", "color"]
    result, table = evaluated(tmp_path, "tiny", *sets, *keys, "--figure", tmp_path / "masks.png")
    rows = result["sets"]
    assert capsys.readouterr().out == table
    assert [row["name"] for row in rows] == ["scenes", "scenes_textured", "clevrtex_outd"]
    assert {"signature", "step", "data_digest", "commit", "trained_on"} <= result.keys()
    assert "Model tiny: run hash 0123456789ab, step 3, trained on scenes, cutslots commit " in table

    trained = load_model(run)
    (logged,) = find_runs()
    for row, folder in zip(rows, ("plain", "textured", "outd"), strict=True):
        name, scores = row["name"], row["scores"]
        batches = Batches(datasets / folder, "test", 3, shuffle=False, drop_last=False)
        expected, _ = evaluate(trained, batches, torch.device("cpu"))
        assert scores == pytest.approx(expected, abs=2e-3), "other batches, other rounding"
        assert logged.metrics[f"{name}/test/ari_fg"] == pytest.approx(scores["ari_fg"])
        numbers = [f"{scores[score]:.4f}" for score in KINDS]
        cut = [f"{scores[f'cut_{score}']:.4f}" for score in KINDS]
        images = str(batches.num_scenes)
        assert cells(table, name) == [name, "test", images, *numbers, f"{scores['mse']:.2f}", *cut]
        assert row["tiles"] == pytest.approx(tiles_scores(batches, 4, 32))
        tiles = [f"{row['tiles'][score]:.4f}" for score in KINDS]
        assert cells(table, f"fixed tiles: {name}")[3:] == [*tiles, *[""] * 5]
        assert f"- {name}: digest {batches.manifest.digest}, " in table
        assert (tmp_path / f"masks-{name}.png").is_file()

    assert rows[0]["published"] is None
    paper = ["test", "", "0.726", "", "0.38", "", "577", "", "", "", ""]
    assert cells(table, "published: clevrtex_outd")[1:] == paper
    reasons = rows[2]["published"]["not_comparable"]
    assert reasons == [
        "scored at 32 x 32, published at 128 x 128",
        "prepared with size 64",
        "7 images, published on at least 1,000",
        "the model was trained on scenes",
    ]
    assert f"not comparable: {'; '.join(reasons)}." in table
    assert "64 x 64, scored at 32 x 32." in table

    by = [row["by"] for row in rows]
    assert [list(keys) for keys in by] == [["material", "color"], ["material"], ["material"]]
    assert "Its metadata have no color." in table
    materials = by[2]["material"]
    counts = {name: group["num_objects"] for name, group in materials.items()}
    assert counts == dict.fromkeys(MATERIALS, 7)
    assert rows[2]["objects"]["num_objects"] == 14
    ious = [f"{materials['moss'][name]:.4f}" for name in ("iou", "cut_iou")]
    assert cells(table, "moss") == ["moss", "7", *ious]


def test_training_dataset_of_a_run(datasets, model, tmp_path, monkeypatch):
    """Trained and scored on one variant; the published model was trained on another."""
    monkeypatch.setattr("cutslots.runs.mlflow_callback.DELIVERY_SECONDS", 0)
    run, bar = tmp_path / "run", ProgressBar(live=False)
    tracking = MLflowCallback(
        tiny_config(), datasets / "outd", run, "sets", bar, system_metrics=False
    )
    tracking.on_start(Start(0, 1, 1, "cpu", "float32"))
    tracking.close("KILLED")
    save_checkpoint(run, model)
    result, table = evaluated(tmp_path, run, "--data", datasets / "outd", "--images", "2")
    assert "trained on clevrtex_outd, cutslots commit" in table
    reasons = result["sets"][0]["published"]["not_comparable"]
    assert reasons[-1] == "the model was trained on clevrtex_outd"


def test_default_split(datasets, model, tmp_path):
    data = ["--data", datasets / "only_val", "--data", datasets / "plain"]
    result, table = evaluated(tmp_path, model, *data, "--images", "2")
    splits = [(row["split"], row["scores"]["num_images"]) for row in result["sets"]]
    assert splits == [("val", 2), ("test", 2)]
    assert "It has no test split; val is its only evaluation split." in table
    assert "The first 2 of its 5 images." in table
    # Both are scenes of the plain style; their digests tell them apart.
    assert [row["name"] for row in result["sets"]] == [
        f"scenes-{r['digest']}" for r in result["sets"]
    ]
    result, table = evaluated(tmp_path, model, "--data", datasets / "plain", "--split", "val")
    assert [(row["name"], row["split"]) for row in result["sets"]] == [("scenes", "val")]
    assert "an exported model, cutslots commit" in table


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("{}/plain --by colour", "--by 'colour' shape"),
        ("{}/plain --data {}/outd --split val", "{}/outd --split 'val' test"),
        ("{}/plain --data {}/odd", "{}/odd 48 32"),
        ("{}/plain --data {}/plain", "--data {}/plain digest"),
        ("{}/plain --data plane", "plane"),
        ("{}/untested", "--split val, held_out, train"),
    ],
)
def test_bad_input_is_refused_before_scoring(arguments, facts, datasets, model, tmp_path, capsys):
    words = arguments.replace("{}", str(datasets)).split()
    out = tmp_path / "out"
    assert main(["evaluate", str(model), "--json", str(out), "--data", *words]) == 2
    captured = capsys.readouterr()
    for fact in facts.replace("{}", str(datasets)).split():
        assert fact in captured.err
    assert captured.out == ""
    assert not out.exists()


def test_clips_beside_images(datasets, model, tmp_path):
    """Frames of clips are scored as images; their objects are not grouped by metadata."""
    frames, ids = np.zeros((3, 32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8)
    ids[:, 4:20, 4:20] = 1

    clips, manifest = tmp_path / "clips", Manifest("movi_a", {}, {}, {"val": (0, 2)})
    with shards.writing(clips, manifest) as writer:
        names = (f"clip_{number}" for number in range(2))
        writer.write(("val", Scene(name, frames, ids, ({"shape": "cube"},))) for name in names)
        writer.finish(2)
    data = ["--data", clips, "--data", datasets / "plain"]
    result, table = evaluated(tmp_path, model, *data, "--by", "shape")
    movi, scenes = result["sets"]
    assert (movi["name"], movi["scores"]["num_images"], movi["by"]) == ("movi_a", 6, {})
    assert (scenes["name"], scenes["scores"]["num_images"]) == ("scenes", 5)
    assert list(scenes["by"]) == ["shape"]
    assert "Objects of clips are not grouped." in table
    assert cells(table, "movi_a")[12] == f"{movi['scores']['video_ari_fg']:.4f}"
    assert cells(table, "scenes")[12] == ""
