"""The paper's image model: its sizes, its intermediates, and errors."""

import math

import pytest
import torch

from cutslots import options
from cutslots.errors import InputError
from cutslots.train.config import preset


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = preset("small").model.build()
    model.detail.step = 10**6  # after the ramp
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    return model, images, model(images)


def test_shapes_and_ranges(small):
    model, _, outputs = small
    k, size = model.config.num_slots, model.config.slots.size
    assert {name: tuple(value.shape) for name, value in vars(outputs).items()} == {
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
    torch.testing.assert_close(outputs.object_masks.sum(1), torch.ones(3, 16, 16))
    assert outputs.object_weights.min() >= 0


def test_masks_follow_from_the_potentials(small):
    model, _, outputs = small
    temperature = model.config.temperature
    object_masks = torch.softmax(outputs.object_potentials / temperature.object, 1)
    torch.testing.assert_close(outputs.object_masks, object_masks)
    # The foreground is a softmax over the two terminal edges of its cut.
    edges = model.cut(outputs.foreground_weights[:, 0]).edges()
    terminal = torch.stack([edges[:, 5], edges[:, 4]], 1)
    foreground = torch.softmax(terminal / temperature.foreground, 1)[:, :1]
    torch.testing.assert_close(outputs.foreground_mask, foreground)
    split = torch.cat([1 - foreground, foreground * object_masks], 1)
    torch.testing.assert_close(outputs.masks, torch.softmax(split / temperature.combined, 1))


def test_loss_reaches_every_parameter(small):
    model, images, outputs = small
    model.loss(outputs, images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("window.0"):  # the window's last layer is zero at first
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("name", "channels", "total", "sizes"),
    [
        ("paper-clevr", 64, 1_439_580, (312_256, 320, 207_266, 153_206)),
        ("paper-clevrtex", 100, 1_920_752, (700_728, 500, 239_666, 185_606)),
    ],
)
def test_paper_presets_have_the_papers_sizes(name, channels, total, sizes):
    run = preset(name)
    config, optim = run.model, run.optim
    assert (config.image_size, config.num_slots, config.slots.size) == (128, 12, 64)
    assert (config.cut.gamma, config.decoder.start) == (0.5, 8)
    assert (config.temperature.object, config.temperature.combined) == (0.5, 0.1)
    assert (optim.learning_rate, optim.batch_size, run.train.steps) == (4e-4, 64, 312_500)
    assert (optim.warmup_steps, optim.clip_norm) == (0, None)
    model = config.build()
    assert model.cut.graph.shape == (64, 64)
    assert model.encoder(torch.zeros(2, 3, 128, 128)).shape == (2, channels, 64, 64)
    assert sum(p.numel() for p in model.parameters()) == total
    parts = (model.encoder, model.position, model.object_weights, model.foreground_weights)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == sizes


def test_reach_sets_the_gammas_of_terminals_and_vertices():
    config = options.override(preset("small"), "cut.reach=2.5")
    gamma = config.model.cut.build(8, 8).gamma
    assert gamma.edge == 0.5
    assert gamma.terminal == gamma.vertex
    assert math.sqrt(gamma.edge / (gamma.terminal + gamma.vertex)) == pytest.approx(2.5)


def test_the_foreground_is_the_source_or_the_sink_side(small):
    model, images, outputs = small
    sink = options.override(preset("small"), "foreground_side=sink").model.build()
    sink.load_state_dict(model.state_dict())
    torch.testing.assert_close(sink(images).foreground_mask, 1 - outputs.foreground_mask)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.image_size=31", "image_size.*even.*31"),
        ("decoder.start=3", "image_size.*decoder.start.*32.*3"),
        ("cut.gamma_vertex=0.05", "cut.reach.*2.236.*gamma_vertex.*0.05"),
    ],
)
def test_bad_options_are_refused(assignment, message):
    config = options.override(preset("small"), assignment)
    with pytest.raises(InputError, match=message):
        config.model.build()
    if "gamma" in assignment:
        with pytest.raises(InputError, match=message):
            options.check(config)


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_gamma_and_the_temperatures_of_potentials_are_one_knob(factor):
    torch.manual_seed(0)
    base = preset("small")
    scaled, images = base, torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    for path in ("cut.gamma", "temperature.object", "temperature.foreground"):
        value = options.flat(base)[f"model.{path}"]
        value = value * factor if path == "cut.gamma" else value / factor
        scaled = options.override(scaled, f"{path}={value!r}")
    first, second = (config.model.build().double() for config in (base, scaled))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        second.partition(images).masks, first.partition(images).masks, rtol=1e-12, atol=1e-14
    )
