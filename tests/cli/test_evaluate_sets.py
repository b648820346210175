"""`cutslots evaluate` on several datasets, with an untrained model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutslots import options
from cutslots.cli import main
from cutslots.data import Batches, Manifest, Scene, prepare, shards, sources
from cutslots.files import home, write_text
from cutslots.runs.mlflow_callback import MLflowCallback
from cutslots.train import checkpoint, evaluate, load_model
from cutslots.train.callbacks import ProgressBar, Start
from cutslots.train.config import RunConfig, preset, to_json
from cutslots.train.evaluate import tiles_scores
from cutslots.train.export import save_model

TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
)
MATERIALS = ("brick", "moss")


def built() -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and weights of a 32 x 32 model, always the same ones."""
    config = preset("small")
    for assignment in TINY:
        config = options.override(config, assignment)
    torch.manual_seed(0)
    return config, config.model.build().state_dict()


def write_outd(folder: Path, count: int) -> Path:
    """A prepared dataset like ClevrTex OOD: two cubes of two materials per 64 x 64 scene."""
    settings = {"size": 64, "crop": 0.8, "variant": "outd"}

    def read():
        for number in range(count):
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            mask[8:24, 8:24], mask[32:60, 20:56] = 1, 2
            objects = tuple({"shape": "cube", "material": material} for material in MATERIALS)
            yield "test", Scene(f"outd_{number}", image, mask, objects)

    asked = Manifest("clevrtex", {"images": count}, settings, {"test": (0, count)})
    with shards.writing(folder, asked) as writer:
        writer.write(read())
        writer.finish(count)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, `textured`, `others` (scenes, 5 test images; the last has no test split), `outd`."""
    folder, source = tmp_path_factory.mktemp("sets"), sources.load("scenes")
    prepare("scenes", None, folder / "plain", source.Options(count=50, size=32))
    prepare(
        "scenes", None, folder / "textured", source.Options(count=50, size=32, style="textured")
    )
    prepare(
        "scenes",
        None,
        folder / "others",
        source.Options(count=10, size=32, seed=1),
        splits={"val": (0, 2), "train": (2, 4)},
    )
    prepare("scenes", None, folder / "odd", source.Options(count=10, size=48))
    write_outd(folder / "outd", 7)
    return folder


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    config, state = built()
    save_model(state, config, tmp_path / "exported")
    return tmp_path / "exported"


def evaluated(tmp_path: Path, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """What the command writes as JSON and as a table."""
    written = ["--json", tmp_path / "out.json", "--table", tmp_path / "out.md"]
    assert main(["evaluate", *map(str, [*arguments, *written])]) == 0
    return json.loads((tmp_path / "out.json").read_text()), (tmp_path / "out.md").read_text()


def cells(table: str, first: str) -> list[str]:
    """The cells of the row whose first one this is."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_several_datasets_in_one_table(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, a dataset by name and one of twice the model's size; scores are in MLflow."""
    from mlflow import MlflowClient

    from cutslots.tracking import default_uri

    config, state = built()
    run = home() / "runs" / "tiny"
    stored = {
        "config": to_json(config),
        "model": state,
        "step": 3,
        "signature": "0123456789ab",
        "data_digest": "ba9876543210",
    }
    checkpoint.save(run / "checkpoints" / checkpoint.BEST, stored, 1)
    write_text(
        run / "run.json", json.dumps({"source": "scenes", "data": "nowhere", "experiment": "sets"})
    )
    shutil.copytree(made / "textured", home() / "data" / "textured")

    sets = ["--data", made / "plain", "--data", "textured", "--data", made / "outd"]
    keys = ["--by", "material", "--by", "color"]
    found, table = evaluated(tmp_path, "tiny", *sets, *keys, "--figure", tmp_path / "masks.png")
    printed = capsys.readouterr()
    assert printed.out == table
    names = ["scenes", "scenes_textured", "clevrtex_outd"]
    assert [each["name"] for each in found["sets"]] == names
    assert {"signature", "step", "data_digest", "commit", "trained_on"} <= found.keys()

    model = load_model(run)
    for each, folder in zip(found["sets"], ("plain", "textured", "outd"), strict=True):
        batches = Batches(made / folder, "test", 3, shuffle=False, drop_last=False)
        scores = each["scores"]
        assert scores == pytest.approx(
            evaluate(model, batches, torch.device("cpu"))[0], abs=2e-3
        ), "other batches, other rounding"
        assert cells(table, each["name"]) == [
            each["name"],
            "test",
            str(batches.num_scenes),
            *(f"{scores[name]:.4f}" for name in ("ari_fg", "ari", "miou")),
            f"{scores['mse']:.2f}",
            *(f"{scores[f'cut_{name}']:.4f}" for name in ("ari_fg", "ari", "miou")),
        ]
        control = each["tiles"]
        assert control == pytest.approx(tiles_scores(batches, 4, 32))
        numbers = [f"{control[name]:.4f}" for name in ("ari_fg", "ari", "miou")]
        assert cells(table, f"fixed tiles: {each['name']}")[3:] == [*numbers, "", "", "", ""]
        assert f"- {each['name']}: digest {batches.manifest.digest}, " in table
        assert (tmp_path / f"masks-{each['name']}.png").is_file()

    assert "Model tiny: run hash 0123456789ab, step 3, trained on scenes, cutslots commit " in table
    assert cells(table, "published: clevrtex_outd")[1:] == [
        "test",
        "",
        "0.726",
        "",
        "0.38",
        "577",
        "",
        "",
        "",
    ]
    reasons = found["sets"][2]["published"]["not_comparable"]
    assert reasons == [
        "scored at 32 x 32, published at 128 x 128",
        "prepared with size 64",
        "7 images, published on at least 1,000",
        "the model was trained on scenes",
    ]
    assert f"not comparable: {'; '.join(reasons)}." in table
    assert "64 x 64, scored at 32 x 32." in table
    assert found["sets"][0]["published"] is None

    by = [each["by"] for each in found["sets"]]
    assert [list(each) for each in by] == [["material", "color"], ["material"], ["material"]]
    assert "Its metadata have no color." in table
    assert {
        name: group["num_objects"] for name, group in by[2]["material"].items()
    } == dict.fromkeys(MATERIALS, 7)
    assert found["sets"][2]["objects"]["num_objects"] == 14
    assert cells(table, "moss") == [
        "moss",
        "7",
        *(f"{by[2]['material']['moss'][name]:.4f}" for name in ("iou", "cut_iou")),
    ]

    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("sets")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    for each in found["sets"]:
        assert logged.data.metrics[f"{each['name']}/test/ari_fg"] == pytest.approx(
            each["scores"]["ari_fg"]
        )


