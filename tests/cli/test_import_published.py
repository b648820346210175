"""`cutslots import-published`: a checkpoint of the published code becomes a run like others."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutslots.cli import main
from cutslots.files import home
from cutslots.tracking import find_runs, register
from cutslots.train import load_model, load_published
from cutslots.train.export import weights_digest
from tests.models.published_state import published_state


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The tensors of a real checkpoint, with the prefix of its Lightning module."""
    grid, count = torch.zeros(1, 64, 64, 4), torch.tensor(312_500)
    buffers = {"slot_cut.in_pos_embedding.grid": grid, "encoder.bn1.num_batches_tracked": count}
    tensors = {name: tensor.float() for name, tensor in published_state().items()} | buffers
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.slow
def test_an_imported_run_is_used_like_a_trained_one(state, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lightning = {"epoch": 499, "global_step": 312_500, "state_dict": state, "callbacks": {}}
    torch.save(lightning, "published.ckpt")
    assert main(["import-published", "published.ckpt", "published"]) == 0
    assert "1,740,552 parameters of step 312,500" in capsys.readouterr().out
    expected = weights_digest(load_published(state))
    run_dir = home() / "runs" / "published"
    assert weights_digest(load_model(run_dir)) == expected

    assert main(["prepare", "scenes", "--count", "80", "--size", "128"]) == 0
    scores = ["--images", "2", "--json", "scores.json"]
    assert main(["evaluate", "published", "--data", "scenes", *scores]) == 0
    result = json.loads(Path("scores.json").read_text())
    assert (result["step"], result["trained_on"]) == (312_500, "clevrtex")
    assert np.isfinite(list(result["sets"][0]["scores"].values())).all()
    Image.effect_noise((140, 130), 50).convert("RGB").save("image.png")
    assert main(["predict", "published", "image.png", "--out", "masks"]) == 0
    assert Image.open("masks/masks/image.png").size == (128, 128)
    assert main(["export", "published", "exported"]) == 0
    assert weights_digest(load_model(Path("exported"))) == expected

    (run,) = find_runs()
    assert (run.status, run.name, run.tags["set"]) == ("FINISHED", "published", "clevrtex")
    assert register("cutslots-clevrtex", run.run_id, "ari_fg", 0.8).is_champion
    assert main(["export", "models:/cutslots-clevrtex@champion", "champion"]) == 0
    assert weights_digest(load_model(Path("champion"))) == expected

    # It cannot be overwritten, nor trained further: its optimizer and data are unknown.
    assert main(["import-published", "published.ckpt", "published"]) == 2
    assert "exists. Give another name" in capsys.readouterr().err
    assert main(["train", "scenes", "--data", "scenes", "--resume", "published"]) == 2
    assert "trained on other data (digest published" in capsys.readouterr().err


def test_refused_files_are_reported_with_the_remedy(state, tmp_path, capsys):
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=4e-4)}, path)
    assert main(["import-published", str(path), "published"]) == 2
    error = capsys.readouterr().err
    assert "argparse.Namespace" in error
    assert "weights_only=False" in error
    path.write_bytes(path.read_bytes()[:5000])
    assert main(["import-published", str(path), "published"]) == 2
    assert "not a readable checkpoint" in capsys.readouterr().err
    assert main(["import-published", "absent.ckpt", "published"]) == 2
    assert "absent.ckpt does not exist" in capsys.readouterr().err
    torch.save(state, path)
    assert main(["import-published", str(path), "../published"]) == 2
    assert "without /" in capsys.readouterr().err
    assert not (home() / "runs").exists()
