"""Initial weights."""

import math

import pytest
import torch
from torch import nn

from cutslots.nn.init import glorot_init, he_init


def test_glorot_weights_have_the_variance_of_fan_in_and_fan_out():
    torch.manual_seed(0)
    layers = [nn.Linear(200, 300), nn.Conv2d(20, 40, 5), nn.ConvTranspose2d(40, 20, 5)]
    gru, norm = nn.GRUCell(64, 64), nn.LayerNorm(7)
    glorot_init(nn.ModuleList([*layers, gru, norm]))
    for layer, fans in zip(layers, (500, 1500, 1500), strict=True):
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fans), rel=0.02)
        assert not layer.bias.any()
    # The three gates' weights count as one matrix of 64 x 192.
    assert float(gru.weight_ih.detach().std()) == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    torch.testing.assert_close(gru.weight_hh.T @ gru.weight_hh, torch.eye(64), atol=1e-5, rtol=0)
    assert not gru.bias_ih.any()
    assert not gru.bias_hh.any()
    assert torch.equal(norm.weight, torch.ones(7))


def test_he_weights_keep_the_size_of_a_signal():
    torch.manual_seed(0)
    doublings = [nn.ConvTranspose2d(32, 32, 5, 2, 2, output_padding=1) for _ in range(4)]
    layers = nn.Sequential(*(module for layer in doublings for module in (layer, nn.ReLU())))
    x = torch.randn(4, 32, 8, 8)
    before = layers(x).square().mean().sqrt()
    he_init(layers)
    after = layers(x).square().mean().sqrt()
    assert before < 0.2, "torch's default no longer shrinks the signal: he_init may be unnecessary"
    assert 0.4 < after < 2.5
