"""The slot model: sizes of the paper, named intermediates, and the shortcuts against the plain way."""

import math

import pytest
import torch
from torch import nn

from cutslots import options
from cutslots.errors import InputError
from cutslots.models import load, names
from cutslots.models.min_cut_slots import MinCutSlots
from cutslots.nn.init import he_init
from cutslots.nn.slots import SlotHeads, SlotsConfig
from cutslots.train.config import PRESETS, preset


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = preset("small").model.build()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    return model, images, model(images)


def test_every_intermediate_has_its_shape(small):
    model, _, outputs = small
    k, size = model.config.num_slots, model.config.slots.size
    shapes = {name: tuple(value.shape) for name, value in vars(outputs).items()}
    assert shapes == {
        "object_weights": (3, k - 1, 6, 16, 16),
        "foreground_weights": (3, 1, 6, 16, 16),
        "object_potentials": (3, k - 1, 16, 16),
        "foreground_potentials": (3, 1, 16, 16),
        "object_masks": (3, k - 1, 16, 16),
        "foreground_mask": (3, 1, 16, 16),
        "masks": (3, k, 16, 16),
        "slots": (3, k, size),
        "reconstructions": (3, k, 3, 32, 32),
        "alpha": (3, k, 32, 32),
        "reconstruction": (3, 3, 32, 32),
    }


def test_masks_share_every_pixel(small):
    _, _, outputs = small
    for masks in (outputs.object_masks, outputs.masks, outputs.alpha):
        torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))
    assert outputs.object_weights.min() >= 0
    assert outputs.reconstruction.abs().max() <= 1


def test_masks_follow_from_the_potentials(small):
    model, _, outputs = small
    temperature = model.config.temperature
    object_masks = torch.softmax(outputs.object_potentials / temperature.object, 1)
    torch.testing.assert_close(outputs.object_masks, object_masks)
    # The foreground is a softmax over the two terminal edges of the cut of the foreground weights.
    edges = model.cut(outputs.foreground_weights[:, 0]).edges()
    foreground = torch.softmax(
        torch.stack([edges[:, 5], edges[:, 4]], 1) / temperature.foreground, 1
    )[:, :1]
    torch.testing.assert_close(outputs.foreground_mask, foreground)
    split = torch.cat([1 - foreground, foreground * object_masks], 1)
    torch.testing.assert_close(outputs.masks, torch.softmax(split / temperature.combined, 1))


def test_the_loss_reaches_every_parameter(small):
    model, images, outputs = small
    model.zero_grad()
    model.loss(outputs, images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_slot_heads_equal_the_pixelwise_way():
    """Algorithm 2 as written: transform every pixel, mask, average, transform."""
    torch.manual_seed(1)
    heads = SlotHeads(SlotsConfig(size=5, hidden=7, num_heads=3), channels=4)
    features, masks = torch.randn(2, 4, 6, 3), torch.rand(2, 8, 6, 3)
    x = heads.norm(features.permute(0, 2, 3, 1))
    expected = 0
    for head, (before, project, after) in enumerate(
        zip(heads.before.weight.chunk(3), heads.project, heads.after, strict=True)
    ):
        bias = heads.before.bias.chunk(3)[head]
        pixels = project(torch.relu(nn.functional.linear(x, before, bias)))
        slot = torch.einsum("bkhw,bhwc->bkhwc", masks, pixels).mean((2, 3))
        expected = expected + after(slot) + (slot if head == 0 else 0)
    torch.testing.assert_close(heads(features, masks), expected)


def test_an_image_does_not_see_its_neighbours_in_the_batch(small):
    model, images, outputs = small
    torch.testing.assert_close(model(images[1:2]).masks[0], outputs.masks[1], atol=1e-4, rtol=1e-4)


PARAMETERS = {
    "paper-clevr": (
        1_489_116,
        {
            "encoder": 312_256,
            "position": 320,
            "object_weights": 207_266,
            "foreground_weights": 153_206,
        },
    ),
    "paper-clevrtex": (
        1_970_288,
        {
            "encoder": 700_728,
            "position": 500,
            "object_weights": 239_666,
            "foreground_weights": 185_606,
        },
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_paper_presets_have_the_papers_sizes(name):
    config = preset(name).model
    assert (config.image_size, config.num_slots, config.slots.size, config.cut.gamma) == (
        128,
        12,
        64,
        0.5,
    )
    assert (config.temperature.object, config.temperature.combined, config.decoder.start) == (
        0.5,
        0.1,
        8,
    )
    model = config.build()
    assert model.cut.graph.shape == (64, 64)
    assert model.encoder(torch.zeros(2, 3, 128, 128)).shape == (
        2,
        64 if name == "paper-clevr" else 100,
        64,
        64,
    )
    counts = {
        part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()
    }
    total, parts = PARAMETERS[name]
    assert sum(counts.values()) == total
    assert {part: counts[part] for part in parts} == parts


def test_paper_schedule():
    for name in ("paper-clevr", "paper-clevrtex"):
        config = preset(name)
        assert (config.optim.learning_rate, config.optim.batch_size, config.train.steps) == (
            4e-4,
            64,
            312_500,
        )
        assert (config.optim.warmup_steps, config.optim.clip_norm) == (0, None)


def test_he_init_keeps_the_size_of_a_signal():
    torch.manual_seed(0)
    doublings: list[nn.Module] = []
    for _ in range(4):
        doublings += [nn.ConvTranspose2d(32, 32, 5, 2, 2, output_padding=1), nn.ReLU()]
    layers = nn.Sequential(*doublings)
    x = torch.randn(4, 32, 8, 8)
    before = layers(x).square().mean().sqrt()
    he_init(layers)
    after = layers(x).square().mean().sqrt()
    assert before < 0.2, "torch's own initialisation no longer shrinks: he_init may not be needed"
    assert 0.4 < after < 2.5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.image_size=31", "must be even"),
        ("decoder.start=3", "start times a power of two"),
    ],
)
def test_sizes_that_do_not_fit(assignment, message):
    config = options.override(preset("small"), assignment)
    with pytest.raises(InputError, match=message):
        config.model.build()


def test_a_reach_stands_for_the_gammas_of_terminals_and_vertices():
    base = options.override(
        options.override(preset("small"), "cut.gamma_terminal=none"), "cut.gamma_vertex=none"
    )
    gamma = options.override(base, "cut.reach=2.5").model.cut.build(8, 8).gamma
    assert gamma.edge == 0.5
    assert gamma.terminal == gamma.vertex
    assert math.sqrt(gamma.edge / (gamma.terminal + gamma.vertex)) == pytest.approx(2.5)
    for refuse in (options.check, lambda config: config.model.build()):
        with pytest.raises(InputError, match="Set these two to none"):
            refuse(options.override(preset("small"), "cut.reach=2.5"))


def test_the_folder_is_the_registry():
    assert "min_cut_slots" in names()
    assert load("min_cut_slots").Config().build().__class__ is MinCutSlots
    with pytest.raises(InputError, match="Did you mean 'min_cut_slots'"):
        load("mincut_slots")
    assert set(PRESETS) >= {"paper-clevr", "paper-clevrtex", "small"}
