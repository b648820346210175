"""What training, evaluation, figures and export ask of every model of images: each small preset is put through all of it."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutslots import models, options
from cutslots.cli import main
from cutslots.cli._texts import options_table
from cutslots.data import Batches, prepare, sources
from cutslots.report.figures import GAP, GROUPINGS, sample_figure
from cutslots.train import Callback, checkpoint, evaluate, fit, load_model, predict
from cutslots.train.callbacks import ProgressBar
from cutslots.train.config import PRESETS, RunConfig, from_json, preset, to_json
from cutslots.train.export import save_model

SMALL = [name for name in PRESETS if preset(name).model.image_size <= 32]
SHORT = (
    "batch_size=4",
    "train.steps=6",
    "log_every=2",
    "eval_every=3",
    "eval_images=4",
    "checkpoint_every=2",
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", None, folder, sources.load("scenes").Options(count=50, size=32))
    return folder


@pytest.fixture(
    scope="module", params=[name for name in SMALL if not hasattr(preset(name).model, "frames")]
)
def config(request) -> RunConfig:
    made = preset(request.param)
    for assignment in SHORT:
        made = options.override(made, assignment)
    return made


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return config.model.build()


def test_models_of_still_images_have_a_small_preset():
    assert {preset(name).model_name for name in SMALL} >= {
        "min_cut_slots",
        "slot_attention",
        "genesis_v2",
    }


def test_outputs_are_tensors_that_begin_with_the_batch(model, images):
    outputs = model(images)
    assert {field.name for field in dataclasses.fields(outputs)} == vars(outputs).keys()
    assert all(value.shape[0] == 3 for value in vars(outputs).values())
    assert outputs.alpha.shape[1] == model.config.num_slots
    k = outputs.alpha.shape[1]
    assert outputs.reconstruction.shape == (3, 3, 32, 32)
    assert outputs.reconstructions.shape == (3, k, 3, 32, 32)
    assert outputs.reconstructions.abs().max() <= 1
    torch.testing.assert_close(
        (outputs.alpha[:, :, None] * outputs.reconstructions).sum(1), outputs.reconstruction
    )
    for name in {"alpha", *GROUPINGS} & vars(outputs).keys():
        masks = getattr(outputs, name)
        assert masks.shape[1] == k
        assert 32 % masks.shape[-1] == 0
        torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_number_with_a_gradient(model, images, precision):
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model.loss(model(images), images)
    assert loss.shape == ()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_few_images_are_learnt(config, model, scenes):
    images = (
        Batches(scenes, "train", 4, shuffle=False).batch(0, 0).images.permute(0, 3, 1, 2) / 127.5
        - 1
    )
    optimizer = torch.optim.Adam(model.parameters(), config.optim.learning_rate)
    errors = []
    for _ in range(60):
        outputs = model(images)
        optimizer.zero_grad()
        model.loss(outputs, images).backward()
        optimizer.step()
        errors.append(float(torch.nn.functional.mse_loss(outputs.reconstruction.detach(), images)))
    assert errors[-1] < 0.7 * errors[0]
    # Better than the best single colour, which needs no objects.
    assert errors[-1] < float((images - images.mean((2, 3), keepdim=True)).square().mean())


def test_what_is_not_finite_reaches_the_loss_where_fit_looks_for_it(model, images):
    images[1, 0, 3, 3] = float("nan")
    assert not model.loss(model(images), images).isfinite()


def test_evaluation_depends_on_the_image_alone(model, images):
    model.eval()
    with torch.no_grad():
        outputs, state = model(images), torch.get_rng_state()
        torch.rand(5)
        alone = model(images[1:2])
    assert not torch.equal(state, torch.get_rng_state()), (
        "the second call starts from other random numbers"
    )
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
    changed = options.override(config, "num_slots=3")
    assert changed.model.num_slots == 3
    assert changed.model.build()(torch.zeros(1, 3, 32, 32)).alpha.shape[1] == 3


def test_interrupted_and_resumed_a_run_ends_with_the_same_bits(config, scenes, tmp_path):
    class Stop(Callback):
        def on_save(self, step, path, best):
            if step == 4:
                raise KeyboardInterrupt

    whole = fit(config, scenes, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(config, scenes, tmp_path / "parts", Stop(), device="cpu")
    torch.rand(3)
    resumed = fit(config, scenes, tmp_path / "parts", resume=True, device="cpu")
    assert resumed.best == whole.best
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_trained_scored_drawn_exported_and_used(config, scenes, tmp_path, capsys):
    class Keep(Callback):
        def on_evaluate(self, step, scores, sample):
            self.scores, self.sample = scores, sample
            ProgressBar(live=False).on_evaluate(step, scores, sample)

    keep = Keep()
    model = fit(config, scenes, tmp_path / "run", keep, device="cpu").model
    outputs = keep.sample.outputs
    cuts = hasattr(outputs, "masks")
    assert {"ari_fg", "ari", "miou", "mse", "mse_mean", "num_images"} <= keep.scores.keys()
    assert ({"cut_ari_fg", "cut_ari", "cut_miou"} <= keep.scores.keys()) == cuts
    assert ("by cut masks" in capsys.readouterr().err) == cuts

    sample_figure(keep.sample, tmp_path / "figure.png", tile=32)
    columns = 4 + len(GROUPINGS.keys() & vars(outputs).keys()) + outputs.alpha.shape[1]
    assert Image.open(tmp_path / "figure.png").width == GAP + columns * (32 + GAP)

    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                "--data",
                str(scenes),
                "--split",
                "val",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "alpha masks" in printed
    assert ("cut masks" in printed) == cuts

    batches = Batches(scenes, "val", 3, shuffle=False, drop_last=False)
    again, _ = evaluate(model, batches, torch.device("cpu"), 4)
    assert again == pytest.approx(keep.scores, rel=1e-4)

    save_model(
        checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000006.pt")["model"],
        config,
        tmp_path / "export",
    )
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = predict(load_model(tmp_path / "export"), pictures)
    assert ("cut_masks" in found) == cuts
    for name, value in predict(model.eval(), pictures).items():
        np.testing.assert_array_equal(found[name], value)
    assert {name: value.shape for name, value in predict(model, pictures[:0]).items()} == {
        name: (0, *value.shape[1:]) for name, value in found.items()
    }


def test_the_table_of_options_has_every_option_of_every_preset():
    table = options_table()
    for name in PRESETS:
        assert re.search(rf" {name} ", table)
        for option in options.describe(preset(name)):
            assert re.search(
                rf"^  {re.escape(option.path)} .*{re.escape(option.help)}", table, re.MULTILINE
            ), option.path


def test_a_new_model_is_one_file(scenes, tmp_path, monkeypatch):
    """The README's example, put into the folder as it says, goes the whole way."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "class Layers" in block
    )
    (tmp_path / "layers.py").write_text(code)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    try:
        model = models.load("layers").Config(image_size=32, num_slots=4)
        config = dataclasses.replace(preset("small"), model=model)
        for assignment in (*SHORT, "model.num_slots=3"):
            config = options.override(config, assignment)
        assert from_json(to_json(config)) == config
        result = fit(config, scenes, tmp_path / "run", device="cpu")
        assert 0 <= result.best["miou"] <= 1
        pictures = np.zeros((1, 32, 32, 3), np.uint8)
        assert predict(load_model(tmp_path / "run"), pictures)["masks"].shape == (1, 32, 32)
    finally:
        sys.modules.pop("cutslots.models.layers", None)
