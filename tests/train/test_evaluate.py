"""Evaluation of images: devices, limits, predictions, example scenes, and the tiles baseline."""

import numpy as np
import pytest
import torch

from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.metrics import segmentation, tiles
from cutslots.train import Ranks, evaluate, fit, predict
from cutslots.train.evaluate import ItemScores, Scored, tiles_scores
from cutslots.train.inputs import pick_device

CPU = torch.device("cpu")


def test_devices_by_name(monkeypatch):
    assert pick_device("cpu") == pick_device(CPU) == CPU
    for count, default in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert pick_device(None) == torch.device(default)
        with pytest.raises(InputError, match=rf"'cuda:1' .* {count} GPUs"):
            pick_device("cuda:1")
    for name in ("foo", "meta", "cuda:x"):
        with pytest.raises(InputError, match=f"device .* got '{name}'"):
            pick_device(name)


def test_predictions_do_not_depend_on_the_batch(config):
    torch.manual_seed(0)
    model = config.model.build().eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    whole, parts = predict(model, images), predict(model, images, batch_size=2)
    none = predict(model, images[:0])
    shapes = {"masks": (32, 32), "cut_masks": (32, 32), "reconstructions": (32, 32, 3)}
    assert whole.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert (whole[name].shape, none[name].shape) == ((5, *shape), (0, *shape))
        assert whole[name].dtype == none[name].dtype == np.uint8
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
        ("mse", [3.0, 1.0, 2.0], [(1, "best"), (2, "median"), (0, "worst")]),
    ],
)
def test_best_median_and_worst_items(score, values, expected):
    items = ItemScores(score)
    index, nothing = np.arange(len(values)), torch.empty(0)
    items(Scored(index, nothing, nothing, None, None, {score: torch.tensor(values)}))
    assert list(items.extremes(Ranks()).items()) == expected


def test_examples_are_the_scored_scenes(config, data_dir):
    torch.manual_seed(0)
    model, items = config.model.build(), ItemScores("mse")
    batches = Batches(data_dir, "train", 8, shuffle=False, drop_last=False)
    scores, _ = evaluate(model, batches, CPU, 21, watch=items)
    assert scores["num_images"] == len(items.values) == 21
    assert np.mean(list(items.values.values())) == pytest.approx(scores["mse"], rel=1e-5)
    examples = items.examples(model, batches, CPU, Ranks())
    assert examples is not None
    assert model.training
    assert examples.roles == ["best", "median", "worst"]
    assert examples.values == [sorted(items.values.values())[rank] for rank in (0, 10, 20)]
    errors = (examples.sample.images - examples.sample.outputs.reconstruction) / 2
    assert errors.square().sum((1, 2, 3)).tolist() == pytest.approx(examples.values, rel=1e-3)
    stored = batches.items(np.array(list(items.extremes(Ranks()))))
    assert examples.ids == batches.ids(stored.index)
    np.testing.assert_array_equal(examples.sample.true, stored.masks)


def test_examples_do_not_change_a_training(config, data_dir, tmp_path, monkeypatch):
    first = fit(config, data_dir, tmp_path / "with", device="cpu")
    monkeypatch.setattr(ItemScores, "examples", lambda *_: None)
    second = fit(config, data_dir, tmp_path / "without", device="cpu")
    assert first.best == second.best
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize(("num_slots", "limit"), [(4, None), (11, 3)])
def test_tiles_are_scored_by_image_and_by_clip(num_slots, limit, data_dir, clips_dir):
    grid = tiles(num_slots, 32)
    batches = Batches(data_dir, "val", 4, shuffle=False, drop_last=False)
    true = torch.cat([batch.masks for batch in batches.epoch(0)])[:limit]
    expected = segmentation(true, grid.expand_as(true), num_slots)
    means = {name: float(values.mean()) for name, values in expected.items()}
    assert tiles_scores(batches, num_slots, 32, limit) == pytest.approx(means)

    batches = Batches(clips_dir, "val", 4, shuffle=False, drop_last=False)
    clips = torch.cat([batch.masks for batch in batches.epoch(0)])[: limit and 1]
    frames = clips.flatten(0, 1)
    expected = segmentation(frames, grid.expand_as(frames), num_slots)
    joint = clips.flatten(1, 2)
    of_clips = segmentation(joint, grid.expand_as(clips).flatten(1, 2), num_slots)
    expected |= {f"video_{name}": values for name, values in of_clips.items()}
    means = {name: float(values.mean()) for name, values in expected.items()}
    assert tiles_scores(batches, num_slots, 32, limit) == pytest.approx(means)
