"""The preset `published-clevrtex` is the published model: same figures with the same parameters.

The cut's solver is `vertex`, which "auto" chooses for a grid of interior edges; `dct` refuses one.
"""

import json

import pytest
import torch
from torch.nn.functional import mse_loss

from cutslots.errors import InputError
from cutslots.train import load_published
from cutslots.train.config import preset
from cutslots.train.inputs import keep_freed_memory
from cutslots.train.published import PRESET, published_tensors
from tests.models.published_state import REFERENCE, published_images, published_state

PIXELS = {"slots": 1, "alpha": 32, "reconstructions": 32, "reconstruction": 16}


def assert_close(values, expected, relative):
    """The largest error is at most `relative` times the largest value."""
    expected = torch.from_numpy(expected)
    scale = float(expected.abs().max())
    torch.testing.assert_close(values.detach().double(), expected, rtol=0, atol=relative * scale)


def test_number_of_parameters():
    model = preset(PRESET).model.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_740_552


@pytest.mark.parametrize(
    ("dtype", "relative", "of_gradients"),
    [
        pytest.param(torch.float64, 1e-10, 1e-10, marks=pytest.mark.slow),
        # Of 82 gradients one, of encoder.layer1.0.bn1.weight, differs by 1.3e-4: its terms cancel.
        (torch.float32, 1e-4, 2e-4),
    ],
)
def test_figures_are_those_of_the_published_code(dtype, relative, of_gradients):
    keep_freed_memory()
    model = load_published(published_state(), dtype)
    images = published_images().to(dtype)
    assert model.cut.choice.name == "vertex"
    with torch.no_grad():
        outputs = model(images)
    for name, step in PIXELS.items():
        values = getattr(outputs, name)
        values = values if step == 1 else values[..., ::step, ::step]
        assert_close(values, REFERENCE[name], relative)
    assert_close(mse_loss(outputs.reconstruction, images), REFERENCE["eval_loss"], relative)

    model.train()
    loss = mse_loss(model(images).reconstruction, images)
    assert_close(loss, REFERENCE["train_loss"], relative)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    tensors = published_tensors(model)
    names = json.loads(str(REFERENCE["gradient_names"]))
    assert set(names) == {name for name in tensors if "running" not in name}
    norms = torch.stack([tensors[name].norm() for name in names]).double()
    expected = torch.from_numpy(REFERENCE["gradient_norms"])
    torch.testing.assert_close(norms, expected, rtol=of_gradients, atol=0)


def test_float32_is_the_default_and_double_works():
    model = load_published(published_state())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    slots = model.double().partition(published_images()).slots
    assert slots.dtype == torch.float64
    assert_close(slots, REFERENCE["slots"], 1e-5)


def test_any_prefix_is_accepted_and_wrong_tensors_are_named():
    unused = {"slot_cut.in_pos_embedding.grid", "encoder.bn1.num_batches_tracked"}
    state = {**published_state(), **dict.fromkeys(unused, torch.zeros(1))}
    prefixed = {f"module.model.{name}": tensor.float() for name, tensor in state.items()}
    prefixed["module.model.extra.bias"] = torch.zeros(3)
    prefixed["module.model.decoder.4.4.weight"] = torch.zeros(4, 64, 3, 3)
    del prefixed["module.model.encoder.conv1.weight"]
    with pytest.raises(
        InputError,
        match=r"missing: encoder.conv1.weight; unknown: extra.bias; of another shape: "
        r"decoder.4.4.weight \(4, 64, 3, 3\), expected \(64, 4, 3, 3\)\.",
    ):
        load_published(prefixed)
    with pytest.raises(InputError, match=r"missing: encoder.conv1.weight.* and 94 more"):
        load_published({})
