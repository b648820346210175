"""GENESIS-V2: masks around seeds worked by hand, the loss as a mixture, and the multiplier that it moves."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from cutslots import options
from cutslots.errors import InputError
from cutslots.models.genesis_v2 import Config, GecoConfig, InstanceColouring, UNet
from cutslots.train.config import preset


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Config(image_size=16, num_slots=3, size=8).build()


def test_masks_break_the_stick_around_the_highest_ranked_pixel_that_is_left():
    colouring = InstanceColouring(Config(image_size=16, num_slots=3, size=8, colours=2))
    with torch.no_grad():
        colouring.log_width.fill_(math.log(0.1))
    rank = torch.full((1, 16, 16), 0.5)
    rank[0, 0, 0], rank[0, 15, 15], rank[0, 0, 1] = 0.9, 0.8, 0.85
    masks = colouring(torch.randn(1, 8, 16, 16), rank).exp()[0].detach()
    torch.testing.assert_close(masks.sum(0), torch.ones(16, 16))
    # The embedding starts as the places in [-1, 1]: neighbours are 2/15 apart. The second seed is no neighbour of the first, which
    # has most of (0, 1) already, although that pixel ranks above (15, 15).
    near = math.exp(-((2 / 15) ** 2) / 0.1)
    assert masks[0, 0, 0] == pytest.approx(0.99)
    assert masks[0, 0, 1] == pytest.approx(near, rel=1e-4)
    assert masks[0, 15, 15] == pytest.approx(0.01)
    assert masks[1, 15, 15] == pytest.approx(0.99 * 0.99)
    assert masks[1, 15, 14] == pytest.approx(0.99 * near, rel=1e-4)
    assert masks[2, 8, 8] == pytest.approx(0.99 * 0.99)


def test_every_part_learns_once_the_gate_is_open(model):
    with torch.no_grad():
        model.colouring.gate.fill_(0.1)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    model.loss(model(images), images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_is_the_mixtures_likelihood_and_the_weighted_divergence(model):
    model.eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    outputs = model(images)
    components = Normal((outputs.reconstructions.permute(0, 2, 3, 4, 1) + 1) / 2, 0.7)
    weights = outputs.alpha.permute(0, 2, 3, 1)[:, None].expand(-1, 3, -1, -1, -1)
    likelihood = MixtureSameFamily(Categorical(weights), components).log_prob((images + 1) / 2)
    expected = (-likelihood.sum((1, 2, 3)) + 1.0 * outputs.divergence).mean() / (3 * 16 * 16)
    torch.testing.assert_close(model.loss(outputs, images), expected)


def test_the_first_slots_prior_is_standard_and_a_later_ones_follows_from_those_before(model):
    slots, mean, deviation = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.rand(2, 3, 8) + 0.5
    expected = torch.zeros(2)
    for slot in range(3):
        prior = Normal(torch.zeros(2, 8), torch.ones(2, 8))
        if slot:
            predicted, spread = model.prior_head(model.prior(slots[:, :slot])[0][:, -1]).chunk(
                2, -1
            )
            prior = Normal(torch.tanh(predicted), 1 / (1 + torch.exp(-spread - 4)) + 1e-4)
        posterior = Normal(mean[:, slot], deviation[:, slot])
        expected = expected + (
            posterior.log_prob(slots[:, slot]) - prior.log_prob(slots[:, slot])
        ).sum(-1)
    torch.testing.assert_close(model._divergence(slots, Normal(mean, deviation)), expected)


def test_the_multiplier_falls_above_the_goal_rises_faster_below_and_rests_in_evaluation(model):
    geco = GecoConfig()
    model._move_multiplier(torch.tensor(geco.goal + 0.1))
    assert model.mean_error == pytest.approx(geco.goal + 0.1)
    fallen = float(model.multiplier)
    assert fallen == pytest.approx(math.exp(-0.1 * geco.rate))
    model._move_multiplier(
        torch.tensor(geco.goal - 30.0)
    )  # the running mean moves by a hundredth of the way
    below = 0.99 * 0.1 - 0.01 * 30
    assert float(model.multiplier) == pytest.approx(fallen * math.exp(-below * 10 * geco.rate))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    before = model.multiplier.clone()
    model.eval()
    model.loss(model(images), images)
    assert torch.equal(model.multiplier, before)
    model.train()
    model.loss(model(images), images)
    assert not torch.equal(model.multiplier, before)
    assert {"multiplier", "mean_error"} <= model.state_dict().keys()


def test_evaluation_decodes_the_posteriors_mean(model):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert not torch.equal(model(images).slots, model(images).slots)
    model.eval()
    assert torch.equal(model(images).slots, model(images).slots)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_unet_keeps_the_images_size(size):
    assert UNet(size, 8)(torch.zeros(1, 3, size, size)).shape == (1, 8, size, size)


def test_sizes_that_do_not_fit():
    for assignment, message in (
        ("model.image_size=48", "power of two"),
        ("model.size=20", "multiple of 8"),
    ):
        with pytest.raises(InputError, match=message):
            options.override(preset("genesis-v2-small"), assignment).model.build()
