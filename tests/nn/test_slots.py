"""Slot heads against Algorithm 2 as written."""

import torch
from torch import nn

from cutslots.nn.slots import SlotHeads, SlotsConfig


def test_slot_heads_equal_the_pixelwise_algorithm():
    """Transform every pixel, mask, average, transform."""
    torch.manual_seed(1)
    heads = SlotHeads(SlotsConfig(size=5, hidden=7, num_heads=3), channels=4)
    features, masks = torch.randn(2, 4, 6, 3), torch.rand(2, 8, 6, 3)
    x, expected = heads.norm(features.permute(0, 2, 3, 1)), 0
    weights, biases = heads.before.weight.chunk(3), heads.before.bias.chunk(3)
    for head, (project, after) in enumerate(zip(heads.project, heads.after, strict=True)):
        pixels = project(torch.relu(nn.functional.linear(x, weights[head], biases[head])))
        slot = torch.einsum("bkhw,bhwc->bkhwc", masks, pixels).mean((2, 3))
        expected = expected + after(slot) + (slot if head == 0 else 0)
    torch.testing.assert_close(heads(features, masks), expected)
