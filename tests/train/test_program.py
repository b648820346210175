"""Programs of torch.export: they do what the model does, or are not there."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TINY
from torch import Tensor, nn

from cutslots import options
from cutslots.errors import InputError
from cutslots.train import predict
from cutslots.train.config import preset
from cutslots.train.program import load_program, save_program

IMAGES = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), np.uint8)


def built(name: str, *assignments: str) -> nn.Module:
    config = preset(name)
    for assignment in assignments:
        config = options.override(config, assignment)
    torch.manual_seed(0)
    return config.model.build().eval()


@pytest.mark.slow
def test_programs_do_what_the_models_do(tmp_path: Path) -> None:
    """In a process of its own: checks of shapes while tests run make a traced batch one of fixed size."""
    script = Path(__file__).with_name("traced_programs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 5
    for name, says in found.items():
        assert says["any_number"], name
        assert says["names"] in (
            ["alpha", "cut_masks", "masks", "reconstructions"],
            ["alpha", "masks", "reconstructions"],
        )
        assert min(says["same"]) > 0.999, name
        assert says["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert "cut_masks" in found["small"]["names"]


@pytest.mark.slow
def test_it_runs_without_cutslots(tmp_path: Path) -> None:
    model = built("small", *TINY)
    save_program(model, tmp_path / "model.pt2")
    np.save(tmp_path / "images.npy", IMAGES)
    code = (
        "import numpy, sys, torch\n"
        "program = torch.export.load('model.pt2').module()\n"
        "numpy.save('masks.npy', program(torch.from_numpy(numpy.load('images.npy')))['masks'].numpy())\n"
        "assert 'cutslots' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert (np.load(tmp_path / "masks.npy") == predict(model, IMAGES)["masks"]).mean() > 0.999


@dataclass(frozen=True)
class Config:
    image_size: int = 8


@dataclass(frozen=True)
class Outputs:
    reconstruction: Tensor
    alpha: Tensor


class Model(nn.Module):
    """Two slots by brightness, with something that a graph cannot hold, or holds wrongly."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config, self.kind = Config(), kind
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images: Tensor) -> Any:
        light = (self.scale * images).mean(1)
        if self.kind == "branch" and light.mean() > 0:
            light = -light
        if self.kind == "one":
            light = torch.stack([light[at] for at in range(len(images))])
        if self.kind == "stateful":
            self.calls += 1
            light = light * (-1) ** self.calls
        return self._outputs(images, light)

    def _outputs(self, images: Tensor, light: Tensor) -> Outputs:
        return Outputs(images, torch.softmax(torch.stack([light, -light], 1), 1))


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch.export cannot trace this model: "):
        save_program(Model("branch").eval(), tmp_path / "model.pt2")
    with pytest.raises(
        InputError, match="a model of video follows its slots through a clip by an assignment"
    ):
        save_program(built("small-video", *TINY, "matching.hidden=8"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives other masks than the model, so it is not kept"):
        save_program(Model("stateful").eval(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_model_that_counts_its_images_takes_one(tmp_path: Path) -> None:
    assert save_program(Model("one").eval(), tmp_path / "model.pt2") is False
    program = load_program(tmp_path / "model.pt2")
    images = torch.from_numpy(IMAGES[:2, :8, :8].copy())
    assert program(images[:1])["masks"].shape == (1, 8, 8)
    with pytest.raises((AssertionError, RuntimeError)):
        program(images)
