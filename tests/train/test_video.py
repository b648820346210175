"""Slots tracked through clips: identities, joint scores, and the command line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from sklearn.metrics import adjusted_rand_score
from tiny_runs import Recorder, changed

from cutslots.cli import main
from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.runs.train import train_run
from cutslots.tracking import default_uri
from cutslots.train import Ranks, evaluate, fit, load_model, predict
from cutslots.train.evaluate import ItemScores
from cutslots.train.inputs import label_maps, masks_to_model, to_model
from cutslots.train.video import Clips, chain, track

CPU = torch.device("cpu")


@pytest.fixture
def clip(clips_dir):
    """The first validation clip, uint8 (5, 32, 32, 3)."""
    return next(Batches(clips_dir, "val", 1, shuffle=False).epoch(0)).images[0]


def seeded(config):
    torch.manual_seed(0)
    return config.model.build().eval()


def test_chain_recovers_a_permutation_over_time():
    rng = np.random.default_rng(0)
    objects = rng.normal(size=(6, 32))
    # Which object slot i of frame t holds.
    true = np.stack([np.arange(6), *(rng.permutation(6) for _ in range(9))])
    slots = objects[true] + 0.3 * rng.normal(size=(10, 6, 32))
    np.testing.assert_array_equal(chain(slots[:-1] @ slots[1:].transpose(0, 2, 1)), true)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        # Both slots are most similar to slot 0; the sum is larger if slot 1 gives way.
        ([[[0.9, 0.1], [0.8, 0.6]]], [[0, 1], [0, 1]]),
        ([[[0.5, 0.9], [0.8, 0.6]]] * 3, [[0, 1], [1, 0], [0, 1], [1, 0]]),
        (np.empty((0, 3, 3)), [[0, 1, 2]]),
    ],
)
def test_chain_is_one_to_one(similarity, expected):
    np.testing.assert_array_equal(chain(np.array(similarity)), expected)


def test_diverged_model_is_refused(any_config, clips_dir):
    model = any_config.model.build()
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(InputError, match="diverged"):
        evaluate(model, Batches(clips_dir, "val", 4), CPU)


class Colors(torch.nn.Module):
    """Separates ground, red and green perfectly, in an order of slots that depends on blue."""

    config = SimpleNamespace(image_size=8)

    def forward(self, images):
        orders = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
        order = orders[(images[:, 2, 0, 0] * 4).long()]
        red, green = (images[:, channel] > 0 for channel in (0, 1))
        alpha = torch.stack([~(red | green), red, green], 1).float()
        slots = torch.eye(3)[order]  # (frame, slot, object)
        alpha = torch.einsum("fko,fohw->fkhw", slots, alpha)
        return SimpleNamespace(alpha=alpha, slots=slots, reconstruction=images)


def without_slots(outputs):
    del outputs.slots
    return outputs


def test_tracking_undoes_a_changing_order_of_slots(monkeypatch):
    frames = -torch.ones(4, 3, 8, 8)
    for time in range(4):
        frames[time, 0, 1:3, time : time + 2] = 1
        frames[time, 1, 5:8, 4 - time : 6 - time] = 1
        frames[time, 2] = (time + 0.5) / 4
    true = (frames[:, 0] > 0).long() + 2 * (frames[:, 1] > 0).long()
    model = Colors()
    assert not torch.equal(label_maps(model(frames), 8)["masks"], true)
    assert torch.equal(track(model, frames)[1]["masks"], true)
    # A model without slots keeps their numbers.
    monkeypatch.setattr(model, "forward", lambda images: without_slots(Colors()(images)))
    torch.testing.assert_close(track(model, frames)[1], label_maps(Colors()(frames), 8))


def test_clip_scores_equal_the_joint_definition(any_config, clips_dir):
    """scikit-learn on all pixels of a clip at once, and on each frame."""
    model, items = seeded(any_config), ItemScores("video_ari_fg")
    batches = Batches(clips_dir, "val", 3, shuffle=False, drop_last=False)
    scores, sample = evaluate(model, batches, CPU, watch=items)
    expected = {name: [] for name in ("video_ari", "video_ari_fg", "ari", "video_cut_ari", "mse")}
    with torch.no_grad():
        for clip in Batches(clips_dir, "val", 1, shuffle=False).epoch(0):
            frames, true = to_model(clip.images[0], 32, CPU), masks_to_model(clip.masks[0], 32, CPU)
            outputs, maps = track(model, frames)
            masks, cuts = maps["masks"], maps["cut_masks"]
            objects = true > 0
            expected["video_ari"].append(adjusted_rand_score(true.flatten(), masks.flatten()))
            expected["video_ari_fg"].append(adjusted_rand_score(true[objects], masks[objects]))
            expected["video_cut_ari"].append(adjusted_rand_score(true.flatten(), cuts.flatten()))
            pairs = zip(true.flatten(1), masks.flatten(1), strict=True)
            expected["ari"] += [adjusted_rand_score(*pair) for pair in pairs]
            error = (outputs.reconstruction - frames).square().sum() / 4 / len(frames)
            expected["mse"].append(float(error))
    for name, values in expected.items():
        assert scores[name] == pytest.approx(np.mean(values), abs=1e-6, rel=1e-6), name
    assert scores["num_images"] == 20
    examples = items.examples(model, batches, CPU, Ranks())
    assert examples is not None
    for clips in (sample, examples.sample):
        assert isinstance(clips, Clips)
        assert clips.images.shape == (3, 5, 3, 32, 32)
        for maps in (clips.true, clips.outputs.masks, clips.outputs.cut_masks):
            assert maps.shape == (3, 5, 32, 32)
    assert list(items.values.values()) == pytest.approx(expected["video_ari_fg"], rel=1e-5)


def test_frames_of_a_video_model_are_the_first_of_their_pairs(video_config, clip):
    model, frames = seeded(video_config), to_model(clip, 32, CPU)
    with torch.no_grad():
        tracked, maps = track(model, frames)
        outputs = model(torch.stack([frames[:-1], frames[1:]], 1))
        last = model(frames[None, [-1, -1]])
    alpha = torch.cat([outputs.alpha[:, 0], last.alpha[:, 0]])
    torch.testing.assert_close(tracked.alpha, alpha, atol=1e-4, rtol=1e-4)
    identities = torch.from_numpy(chain(outputs.assignment.double().numpy()))
    for time in range(5):
        labels = identities[time][tracked.alpha[time].argmax(0)]
        assert torch.equal(maps["masks"][time], labels)


def test_predictions_of_a_clip_are_tracked(video_config, clip):
    model, sizes = seeded(video_config), []
    model.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    whole, parts = predict(model, clip.numpy()), predict(model, clip.numpy(), batch_size=2)
    assert sizes == [5, 2, 2, 1]
    with torch.no_grad():
        _, expected = track(model, to_model(clip, 32, CPU))
    for name, labels in expected.items():
        np.testing.assert_array_equal(whole[name], labels.numpy())
        assert np.mean(whole[name] != parts[name]) < 0.01, name
    for count in (1, 0):
        assert predict(model, clip.numpy()[:count])["masks"].shape == (count, 32, 32)


def test_limits_and_refusals(video_config, config, data_dir, clips_dir, tmp_path):
    model, done = config.model.build(), []
    batches = Batches(clips_dir, "val", 3, shuffle=False, drop_last=False)
    assert evaluate(model, batches, CPU, 6, done.append)[0]["num_images"] == 10
    assert done == [5, 10]
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"max_images must be at least 1, .* got {wrong}"):
            evaluate(model, batches, CPU, wrong)
    with pytest.raises(InputError, match="takes pairs of frames, got single images"):
        evaluate(video_config.model.build(), Batches(data_dir, "val", 4), CPU)
    with pytest.raises(InputError, match="single images"):
        fit(video_config, data_dir, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_pairs_at_a_distance(video_config, clips_dir, tmp_path):
    """5 clips of 5 frames: one pair each of the first and last frame, so one step per epoch."""
    changes, recorder = ("distance=4", "batch_size=5", "train.steps=1"), Recorder()
    fit(changed(video_config, *changes), clips_dir, tmp_path, recorder, device="cpu")
    assert recorder.values[0][1]["epoch"] == 1


def test_evaluation_from_the_command_line(any_config, clips_dir, tmp_path, capsys):
    run_dir, figure, scores = tmp_path / "clips", tmp_path / "figure.gif", tmp_path / "scores.json"
    fit(changed(any_config, "train.steps=1"), clips_dir, run_dir, device="cpu")
    arguments = ["evaluate", str(run_dir), "--data", str(clips_dir), "--device", "cpu"]
    assert main([*arguments, "--figure", str(figure), "--json", str(scores)]) == 0
    assert "video ARI-FG" in capsys.readouterr().out
    with Image.open(figure) as image:
        assert len(list(ImageSequence.Iterator(image))) == 5
    expected, _ = evaluate(load_model(run_dir), Batches(clips_dir, "val", 4, shuffle=False), CPU)
    (written,) = json.loads(scores.read_text())["sets"]
    assert written["scores"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_mlflow_run_has_animations_and_a_tracking_model(video_config, clip, clips_dir, tmp_path):
    import mlflow

    config = changed(video_config, "train.steps=6")
    train_run(config, clips_dir, tmp_path, experiment="movi_a", device="cpu")
    mlflow.set_tracking_uri(default_uri())
    (run,) = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("movi_a").experiment_id]  # pyright: ignore
    )
    assert {"val/video_ari_fg", "best/video_ari"} <= run.data.metrics.keys()
    figures = mlflow.MlflowClient().list_artifacts(run.info.run_id, "figures")
    assert "figures/step-00000006.gif" in [file.path for file in figures]
    masks = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(clip.numpy())
    np.testing.assert_array_equal(masks, predict(load_model(tmp_path), clip.numpy())["masks"])
