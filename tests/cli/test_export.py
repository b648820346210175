"""`cutslots export`: what it writes is the model, by itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures_runs import save_tiny_model
from PIL import Image

from cutslots.cli import export, main
from cutslots.runs.provenance import origin
from cutslots.tracking import find_runs
from cutslots.train import load_model, predict
from cutslots.train.export import weights_digest

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
FILES = ["README.md", "config.json", "weights.safetensors"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", "low", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert files(out) == FILES
    run = trained / "runs" / "low"
    expected, exported = predict(load_model(run), IMAGES), predict(load_model(out), IMAGES)
    for name, value in expected.items():
        np.testing.assert_array_equal(exported[name], value)
    # The provenance is in the card and in a second export.
    before, after = origin(run / "checkpoints" / "best.pt"), origin(out)
    assert {name: after[name] for name in before} == before
    assert after["weights"] == weights_digest(load_model(out))
    card = (out / "README.md").read_text()
    for name in ("signature", "data_digest", "commit"):
        assert before[name] in card
    assert re.search(r"\| trained on +\| scenes +\|", card)
    ari_fg = before["scores"]["scenes test"]["ari_fg"]
    assert re.search(rf"\| scenes test +\| +5 +\| +{ari_fg:.4f} +\|", card)
    assert main(["export", str(out), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "README.md").read_text() == card.replace("# out", "# again")
    assert origin(tmp_path / "again") == after


def test_commands_take_an_export(trained, tmp_path, capsys):
    out, image, masks = (str(tmp_path / name) for name in ("out", "image.png", "masks"))
    assert main(["export", "models:/cutslots-scenes@champion", out]) == 0
    Image.fromarray(IMAGES[0]).save(image)
    assert main(["predict", out, image, "--out", masks]) == 0
    about = json.loads(Path(masks, "predictions.json").read_text())["model"]
    (run,) = [run for run in find_runs("tags.dataset = 'scenes'") if run.name == "low"]
    assert about["signature"] == run.tags["signature"]
    capsys.readouterr()
    assert main(["evaluate", out, "--data", "scenes"]) == 0
    assert f"run hash {run.tags['signature']}, step 3, trained on scenes" in capsys.readouterr().out
    assert main(["predict", "low", image, "--out", masks]) == 0
    assert "0 images predicted, 1 " in capsys.readouterr().out, "identified by the weights"


@pytest.mark.slow
def test_program(trained, tmp_path):
    """In a separate process: jaxtyping's checks in tests disturb torch.export."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cutslots", "export", "low", str(out), "--torch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert files(out) == sorted([*FILES, "model.pt2"])
    # The card's code loads it.
    block = (out / "README.md").read_text().split("```python\n")[2].partition("```")[0]
    np.save(tmp_path / "images.npy", IMAGES)
    code = "import numpy, torch\nimages = torch.from_numpy(numpy.load('images.npy'))\n"
    code += block.replace("THIS_FOLDER", "out")
    code += "\nnumpy.save('masks.npy', result['masks'].numpy())\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = predict(load_model(out), IMAGES)["masks"]
    assert (np.load(tmp_path / "masks.npy") == expected).mean() > 0.999


def test_model_that_cannot_be_traced(tmp_path, capsys):
    video, out = save_tiny_model(tmp_path / "video", "small-video"), tmp_path / "out"
    assert main(["export", str(video), str(out), "--torch"]) == 2
    assert "model.pt2" in capsys.readouterr().err
    assert files(out) == FILES, "everything but the program"
    assert "model.pt2" not in (out / "README.md").read_text()


def test_only_an_export_is_replaced(model, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(*arguments: str | Path) -> str:
        assert main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out.mkdir()
    assert main(["export", str(model), str(out)]) == 0, "an empty folder"
    (out / "README.md").write_text("old")
    assert "--overwrite" in refused(model, out)
    assert (out / "README.md").read_text() == "old"
    assert main(["export", str(model), str(out), "--overwrite"]) == 0
    assert (out / "README.md").read_text().startswith("# out")
    assert files(tmp_path) == ["out"]
    (out / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(model, out, "--overwrite")
    assert (out / "thesis.tex").exists()
    assert "README.md" in refused(model, out / "README.md")
    assert "'second'" in refused("second", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_failed_export_keeps_the_earlier_one(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main(["export", str(model), str(out)]) == 0
    shutil.copytree(out, tmp_path / "copy")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(export, "write_text", fail)
    assert main(["export", str(model), str(out), "--overwrite"]) == 2
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
    assert files(tmp_path) == ["copy", "out"]
