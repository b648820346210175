"""The contract of models (`cutslots.models`), tested with every small preset."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutslots import models, options
from cutslots.data import Batches, prepare, sources
from cutslots.errors import InputError
from cutslots.report.figures import GAP, GROUPINGS, sample_figure
from cutslots.train import Callback, checkpoint, evaluate, fit, load_model, predict
from cutslots.train.config import PRESETS, RunConfig, from_json, preset, to_json
from cutslots.train.export import save_model

SMALL = [name for name in PRESETS if preset(name).model.image_size <= 32]
STILL = [name for name in SMALL if not hasattr(preset(name).model, "frames")]
SHORT = ("batch_size=4", "train.steps=6", "log_every=2", "eval_every=3", "eval_images=4")
SHORT += ("checkpoint_every=2",)


def overridden(config: RunConfig, *assignments: str) -> RunConfig:
    for assignment in assignments:
        config = options.override(config, assignment)
    return config


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=50, size=32))
    return folder


@pytest.fixture(params=SMALL)
def config(request) -> RunConfig:
    return overridden(preset(request.param), *SHORT)


@pytest.fixture(params=STILL)
def still(request) -> RunConfig:
    """A model of images, which trains on `scenes`."""
    return overridden(preset(request.param), *SHORT)


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return config.model.build()


@pytest.fixture
def images(config) -> torch.Tensor:
    frames = (2,) if hasattr(config.model, "frames") else ()
    return torch.rand(3, *frames, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_folder_is_the_registry_and_every_model_has_a_small_preset():
    assert set(models.names()) == {preset(name).model_name for name in SMALL}
    assert models.load("slot_attention").Config() == preset("slot-attention-clevr").model
    with pytest.raises(InputError, match="mincut_slots.*'min_cut_slots'"):
        models.load("mincut_slots")


def test_outputs(config, model, images):
    outputs = model(images)
    fields = {field.name for field in dataclasses.fields(outputs)}
    assert fields == vars(outputs).keys()
    assert all(value.shape[0] == 3 for value in vars(outputs).values())
    axis, slots = images.ndim - 3, config.model.num_slots
    shape = images.shape[:axis]
    assert outputs.reconstruction.shape == images.shape
    assert outputs.reconstructions.shape == (*shape, slots, 3, 32, 32)
    assert outputs.reconstructions.abs().max() <= 1
    blend = (outputs.alpha.unsqueeze(axis + 1) * outputs.reconstructions).sum(axis)
    torch.testing.assert_close(blend, outputs.reconstruction)
    for name in {"alpha", *GROUPINGS} & fields:
        masks = getattr(outputs, name)
        assert masks.shape[axis] == slots
        assert 32 % masks.shape[-1] == 0
        torch.testing.assert_close(masks.sum(axis), torch.ones_like(masks.select(axis, 0)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_is_a_scalar_with_a_gradient(model, images, precision):
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model.loss(model(images), images)
    assert loss.shape == ()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_nan_reaches_the_loss_where_fit_looks_for_it(model, images):
    images[1, ..., 3, 3] = float("nan")
    assert not model.loss(model(images), images).isfinite()


def test_evaluation_depends_on_the_image_alone(model, images):
    model.eval()
    with torch.no_grad():
        outputs = model(images)
        torch.rand(5)  # the global generator must not matter
        alone = model(images[1:2])
    for name, value in vars(outputs).items():
        assert torch.allclose(getattr(alone, name)[0], value[1], atol=1e-4, rtol=1e-4), name


def test_configuration_survives_json_and_takes_options(config, images):
    assert from_json(to_json(config)) == config
    changed = options.override(config, "num_slots=3")
    assert from_json(to_json(changed)) == changed
    outputs = changed.model.build()(images)
    assert outputs.alpha.shape[images.ndim - 3] == changed.model.num_slots == 3


def test_few_images_are_learnt(still, scenes):
    torch.manual_seed(0)
    model = still.model.build()
    pixels = Batches(scenes, "train", 4, shuffle=False).batch(0, 0).images
    images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    optimizer = torch.optim.Adam(model.parameters(), still.optim.learning_rate)
    errors = []
    for _ in range(60):
        outputs = model(images)
        optimizer.zero_grad()
        model.loss(outputs, images).backward()
        optimizer.step()
        errors.append(float((outputs.reconstruction.detach() - images).square().mean()))
    assert errors[-1] < 0.7 * errors[0]
    # Better than the best single colour, which needs no objects.
    assert errors[-1] < float((images - images.mean((2, 3), keepdim=True)).square().mean())


def test_resume_is_bit_exact(still, scenes, tmp_path):
    class Stop(Callback):
        def on_save(self, step, path, best):
            if step == 4:
                raise KeyboardInterrupt

    expected = fit(still, scenes, tmp_path / "expected", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(still, scenes, tmp_path / "parts", Stop(), device="cpu")
    torch.rand(3)
    resumed = fit(still, scenes, tmp_path / "parts", resume=True, device="cpu")
    assert resumed.best == expected.best
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_training_evaluation_figure_and_export(still, scenes, tmp_path):
    class Keep(Callback):
        def on_evaluate(self, step, scores, sample):
            self.scores, self.sample = scores, sample

    keep = Keep()
    model = fit(still, scenes, tmp_path / "run", keep, device="cpu").model
    outputs = keep.sample.outputs
    cuts = hasattr(outputs, "masks")
    assert {"ari_fg", "ari", "miou", "mse", "mse_mean", "num_images"} <= keep.scores.keys()
    assert ({"cut_ari_fg", "cut_ari", "cut_miou"} <= keep.scores.keys()) == cuts

    sample_figure(keep.sample, tmp_path / "figure.png", tile=32)
    columns = 4 + len(GROUPINGS.keys() & vars(outputs).keys()) + outputs.alpha.shape[1]
    assert Image.open(tmp_path / "figure.png").width == GAP + columns * (32 + GAP)

    batches = Batches(scenes, "val", 3, shuffle=False, drop_last=False)
    scores, _ = evaluate(model, batches, torch.device("cpu"), 4)
    assert scores == pytest.approx(keep.scores, rel=1e-4)

    weights = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000006.pt")["model"]
    save_model(weights, still, tmp_path / "export")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    predicted = predict(load_model(tmp_path / "export"), images)
    assert ("cut_masks" in predicted) == cuts
    expected, empty = predict(model.eval(), images), predict(model, images[:0])
    assert predicted.keys() == expected.keys() == empty.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(predicted[name], value)
        assert empty[name].shape == (0, *value.shape[1:])


def test_new_model_is_one_file(scenes, tmp_path, monkeypatch):
    """The README's example, saved in the folder of models, trains and predicts."""
    readme = (Path(__file__).parents[2] / "cutslots/models/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = next(block for block in blocks if "class Layers" in block)
    (tmp_path / "layers.py").write_text(code)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    try:
        model = models.load("layers").Config(image_size=32, num_slots=4)
        config = dataclasses.replace(preset("small"), model=model)
        config = overridden(config, *SHORT, "model.num_slots=3")
        assert from_json(to_json(config)) == config
        result = fit(config, scenes, tmp_path / "run", device="cpu")
        assert 0 <= result.best["miou"] <= 1
        images = np.zeros((1, 32, 32, 3), np.uint8)
        assert predict(load_model(tmp_path / "run"), images)["masks"].shape == (1, 32, 32)
    finally:
        sys.modules.pop("cutslots.models.layers", None)
