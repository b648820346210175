"""The scenes of best, median and worst score: which they are, what is said of them, and that a training does not notice."""

import numpy as np
import pytest
import torch

from cutslots import options
from cutslots.data import Batches
from cutslots.train import Callback, Ranks, evaluate, fit
from cutslots.train.examples import ItemScores
from cutslots.train.scoring import label_maps
from cutslots.train.video import Clips, track

CPU, ALONE = torch.device("cpu"), Ranks()


def scored(values, smaller_is_better=False) -> ItemScores:
    items = ItemScores("s", smaller_is_better)
    for item, value in enumerate(values):
        items(np.array([item]), {"s": torch.tensor([value]), "other": torch.tensor([0.0])})
    return items


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.25, 1.0, 0.0, 0.75], [(2, "best"), (0, "median"), (3, "worst")]),
        ([0.5, 0.25, 1.0, 0.75], [(2, "best"), (3, "median"), (1, "worst")]),
        ([0.5, 1.0], [(1, "best"), (0, "worst")]),
        ([0.5], [(0, "best")]),
        ([0.5, 0.5, 0.5], [(0, "best"), (1, "median"), (2, "worst")]),
        ([float("nan"), 0.25, float("inf"), 0.5], [(3, "best"), (1, "worst")]),
        ([float("nan")], []),
        ([], []),
    ],
)
def test_best_median_and_worst(values, expected):
    assert list(scored(values).chosen(ALONE).items()) == expected


def test_of_errors_the_smallest_is_best():
    assert scored([3.0, 1.0, 2.0], smaller_is_better=True).chosen(ALONE) == {
        1: "best",
        2: "median",
        0: "worst",
    }


def test_their_pictures_are_those_of_the_scored_scenes(config, data_dir):
    torch.manual_seed(0)
    model = config.model.build()
    batches = Batches(data_dir, "train", 8, shuffle=False, drop_last=False)
    items = ItemScores("mse", smaller_is_better=True)
    scores, _ = evaluate(model, batches, CPU, 21, scored=items)
    assert len(items.values) == 21
    assert np.mean(list(items.values.values())) == pytest.approx(scores["mse"], rel=1e-5)
    model.train()
    examples = items.examples(model, batches, CPU, ALONE)
    assert examples is not None
    assert model.training
    assert examples.roles == ["best", "median", "worst"]
    assert examples.values == [sorted(items.values.values())[place] for place in (0, 10, 20)]
    sample = examples.sample
    for at, value in enumerate(examples.values):
        error = ((sample.images[at] - sample.outputs.reconstruction[at]) / 2).square().sum()
        assert float(error) == pytest.approx(value, rel=1e-3)
    stored = batches.items(np.array(list(items.chosen(ALONE))))
    assert examples.ids == batches.ids(stored.index)
    np.testing.assert_array_equal(sample.true, stored.masks)


def test_of_clips_whole_clips(video_config, clips_dir):
    model = video_config.model.build()
    batches = Batches(clips_dir, "val", 2, shuffle=False, drop_last=False)
    items = ItemScores("video_ari_fg")
    scores, _ = evaluate(model, batches, CPU, scored=items)
    assert np.mean(list(items.values.values())) == pytest.approx(scores["video_ari_fg"], rel=1e-5)
    examples = items.examples(model, batches, CPU, ALONE)
    assert examples is not None
    assert isinstance(examples.sample, Clips)
    assert examples.sample.images.shape[:2] == (3, 5)
    with torch.no_grad():
        tracked = track(model.eval(), examples.sample.images[2])
    assert torch.equal(tracked.maps["masks"], examples.sample.outputs.masks[2])
    assert label_maps(tracked.outputs, 32).keys() == tracked.maps.keys()


class Keep(Callback):
    def __init__(self) -> None:
        self.scores, self.examples = [], []

    def on_evaluate(self, step, scores, sample):
        self.scores.append((step, dict(scores)))

    def on_improve(self, step, examples):
        self.examples.append((step, examples))


def test_a_run_tells_of_them_when_it_is_better_than_before(config, data_dir, tmp_path):
    for assignment in ("train.steps=36", "learning_rate=1e-2", "init=he"):
        config = options.override(config, assignment)
    keep = Keep()
    result = fit(config, data_dir, tmp_path / "run", keep, device="cpu")
    best, better = -1.0, []
    for step, scores in keep.scores:
        if scores["ari_fg"] > best:
            best = scores["ari_fg"]
            better.append(step)
    assert [step for step, _ in keep.examples] == better
    step, examples = keep.examples[-1]
    assert step == result.best["step"]
    assert examples.values[0] >= examples.values[1] >= examples.values[2]
    assert examples.values[2] <= result.best["ari_fg"] <= examples.values[0]


def test_training_does_not_notice(config, data_dir, tmp_path, monkeypatch):
    told = fit(config, data_dir, tmp_path / "told", device="cpu")
    monkeypatch.setattr(ItemScores, "examples", lambda *_: None)
    untold = fit(config, data_dir, tmp_path / "untold", device="cpu")
    assert told.best == untold.best
    for name, value in told.model.state_dict().items():
        assert torch.equal(value, untold.model.state_dict()[name]), name