def test_training_dataset_of_a_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained and scored on one variant; the published model was trained on another."""
    monkeypatch.setattr("cutslots.runs.mlflow_callback.DELIVERY_SECONDS", 0)
    config, state = built()
    tracking = MLflowCallback(
        config,
        made / "outd",
        tmp_path / "run",
        "sets",
        ProgressBar(live=False),
        system_metrics=False,
    )
    tracking.on_start(Start(0, 1, 1, "cpu", "float32"))
    tracking.close("KILLED")
    stored = {
        "config": to_json(config),
        "model": state,
        "step": 1,
        "signature": "0123456789ab",
        "data_digest": "ba9876543210",
    }
    checkpoint.save(tmp_path / "run" / "checkpoints" / checkpoint.BEST, stored, 1)
    found, table = evaluated(tmp_path, tmp_path / "run", "--data", made / "outd", "--images", "2")
    assert "trained on clevrtex_outd, cutslots commit" in table
    assert (
        found["sets"][0]["published"]["not_comparable"][-1]
        == "the model was trained on clevrtex_outd"
    )


def test_default_split(made: Path, exported: Path, tmp_path: Path) -> None:
    found, table = evaluated(
        tmp_path, exported, "--data", made / "others", "--data", made / "plain", "--images", "2"
    )
    assert [(each["split"], each["scores"]["num_images"]) for each in found["sets"]] == [
        ("val", 2),
        ("test", 2),
    ]
    assert "It has no test split; val is its only evaluation split." in table
    assert "The first 2 of its 5 images." in table
    # Both are scenes of the plain style; their digests tell them apart.
    digests = [each["digest"] for each in found["sets"]]
    assert [each["name"] for each in found["sets"]] == [f"scenes-{digest}" for digest in digests]
    found, table = evaluated(tmp_path, exported, "--data", made / "plain", "--split", "val")
    assert [(each["name"], each["split"]) for each in found["sets"]] == [("scenes", "val")]
    assert "Model" in table
    assert "an exported model, cutslots commit" in table


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("--data {made}/plain --by colour", "--by 'colour' shape"),
        ("--data {made}/plain --data {made}/outd --split val", "{made}/outd --split 'val' test"),
        ("--data {made}/plain --data {made}/odd", "{made}/odd 48 32"),
        ("--data {made}/plain --data {made}/plain", "--data scenes digest"),
        ("--data {made}/plain --data plane", "plane"),
        ("--data {made}/plain --images 0", "--images 0"),
    ],
)
def test_bad_input_is_refused_before_scoring(
    arguments: str,
    facts: str,
    made: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments.format(made=made).split()
    assert main(["evaluate", str(exported), *words, "--json", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert all(fact in captured.err for fact in facts.format(made=made).split())
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_clips_beside_images(made: Path, exported: Path, tmp_path: Path) -> None:
    """Frames of clips are scored as images; their objects are not grouped by metadata."""
    frames, ids = np.zeros((3, 32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8)
    ids[:, 4:20, 4:20] = 1

    asked = Manifest("movi_a", {}, {}, {"val": (0, 2)})
    with shards.writing(tmp_path / "clips", asked) as writer:
        clips = (Scene(f"clip_{number}", frames, ids, ({"shape": "cube"},)) for number in range(2))
        writer.write(("val", clip) for clip in clips)
        writer.finish(2)
    found, table = evaluated(
        tmp_path, exported, "--data", tmp_path / "clips", "--data", made / "plain", "--by", "shape"
    )
    assert [
        (each["name"], each["scores"]["num_images"], list(each["by"])) for each in found["sets"]
    ] == [
        ("movi_a", 6, []),
        ("scenes", 5, ["shape"]),
    ]
    assert "Objects of clips are not grouped." in table
    video = found["sets"][0]["scores"]["video_ari_fg"]
    assert cells(table, "movi_a")[10] == f"{video:.4f}"
    assert cells(table, "scenes")[10] == ""


def test_no_default_split(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = sources.load("scenes").Options(count=10, size=32)
    prepare(
        "scenes",
        None,
        tmp_path / "two",
        settings,
        splits={"val": (0, 2), "held_out": (2, 4), "train": (4, 5)},
    )
    assert main(["evaluate", str(exported), "--data", str(tmp_path / "two")]) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in ("--split", "val, held_out, train"))
