"""Slot Attention against its published equations in NumPy."""

import numpy as np
import pytest
import torch

from cutslots.models.slot_attention import AttentionConfig, SlotAttention, SlotSampler
from cutslots.train.config import preset


def published(weights, inputs, slots, num_iterations, epsilon):
    """Algorithm 1 for one image: inputs (pixels, channels), slots (slots, size)."""

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def gru(x, h):
        of_x = x @ weights["gru.weight_ih"].T + weights["gru.bias_ih"]
        of_h = h @ weights["gru.weight_hh"].T + weights["gru.bias_hh"]
        (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3, -1), np.split(of_h, 3, -1)
        reset, keep = sigmoid(xr + hr), sigmoid(xz + hz)
        return (1 - keep) * np.tanh(xn + reset * hn) + keep * h

    inputs, attention = layer_norm(inputs, "norm_inputs"), slots
    keys, values = linear(inputs, "keys"), linear(inputs, "values")
    for _ in range(num_iterations):
        queries = linear(layer_norm(slots, "norm_slots"), "queries")
        logits = np.exp(keys @ queries.T / np.sqrt(slots.shape[-1]))  # (pixels, slots)
        attention = logits / logits.sum(1, keepdims=True)  # slots compete for each pixel
        mean = (attention + epsilon) / (attention + epsilon).sum(0)  # weights over pixels
        slots = gru(mean.T @ values, slots)
        hidden = np.maximum(linear(layer_norm(slots, "norm_mlp"), "mlp.0"), 0)
        slots = slots + linear(hidden, "mlp.2")
    return slots, attention.T


@pytest.mark.parametrize(("num_iterations", "epsilon"), [(3, 1e-8), (1, 1e-8), (3, 0.5)])
def test_rounds_equal_the_published_equations(num_iterations, epsilon):
    torch.manual_seed(0)
    config = AttentionConfig(size=6, hidden=10, num_iterations=num_iterations, epsilon=epsilon)
    module = SlotAttention(config, channels=5)
    for parameter in module.parameters():  # no norm stays at 1 and 0, no bias at 0
        torch.nn.init.normal_(parameter)
    inputs, slots = torch.randn(2, 20, 5), torch.randn(2, 4, 6)
    results = [result.detach().numpy() for result in module(inputs, slots)]
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    for image in range(2):
        arguments = inputs[image].double().numpy(), slots[image].double().numpy()
        expected = published(weights, *arguments, num_iterations, epsilon)
        for result, reference in zip(results, expected, strict=True):
            np.testing.assert_allclose(result[image], reference, atol=2e-4, rtol=2e-4)


def test_initial_slots_are_random_in_training_and_fixed_in_evaluation():
    torch.manual_seed(0)
    sampler = SlotSampler(size=3, num_slots=5)
    mean, deviation = torch.tensor([0.0, 10.0, -5.0]), torch.tensor([0.1, 1.0, 3.0])
    with torch.no_grad():
        sampler.mean.copy_(mean[None])
        sampler.log_deviation.copy_(deviation.log()[None])
    samples = sampler(4000).detach().flatten(0, 1)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(samples.std(0), deviation, atol=0, rtol=0.03)
    assert not torch.equal(sampler(2)[0], sampler(2)[0])
    sampler.eval()
    assert torch.equal(sampler(2)[0], sampler(3)[2])
    assert not torch.equal(sampler(1)[0, 0], sampler(1)[0, 1])


@pytest.mark.parametrize("suffix", ["-clevr", "-clevrtex", "-small"])
def test_presets_differ_from_ours_in_the_grouping_alone(suffix):
    ours = preset("small" if suffix == "-small" else f"paper{suffix}").model
    theirs = preset(f"slot-attention{suffix}").model
    for part in ("image_size", "num_slots", "encoder", "decoder"):
        assert getattr(theirs, part) == getattr(ours, part)


def test_published_sizes_and_schedule():
    config = preset("slot-attention-clevr")
    optim, attention = config.optim, config.model.attention
    assert (attention.size, attention.hidden, attention.num_iterations) == (64, 128, 3)
    assert (optim.learning_rate, optim.batch_size) == (4e-4, 64)
    assert (optim.warmup_steps, config.train.steps) == (10_000, 500_000)
    assert optim.rate(4_999, 500_000) == pytest.approx(4e-4 / 2 * 0.5 ** (4_999 / 100_000))
    assert optim.rate(200_000, 500_000) == pytest.approx(1e-4)
