"""Slot Attention against its published equations, written out in numpy."""

import numpy as np
import pytest
import torch

from cutslots.models.slot_attention import AttentionConfig, SlotAttention, SlotSampler
from cutslots.nn.noise import drawn
from cutslots.train.config import preset


def published(weights, inputs, slots, num_iterations, epsilon):
    """Algorithm 1 of the paper for one image, inputs (pixels, channels) and slots (slots, size), with the GRU cell written out."""

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def gru(x, h):
        of_x = x @ weights["gru.weight_ih"].T + weights["gru.bias_ih"]
        of_h = h @ weights["gru.weight_hh"].T + weights["gru.bias_hh"]
        (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3, -1), np.split(of_h, 3, -1)
        reset, keep = sigmoid(xr + hr), sigmoid(xz + hz)
        return (1 - keep) * np.tanh(xn + reset * hn) + keep * h

    inputs = layer_norm(inputs, "norm_inputs")
    keys, values = inputs @ weights["keys.weight"].T, inputs @ weights["values.weight"].T
    attention = None
    for _ in range(num_iterations):
        previous = slots
        queries = layer_norm(slots, "norm_slots") @ weights["queries.weight"].T
        logits = keys @ queries.T / np.sqrt(slots.shape[-1])  # (pixels, slots)
        attention = np.exp(logits) / np.exp(logits).sum(
            1, keepdims=True
        )  # slots compete for each pixel
        shares = (attention + epsilon) / (attention + epsilon).sum(0)  # a weighted mean over pixels
        slots = gru(shares.T @ values, previous)
        hidden = np.maximum(
            layer_norm(slots, "norm_mlp") @ weights["mlp.0.weight"].T + weights["mlp.0.bias"], 0
        )
        slots = slots + hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]
    assert attention is not None
    return slots, attention.T


@pytest.mark.parametrize(("num_iterations", "epsilon"), [(3, 1e-8), (1, 1e-8), (3, 0.5)])
def test_the_rounds_are_the_published_ones(num_iterations, epsilon):
    torch.manual_seed(0)
    module = SlotAttention(
        AttentionConfig(size=6, hidden=10, num_iterations=num_iterations, epsilon=epsilon),
        channels=5,
    )
    for parameter in module.parameters():  # no norm is left at 1 and 0, no bias at 0
        torch.nn.init.normal_(parameter)
    inputs, slots = torch.randn(2, 20, 5), torch.randn(2, 4, 6)
    found, attention = module(inputs, slots)
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    for image in range(2):
        expected = published(
            weights,
            inputs[image].double().numpy(),
            slots[image].double().numpy(),
            num_iterations,
            epsilon,
        )
        np.testing.assert_allclose(found[image].detach(), expected[0], atol=2e-4, rtol=2e-4)
        np.testing.assert_allclose(attention[image].detach(), expected[1], atol=2e-4, rtol=2e-4)


def test_slots_start_from_one_gaussian_anew_in_training_and_alike_in_evaluation():
    torch.manual_seed(0)
    sampler = SlotSampler(size=3, num_slots=5)
    with torch.no_grad():
        sampler.mean.copy_(torch.tensor([[0.0, 10.0, -5.0]]))
        sampler.log_deviation.copy_(torch.tensor([[0.1, 1.0, 3.0]]).log())
    many = sampler(4000).detach().flatten(0, 1)
    torch.testing.assert_close(many.mean(0), sampler.mean[0].detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(many.std(0), torch.tensor([0.1, 1.0, 3.0]), atol=0, rtol=0.03)
    assert not torch.equal(sampler(2)[0], sampler(2)[0])
    sampler.eval()
    assert torch.equal(sampler(2)[0], sampler(3)[2])
    assert not torch.equal(sampler(1)[0, 0], sampler(1)[0, 1])


def test_fixed_numbers_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    drawn(torch.rand, 2, 3, fresh=False, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    drawn(torch.rand, 2, 3, fresh=True, device=torch.device("cpu"))
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("slot-attention-clevr", "paper-clevr"),
        ("slot-attention-clevrtex", "paper-clevrtex"),
        ("slot-attention-small", "small"),
    ],
)
def test_presets_differ_from_ours_in_the_grouping_alone(name, beside):
    theirs, ours = preset(name), preset(beside)
    for part in ("image_size", "num_slots", "encoder", "decoder"):
        assert getattr(theirs.model, part) == getattr(ours.model, part)
    sizes = [
        {n: p.shape for n, p in config.model.build().decoder.named_parameters()}
        for config in (theirs, ours)
    ]
    assert sizes[0] == sizes[1]


def test_published_sizes_and_schedule():
    config = preset("slot-attention-clevr")
    assert config.model.attention == AttentionConfig(
        size=64, hidden=128, num_iterations=3, epsilon=1e-8
    )
    optim = config.optim
    assert (optim.learning_rate, optim.batch_size, optim.warmup_steps, config.train.steps) == (
        4e-4,
        64,
        10_000,
        500_000,
    )
    assert optim.rate(4_999, 500_000) == pytest.approx(4e-4 / 2 * 0.5 ** (4_999 / 100_000))
    assert optim.rate(200_000, 500_000) == pytest.approx(1e-4)
