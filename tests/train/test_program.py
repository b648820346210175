"""Exported programs give the model's outputs, or are not written."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import TINY, TINY_VIDEO, changed
from torch import nn

from cutslots.errors import InputError
from cutslots.train.config import preset
from cutslots.train.program import load_program, save_program

MODELS = {
    "small": ("small", TINY),
    "vertex": ("small", (*TINY, "cut.solver=vertex")),
    "resnet": ("small", (*TINY, "encoder.kind=resnet", "encoder.num_layers=2")),
    "slot_attention": ("slot-attention-small", ("encoder.channels=8", "decoder.channels=8")),
    "genesis": ("genesis-v2-small", ("model.size=8",)),
}


@pytest.mark.slow
def test_programs_give_the_outputs_of_the_models(tmp_path):
    """In a separate process, as the shape checks of the tests would fix the traced batch size."""
    script = """
        import json, sys
        from pathlib import Path
        import numpy as np, torch
        from tiny_runs import changed
        from cutslots.train import predict
        from cutslots.train.config import preset
        from cutslots.train.program import save_program
        images = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), np.uint8)
        np.save("images.npy", images)
        for name, (base, changes) in json.loads(sys.argv[1]).items():
            torch.manual_seed(0)
            model = changed(preset(base), *changes).model.build().eval()
            assert save_program(model, Path(f"{name}.pt2")), "takes any number of images"
            np.savez(name, **predict(model, images))
        """
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(MODELS)]
    paths = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300, env=paths)
    script = """
        import sys
        import numpy as np, torch
        images = torch.from_numpy(np.load("images.npy"))
        for name in sys.argv[1:]:
            program, expected = torch.export.load(f"{name}.pt2").module(), np.load(f"{name}.npz")
            for count in (1, 7, 2):
                outputs = program(images[:count])
                assert outputs.keys() == {*expected, "alpha"}
                for key, value in expected.items():
                    error = np.abs(outputs[key].numpy().astype(int) - value[:count])
                    assert np.mean(error <= (key == "reconstructions")) > 0.999, (name, key)
                assert torch.allclose(outputs["alpha"].sum(1), torch.ones(()), atol=1e-5)
        assert "cutslots" not in sys.modules
        """
    command = [sys.executable, "-c", textwrap.dedent(script), *MODELS]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300, env={})


class Model(nn.Module):
    """Two slots by brightness, with something that a graph cannot hold, or holds wrongly."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config, self.kind = SimpleNamespace(image_size=8), kind
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, images):
        light = (self.scale * images).mean(1)
        if self.kind == "branch" and light.mean() > 0:
            light = -light
        if self.kind == "one":
            light = torch.stack([light[index] for index in range(len(images))])
        if self.kind == "stateful":
            self.calls += 1
            light = light * (-1) ** self.calls
        alpha = torch.softmax(torch.stack([light, -light], 1), 1)
        return SimpleNamespace(reconstruction=images, alpha=alpha)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Model("branch"), "torch.export cannot trace this model: "),
        (lambda: Model("stateful"), "gives other (alpha|masks) than the model"),
        (lambda: changed(preset("small-video"), *TINY_VIDEO).model.build(), "video model"),
    ],
)
def test_wrong_program_is_not_kept(tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        save_program(model().eval(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_program_with_a_fixed_batch_takes_one_image(tmp_path):
    assert save_program(Model("one").eval(), tmp_path / "model.pt2") is False
    program = load_program(tmp_path / "model.pt2")
    images = torch.from_numpy(np.zeros((2, 8, 8, 3), np.uint8))
    assert program(images[:1])["masks"].shape == (1, 8, 8)
    with pytest.raises((AssertionError, RuntimeError)):
        program(images)
