"""The package's model equals the same model written plainly, in outputs and gradients."""

import pytest
import torch
from torch.nn import functional

from cutslots import options
from cutslots.nn.schedule import Ramp
from cutslots.train.config import preset
from tests.models import plain_min_cut_slots

COMMON = ("encoder.channels=6", "weights.hidden=5", "batch_size=2")
CHANGES = {
    "small": ("slots.size=8", "slots.hidden=16", "decoder.channels=6"),
    "paper-clevr": ("image_size=16", "num_slots=3", "slots.size=7"),
    "paper-clevrtex": ("image_size=16", "num_slots=3", "stem_channels=5"),
    "published-clevrtex": ("image_size=16", "num_slots=3", "stem_channels=5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_model_equals_the_plain_model(name):
    config = preset(name)
    for assignment in (*COMMON, *CHANGES[name]):
        config = options.override(config, assignment)
    size = config.model.image_size
    images = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
    outputs, gradients = [], []
    for build in (plain_min_cut_slots.build, lambda model: model.build()):
        torch.manual_seed(0)
        model = build(config.model).double()
        for ramp in model.modules():
            if isinstance(ramp, Ramp):
                ramp.step = 10**6  # after the ramp, which the plain model does not have
        output = model(images)
        output = output if isinstance(output, dict) else vars(output)
        functional.mse_loss(output["reconstruction"], images).backward()
        outputs.append(output)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, ours = outputs
    for key in ("masks", "alpha", "reconstruction"):
        torch.testing.assert_close(ours[key], plain[key], rtol=1e-10, atol=1e-12)
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        # The window's last layer is zero at first.
        assert gradient.abs().max() > 0 or key.startswith("window.0"), key
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-8, atol=1e-14)
