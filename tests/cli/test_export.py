"""`cutslots export`: what it writes is the model, by itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutslots.cli import export, main
from cutslots.files import home
from cutslots.runs.provenance import origin
from cutslots.tracking import find_runs, register
from cutslots.train import load_model, predict
from cutslots.train.export import weights_digest

SMALLEST = [
    "--set",
    "encoder.channels=8",
    "--set",
    "weights.hidden=8",
    "--set",
    "slots.size=8",
    "--set",
    "slots.hidden=16",
    "--set",
    "decoder.channels=8",
    "--set",
    "optim.batch_size=8",
    "--steps",
    "3",
]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
FILES = ["README.md", "config.json", "weights.safetensors"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run that was scored and registered."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["prepare", "scenes", "--count", "50", "--size", "32"]) == 0
        assert main(["train", "scenes", "--name", "first", *SMALLEST]) == 0
        assert main(["evaluate", "first", "--data", "scenes"]) == 0
        (run,) = find_runs()
        register("cutslots-scenes", run.run_id, "ari_fg", 0.5)
    return folder


@pytest.fixture(autouse=True)
def at_home(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(made))


def test_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", "first", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == FILES
    expected, found = (
        predict(load_model(home() / "runs" / "first"), IMAGES),
        predict(load_model(out), IMAGES),
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    # The provenance is in the card and in a second export.
    known, exported = origin(home() / "runs" / "first" / "checkpoints" / "best.pt"), origin(out)
    assert {name: exported[name] for name in known} == known
    assert exported["weights"] == weights_digest(load_model(out))
    card = (out / "README.md").read_text()
    for name in ("signature", "data_digest", "commit"):
        assert known[name] in card
    assert re.search(r"\| trained on +\| scenes +\|", card)
    test = known["scores"]["scenes test"]
    assert re.search(rf"\| scenes test +\| +5 +\| +{test['ari_fg']:.4f} +\|", card)
    assert main(["export", str(out), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "README.md").read_text() == card.replace("# out", "# again")
    assert origin(tmp_path / "again") == exported


def test_commands_take_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", "models:/cutslots-scenes@champion", str(out)]) == 0
    Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
    assert (
        main(["predict", str(out), str(tmp_path / "image.png"), "--out", str(tmp_path / "masks")])
        == 0
    )
    listed = json.loads((tmp_path / "masks" / "predictions.json").read_text())
    (run,) = find_runs()
    assert listed["model"]["signature"] == run.tags["signature"]
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", "scenes"]) == 0
    assert f"run hash {run.tags['signature']}, step 3, trained on scenes" in capsys.readouterr().out
    # Predictions are identified by the weights.
    assert (
        main(["predict", "first", str(tmp_path / "image.png"), "--out", str(tmp_path / "masks")])
        == 0
    )
    assert "0 images predicted, 1 " in capsys.readouterr().out


@pytest.mark.slow
def test_program(made: Path, tmp_path: Path) -> None:
    """In a separate process: jaxtyping's checks in tests disturb torch.export."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cutslots", "export", "first", str(out), "--torch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "any number of images" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.pt2",
        "weights.safetensors",
    ]
    # The card's code loads it.
    block = (out / "README.md").read_text().split("```python\n")[2].partition("```")[0]
    np.save(tmp_path / "images.npy", IMAGES)
    code = "import numpy, torch\nimages = torch.from_numpy(numpy.load('images.npy'))\n" + block
    code += "\nnumpy.save('masks.npy', result['masks'].numpy())\n"
    subprocess.run(
        [sys.executable, "-c", code.replace("THIS_FOLDER", "out")],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    assert (
        np.load(tmp_path / "masks.npy") == predict(load_model(out), IMAGES)["masks"]
    ).mean() > 0.999


def test_model_that_cannot_be_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cutslots import options
    from cutslots.train.config import preset
    from cutslots.train.export import save_model

    config = preset("small-video")
    for assignment in (*SMALLEST[1:10:2], "matching.hidden=8"):
        config = options.override(config, assignment)
    save_model(config.model.build().state_dict(), config, tmp_path / "video")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "video"), str(out), "--torch"]) == 1
    assert "model.pt2" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == FILES, "everything but the program"
    assert "model.pt2" not in (out / "README.md").read_text()


def test_only_an_export_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", "first", str(out)]) == 0
    (out / "README.md").write_text("old")
    assert main(["export", "first", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "old"
    assert main(["export", "first", str(out), "--overwrite"]) == 0
    assert (out / "README.md").read_text().startswith("# out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "thesis.tex").write_text("years of work")
    assert main(["export", "first", str(out), "--overwrite"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (out / "thesis.tex").exists()
    assert main(["export", "first", str(out / "README.md")]) == 2
    assert "README.md" in capsys.readouterr().err
    assert main(["export", "second", str(tmp_path / "other")]) == 2
    assert "'second'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    (tmp_path / "empty").mkdir()
    assert main(["export", "first", str(tmp_path / "empty")]) == 0


def test_failed_export_keeps_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(["export", "first", str(out)]) == 0
    shutil.copytree(out, tmp_path / "copy")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(export, "write_text", full)
    assert main(["export", "first", str(out), "--overwrite"]) == 2
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "out"]
