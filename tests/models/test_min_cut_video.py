"""The model of moving objects: Algorithm 3 by hand, what a slot means in two frames, and where gradients go."""

import math
from dataclasses import replace

import pytest
import torch

from cutslots import options
from cutslots.models.min_cut_video import MatchingConfig, Pairing
from cutslots.train.config import RunConfig, from_json, preset, to_json

TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "num_slots=4",
)


@pytest.fixture
def config() -> RunConfig:
    made = preset("small-video")
    for assignment in TINY:
        made = options.override(made, assignment)
    return made


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return config.model.build()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pairs_by_hand():
    """Eq. 7 solved on paper for two slots a frame, gamma = 1: l = (3/8, 1/8) for the first set, (1/8, 3/8) for the second."""
    first, second = (
        torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
        torch.tensor([[[0.0, 2.0], [3.0, 0.0]]]),
    )
    # Costs -<s_i, t_j> are [[0, -3], [-2, 0]]; so d = -(c + l_u + l_v) = [[-1/2, 9/4], [7/4, -1/2]].
    temperature = 2.0
    p, q = 1 / (1 + math.exp(-2.75 / temperature)), 1 / (1 + math.exp(-2.25 / temperature))
    pairs, assignment = Pairing(MatchingConfig(gamma=1.0, temperature=temperature))(first, second)
    torch.testing.assert_close(assignment, torch.tensor([[[1 - p, p], [q, 1 - q]]]))
    torch.testing.assert_close(pairs[:, 0], first)
    torch.testing.assert_close(
        pairs[:, 1], torch.tensor([[[3 * p, 2 * (1 - p)], [3 * (1 - q), 2 * q]]])
    )


def test_every_intermediate_has_its_shape_and_a_slot_is_one_object(model, images):
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
    ones = torch.ones(3, 2, 32, 32)
    torch.testing.assert_close(outputs.alpha.sum(2), ones)
    torch.testing.assert_close(outputs.masks.sum(2), ones[..., :16, :16])
    torch.testing.assert_close(outputs.assignment.sum(2), torch.ones(3, 4))
    torch.testing.assert_close(
        (outputs.alpha[:, :, :, None] * outputs.reconstructions).sum(2), outputs.reconstruction
    )


def test_frames_share_the_image_model(model, images):
    whole = model.image.partition(images.flatten(0, 1))
    torch.testing.assert_close(model(images).slots.flatten(0, 1), whole.slots)
    with torch.no_grad():
        for layer in model.mlp:
            for parameter in layer.parameters():
                parameter.zero_()
    # Without the MLP the first frame is painted as the image model paints it.
    outputs = model(images)
    torch.testing.assert_close(
        outputs.reconstruction[:, 0], model.image(images[:, 0]).reconstruction
    )
    torch.testing.assert_close(outputs.paired[:, 1], outputs.assignment @ outputs.slots[:, 1])


def test_the_order_of_the_second_frames_slots_does_not_matter(model, images):
    first, second = model(images).slots.unbind(1)
    order = torch.tensor([2, 0, 3, 1])
    pairs, assignment = model.pairing(first, second)
    again, permuted = model.pairing(first, second[:, order])
    torch.testing.assert_close(permuted, assignment[:, :, order])
    torch.testing.assert_close(again, pairs)


def test_the_loss_is_the_sum_of_both_frames(model, images):
    outputs = model(images)
    alone = [
        torch.nn.functional.mse_loss(outputs.reconstruction[:, frame], images[:, frame])
        for frame in (0, 1)
    ]
    torch.testing.assert_close(model.loss(outputs, images), alone[0] + alone[1])
    bad = replace(
        outputs,
        reconstruction=outputs.reconstruction * torch.tensor([1.0, math.nan]).view(1, 2, 1, 1, 1),
    )
    assert not model.loss(bad, images).isfinite()


@pytest.mark.parametrize("painted", [0, 1])
def test_what_is_painted_of_a_frame_reaches_both_encodings_and_the_matching(model, images, painted):
    images.requires_grad_()
    outputs = model(images)
    outputs.assignment.retain_grad()
    outputs.reconstruction[:, painted].square().mean().backward()
    for frame in (0, 1):
        assert images.grad[:, frame].abs().max() > 0
    assert outputs.assignment.grad.abs().max() > 0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_learns(model, images, precision):
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model.loss(model(images), images)
    assert loss.shape == ()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_evaluation_depends_on_the_pair_alone(model, images):
    model.eval()
    with torch.no_grad():
        outputs = model(images)
        torch.rand(5)
        alone = model(images[1:2])
    for name, value in vars(outputs).items():
        torch.testing.assert_close(
            getattr(alone, name)[0],
            value[1],
            atol=1e-4,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_configurations_survive_json_and_take_options(config):
    assert from_json(to_json(config)) == config
    for assignment in ("num_slots=3", "distance=2", "matching.gamma=0.25"):
        config = options.override(config, assignment)
    assert from_json(to_json(config)) == config
    assert (config.model.num_slots, config.model.distance, config.model.matching.gamma) == (
        3,
        2,
        0.25,
    )
    assert config.model.build()(torch.zeros(1, 2, 3, 32, 32)).assignment.shape == (1, 3, 3)


def test_the_papers_preset():
    config = preset("paper-movi").model
    assert (config.image_size, config.num_slots, config.frames, config.distance) == (128, 8, 2, 1)
