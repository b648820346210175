"""The model of moving objects: Algorithm 3 by hand, slots of two frames, and gradients."""

import math
from dataclasses import replace

import pytest
import torch

from cutslots import options
from cutslots.models.min_cut_video import MatchingConfig, Pairing
from cutslots.train.config import preset


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = preset("small-video")
    for assignment in ("encoder.channels=8", "weights.hidden=8", "slots.size=8", "num_slots=4"):
        config = options.override(config, assignment)
    return config.model.build()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pairs_by_hand():
    """Eq. 7 for two slots per frame, gamma = 1: multipliers (3/8, 1/8) and (1/8, 3/8)."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])
    # Costs -<s_i, t_j> are [[0, -3], [-2, 0]], so -(c + l_u + l_v) is [[-1/2, 9/4], [7/4, -1/2]].
    temperature = 2.0
    p, q = 1 / (1 + math.exp(-2.75 / temperature)), 1 / (1 + math.exp(-2.25 / temperature))
    pairs, assignment = Pairing(MatchingConfig(gamma=1.0, temperature=temperature))(first, second)
    torch.testing.assert_close(assignment, torch.tensor([[[1 - p, p], [q, 1 - q]]]))
    torch.testing.assert_close(pairs[:, 0], first)
    expected = torch.tensor([[[3 * p, 2 * (1 - p)], [3 * (1 - q), 2 * q]]])
    torch.testing.assert_close(pairs[:, 1], expected)


def test_shapes(model, images):
    outputs = model(images)
    assert {name: tuple(value.shape) for name, value in vars(outputs).items()} == {
        "masks": (3, 2, 4, 16, 16),
        "slots": (3, 2, 4, 8),
        "assignment": (3, 4, 4),
        "paired": (3, 2, 4, 8),
        "reconstructions": (3, 2, 4, 3, 32, 32),
        "alpha": (3, 2, 4, 32, 32),
        "reconstruction": (3, 2, 3, 32, 32),
    }
    torch.testing.assert_close(outputs.assignment.sum(2), torch.ones(3, 4))


def test_frames_share_the_image_model(model, images):
    partition = model.image.partition(images.flatten(0, 1))
    torch.testing.assert_close(model(images).slots.flatten(0, 1), partition.slots)
    for parameter in model.mlp.parameters():
        torch.nn.init.zeros_(parameter)
    # Without the MLP, the first frame is decoded as by the image model.
    outputs, expected = model(images), model.image(images[:, 0]).reconstruction
    torch.testing.assert_close(outputs.reconstruction[:, 0], expected)
    torch.testing.assert_close(outputs.paired[:, 1], outputs.assignment @ outputs.slots[:, 1])


def test_order_of_the_second_frames_slots_has_no_effect(model, images):
    first, second = model(images).slots.unbind(1)
    order = torch.tensor([2, 0, 3, 1])
    pairs, assignment = model.pairing(first, second)
    again, permuted = model.pairing(first, second[:, order])
    torch.testing.assert_close(permuted, assignment[:, :, order])
    torch.testing.assert_close(again, pairs)


def test_loss_is_the_sum_of_both_frames(model, images):
    outputs = model(images)
    frames = zip(outputs.reconstruction.unbind(1), images.unbind(1), strict=True)
    expected = sum(torch.nn.functional.mse_loss(*frame) for frame in frames)
    torch.testing.assert_close(model.loss(outputs, images), expected)
    spoilt = outputs.reconstruction * torch.tensor([1.0, math.nan]).view(1, 2, 1, 1, 1)
    assert not model.loss(replace(outputs, reconstruction=spoilt), images).isfinite()


@pytest.mark.parametrize("decoded", [0, 1])
def test_each_decoded_frame_depends_on_both_frames_and_the_matching(model, images, decoded):
    outputs = model(images.requires_grad_())
    outputs.assignment.retain_grad()
    outputs.reconstruction[:, decoded].square().mean().backward()
    assert (images.grad.abs().amax((0, 2, 3, 4)) > 0).all()
    assert outputs.assignment.grad.abs().max() > 0


def test_the_papers_preset():
    config = preset("paper-movi").model
    assert (config.image_size, config.num_slots, config.frames, config.distance) == (128, 8, 2, 1)
