"""GENESIS-V2: masks around seeds by hand, the loss as a mixture, and its multiplier."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from cutslots.errors import InputError
from cutslots.models.genesis_v2 import Config, InstanceColouring, UNet
from cutslots.nn.batch_shard import BatchShard, use_shard

TINY = Config(image_size=16, num_slots=3, size=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TINY.build()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_masks_break_the_stick_around_the_highest_ranked_remaining_pixel():
    colouring = InstanceColouring(Config(image_size=16, num_slots=3, size=8, colours=2))
    with torch.no_grad():
        colouring.log_width.fill_(math.log(0.1))
    rank = torch.full((1, 16, 16), 0.5)
    rank[0, 0, 0], rank[0, 15, 15], rank[0, 0, 1] = 0.9, 0.8, 0.85
    masks = colouring(torch.randn(1, 8, 16, 16), rank).exp()[0].detach()
    torch.testing.assert_close(masks.sum(0), torch.ones(16, 16))
    # The embedding starts as coordinates in [-1, 1], so neighbours are 2/15 apart. Pixel (0, 1)
    # ranks above (15, 15), but the first mask takes most of it.
    near = math.exp(-((2 / 15) ** 2) / 0.1)
    assert masks[0, 0, 0] == pytest.approx(0.99)
    assert masks[0, 0, 1] == pytest.approx(near, rel=1e-4)
    assert masks[0, 15, 15] == pytest.approx(0.01)
    assert masks[1, 15, 15] == pytest.approx(0.99 * 0.99)
    assert masks[1, 15, 14] == pytest.approx(0.99 * near, rel=1e-4)
    assert masks[2, 8, 8] == pytest.approx(0.99 * 0.99)


def test_every_parameter_learns_once_the_gate_is_open(model, images):
    with torch.no_grad():
        model.colouring.gate.fill_(0.1)
    model.loss(model(images), images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_loss_is_the_mixtures_likelihood_and_the_weighted_divergence(model, images):
    outputs = model.eval()(images)
    components = Normal((outputs.reconstructions.permute(0, 2, 3, 4, 1) + 1) / 2, 0.7)
    weights = outputs.alpha.permute(0, 2, 3, 1)[:, None].expand(-1, 3, -1, -1, -1)
    likelihood = MixtureSameFamily(Categorical(weights), components).log_prob((images + 1) / 2)
    expected = (-likelihood.sum((1, 2, 3)) + 1.0 * outputs.divergence).mean() / (3 * 16 * 16)
    torch.testing.assert_close(model.loss(outputs, images), expected)


def test_first_prior_is_standard_and_later_ones_follow_from_earlier_slots(model):
    slots, mean, deviation = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.rand(2, 3, 8) + 0.5
    expected = torch.zeros(2)
    for slot in range(3):
        prior = Normal(torch.zeros(2, 8), torch.ones(2, 8))
        if slot:
            state = model.prior(slots[:, :slot])[0][:, -1]
            predicted, spread = model.prior_head(state).chunk(2, -1)
            prior = Normal(torch.tanh(predicted), 1 / (1 + torch.exp(-spread - 4)) + 1e-4)
        posterior, sample = Normal(mean[:, slot], deviation[:, slot]), slots[:, slot]
        expected = expected + (posterior.log_prob(sample) - prior.log_prob(sample)).sum(-1)
    torch.testing.assert_close(model._divergence(slots, Normal(mean, deviation)), expected)


def test_multiplier_falls_above_the_goal_and_rises_faster_below(model, images):
    class Error(BatchShard):
        """Replaces the error of the batch."""

        def mean(self, tensor):
            return torch.tensor(model.config.geco.goal + difference)

    geco, expected, running = model.config.geco, 1.0, None
    for difference in (0.1, -30.0):
        with use_shard(Error()):
            model.loss(model(images), images)
        # The running mean moves by a hundredth of the difference.
        running = difference if running is None else 0.99 * running + 0.01 * difference
        expected *= math.exp(-running * geco.rate * (geco.speedup if running < 0 else 1))
        assert float(model.mean_error) == pytest.approx(geco.goal + running)
        assert float(model.multiplier) == pytest.approx(expected)
    assert {"multiplier", "mean_error"} <= model.state_dict().keys()


def test_evaluation_decodes_the_posteriors_mean_and_keeps_the_multiplier(model, images):
    assert not torch.equal(model(images).slots, model(images).slots)
    model.eval()
    assert torch.equal(model(images).slots, model(images).slots)
    model.loss(model(images), images)
    assert model.multiplier == 1
    assert model.mean_error.isnan()


def test_sizes():
    for size in (16, 128):
        assert UNet(size, 8)(torch.zeros(1, 3, size, size)).shape == (1, 8, size, size)
    with pytest.raises(InputError, match="image_size.*48"):
        Config(image_size=48).build()
    with pytest.raises(InputError, match="size.*multiple of 8.*20"):
        Config(size=20).build()
