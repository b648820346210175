"""Evaluation of images: devices, limits, predictions, example scenes, and the tiles baseline."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.metrics import tiles
from cutslots.train import Ranks, evaluate, fit, predict
from cutslots.train.evaluate import ItemScores, tiles_scores
from cutslots.train.inputs import pick_device

CPU = torch.device("cpu")


def test_devices_by_name(monkeypatch):
    assert pick_device("cpu") == pick_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == CPU
    with pytest.raises(InputError, match=r"'cuda:1' .* 0 GPUs"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None) == torch.device("cuda")
    with pytest.raises(InputError, match=r"'cuda:1' .* 1 GPUs"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["foo", "", "meta", "cuda:x"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match=f"device .* got '{name}'"):
        pick_device(name)


def test_number_of_scored_images(config, data_dir):
    model, batches = config.model.build(), Batches(data_dir, "train", 8, shuffle=False)
    assert evaluate(model, batches, CPU, 3)[0]["num_images"] == 3
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"max_images must be at least 1, .* got {wrong}"):
            evaluate(model, batches, CPU, wrong)


def test_predictions_do_not_depend_on_the_batch(config):
    torch.manual_seed(0)
    model = config.model.build().eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    whole, parts = predict(model, images), predict(model, images, batch_size=2)
    none = predict(model, images[:0])
    shapes = {"masks": (32, 32), "cut_masks": (32, 32), "reconstructions": (32, 32, 3)}
    assert {name: value.shape for name, value in whole.items()} == {
        name: (5, *shape) for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        assert (none[name].shape, none[name].dtype) == ((0, *shape), np.uint8)
        # Rounding may differ between batch sizes.
        assert np.mean(whole[name] != parts[name]) < 0.01, name
    for wrong, size, message in (
        (np.zeros((0, 48, 48, 3), np.uint8), 32, "got 48 x 48"),
        (images, 0, "batch_size must be at least 1, got 0"),
        (images / 255, 32, r"images must be uint8 .* got float64"),
    ):
        with pytest.raises(InputError, match=message):
            predict(model, wrong, size)


@pytest.mark.parametrize(
    ("score", "values", "expected"),
    [
        ("ari", [0.5, 0.25, 1.0, 0.0, 0.75], [(2, "best"), (0, "median"), (3, "worst")]),
        ("ari", [0.5, 0.25, 1.0, 0.75], [(2, "best"), (3, "median"), (1, "worst")]),
        ("ari", [0.5, 1.0], [(1, "best"), (0, "worst")]),
        ("ari", [0.5], [(0, "best")]),
        ("ari", [0.5, 0.5, 0.5], [(0, "best"), (1, "median"), (2, "worst")]),
        ("ari", [float("nan"), 0.25, float("inf"), 0.5], [(3, "best"), (1, "worst")]),
        ("ari", [float("nan")], []),
        ("ari", [], []),
        ("mse", [3.0, 1.0, 2.0], [(1, "best"), (2, "median"), (0, "worst")]),
    ],
)
def test_best_median_and_worst_items(score, values, expected):
    items = ItemScores(score)
    for item, value in enumerate(values):
        items(np.array([item]), {score: torch.tensor([value]), "other": torch.tensor([0.0])})
    assert list(items.extremes(Ranks()).items()) == expected


def test_examples_are_the_scored_scenes(config, data_dir):
    torch.manual_seed(0)
    model = config.model.build()
    batches = Batches(data_dir, "train", 8, shuffle=False, drop_last=False)
    items = ItemScores("mse")
    scores, _ = evaluate(model, batches, CPU, 21, scored=items)
    assert len(items.values) == 21
    assert np.mean(list(items.values.values())) == pytest.approx(scores["mse"], rel=1e-5)
    roles = items.extremes(Ranks())
    examples = items.examples(roles, model, batches, CPU)
    assert model.training
    assert examples.roles == ["best", "median", "worst"]
    assert examples.values == [sorted(items.values.values())[rank] for rank in (0, 10, 20)]
    errors = (examples.sample.images - examples.sample.outputs.reconstruction) / 2
    assert errors.square().sum((1, 2, 3)).tolist() == pytest.approx(examples.values, rel=1e-3)
    stored = batches.items(np.array(list(roles)))
    assert examples.ids == batches.ids(stored.index)
    np.testing.assert_array_equal(examples.sample.true, stored.masks)


def test_examples_do_not_change_a_training(config, data_dir, tmp_path, monkeypatch):
    first = fit(config, data_dir, tmp_path / "with", device="cpu")
    monkeypatch.setattr(ItemScores, "examples", lambda *_: None)
    second = fit(config, data_dir, tmp_path / "without", device="cpu")
    assert first.best == second.best
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


class Tiler(nn.Module):
    """A model with the same masks for every image."""

    def __init__(self, labels: Tensor, num_slots: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=len(labels), num_slots=num_slots)
        self.alpha = nn.functional.one_hot(labels, num_slots).permute(2, 0, 1).float()

    def forward(self, images: Tensor) -> SimpleNamespace:
        alpha = self.alpha.expand(len(images), -1, -1, -1)
        return SimpleNamespace(alpha=alpha, reconstruction=images)


@pytest.mark.parametrize(("num_slots", "limit"), [(4, None), (7, 3), (11, None)])
def test_tiles_score_as_a_model_would(num_slots, limit, data_dir, clips_dir):
    for folder in (data_dir, clips_dir):
        batches = Batches(folder, "val", 4, shuffle=False, drop_last=False)
        model = Tiler(tiles(num_slots, 32), num_slots)
        expected, _ = evaluate(model, batches, CPU, limit)
        scores = tiles_scores(batches, num_slots, 32, limit)
        assert scores == pytest.approx({name: expected[name] for name in scores})
        assert {name for name in expected if "ari" in name or "miou" in name} == scores.keys()
