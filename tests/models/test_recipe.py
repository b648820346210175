"""The options that the recipe of `small` adds to the paper's model."""

import itertools

import pytest
import torch
from torch.nn import functional

from cutslots import options
from cutslots.qp.solvers import BACK_ENDS
from cutslots.train.config import preset

RECIPE = ("composition=cut", "weights.dilated=true", "window.kind=slot", "color.steps=3")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(*assignments: str, name: str = "small"):
    config = preset(name)
    for assignment in assignments:
        config = options.override(config, assignment)
    torch.manual_seed(0)
    return config.model.build()


def finished(model):
    """The model as after its ramp."""
    model.detail.step = model.detail.wait + model.detail.length
    return model


@pytest.fixture(scope="module")
def recipe():
    return build(*RECIPE, "color.ramp=4")


def test_alpha_has_the_cut_masks_as_prior(recipe):
    model = finished(recipe)
    outputs = model(IMAGES)
    _, opacity = model.decoder(outputs.slots)
    opacity = torch.cat([opacity[:, :1], opacity[:, 1:] + log_windows(model, outputs)], 1)
    prior = functional.interpolate(
        torch.log(outputs.masks + model.config.mask_floor), size=32, mode="bilinear"
    )
    expected = opacity.exp() * prior.exp()
    torch.testing.assert_close(outputs.alpha, expected / expected.sum(1, keepdim=True))


def log_windows(model, outputs):
    """Pixel by pixel, from the definition."""
    parameters = model.window(outputs.slots[:, 1:])
    windows = torch.empty(*parameters.shape[:2], 32, 32)
    for image, slot, i, j in itertools.product(*map(range, windows.shape)):
        row, column, size, height = parameters[image, slot]
        center = torch.sigmoid(3 * row), torch.sigmoid(3 * column)
        deviation = 0.03 + 0.12 * torch.sigmoid(size + 1)
        squared = (i / 31 - center[0]) ** 2 + (j / 31 - center[1]) ** 2
        windows[image, slot, i, j] = height + 2 - squared / (2 * deviation**2)
    return windows


def test_a_slot_has_one_color_until_detail_comes_in():
    model = build(*RECIPE, "color.ramp=4")
    spread = []
    for _ in range(9):
        outputs = model(IMAGES)
        spread.append(float(outputs.reconstructions.detach().std((-2, -1)).max()))
        model.loss(outputs, IMAGES)
    assert spread[:4] == [0.0] * 4  # the ramp is still at 0 on its first step
    assert 0 < spread[4] < spread[5] < spread[6]
    assert spread[7] == spread[8]  # steps, not weights, have moved it


def test_evaluation_neither_counts_steps_nor_depends_on_later_ones():
    model = build(*RECIPE, "color.ramp=4").eval()
    before = model(IMAGES).reconstruction
    model.loss(model(IMAGES), IMAGES)
    assert model.detail.step == 0
    torch.testing.assert_close(model(IMAGES).reconstruction, before, rtol=0, atol=0)


def test_the_state_dict_holds_the_step():
    first = build(*RECIPE, "color.ramp=4")
    first.detail.step = 5
    second = build(*RECIPE, "color.ramp=4")
    second.load_state_dict(first.state_dict())
    assert second.detail.step == 5
    torch.testing.assert_close(second(IMAGES).alpha, first(IMAGES).alpha, rtol=0, atol=0)


def test_every_parameter_gets_a_gradient_in_every_phase():
    model = build(*RECIPE, "color.ramp=4")
    for step in (0, 5, 7):
        model.detail.step = step
        model.zero_grad()
        model.loss(model(IMAGES), IMAGES).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in model.decoder.parameters())


def test_a_window_is_centered_on_its_cut_mask():
    model = build("window.kind=cut")
    masks = torch.zeros(1, 1, 16, 16)
    masks[0, 0, 3:6, 10:15] = 1
    window = model._window(torch.zeros(1, 1, 4), masks)[0, 0]
    row, column = divmod(int(window.argmax()), 32)
    assert (row, column) == (round(4 / 15 * 31), round(12 / 15 * 31))


def test_dilated_weight_nets_see_farther():
    def reach(*assignments):
        net = build(*assignments, "weights.norm=false").foreground_weights
        features = torch.zeros(1, 24, 16, 16, requires_grad=True)
        net.last.bias.data.fill_(1.0)
        (gradient,) = torch.autograd.grad(net(features + 0.1)[0, 0, 0, 8, 8], features)
        return int((gradient[0].abs().sum(0) > 0).any(0).sum())

    assert reach("weights.dilated=false") == 9
    assert reach("weights.dilated=true") == 16  # 17 in a larger image


@pytest.mark.parametrize("solver", BACK_ENDS)
def test_the_recipe_works_with_every_solver(solver, recipe):
    model = build(*RECIPE, "color.ramp=4", f"cut.solver={solver}")
    model.load_state_dict(recipe.state_dict())
    model, expected = finished(model), finished(recipe)(IMAGES)
    torch.testing.assert_close(model(IMAGES).alpha, expected.alpha, rtol=1e-3, atol=1e-3)


def test_the_video_model_composes_by_the_masks_of_the_matched_slots():
    model = finished_video(build(*RECIPE, "color.ramp=4", name="small-video"))
    clip = IMAGES[None]
    outputs = model(clip)
    prior = outputs.masks.clone()
    prior[0, 1] = torch.einsum("ij,jhw->ihw", outputs.assignment[0], outputs.masks[0, 1])
    expected = model.image.decode(outputs.paired[0], prior[0])
    torch.testing.assert_close(outputs.alpha[0], expected[1])


def finished_video(model):
    finished(model.image)
    return model
