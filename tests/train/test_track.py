"""Slots followed through clips: chaining, joint scores, and the video and image models from training to the command line."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from sklearn.metrics import adjusted_rand_score

from cutslots import options
from cutslots.cli import main
from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.runs.train import train_run
from cutslots.tracking import default_uri
from cutslots.train import Callback, evaluate, fit, load_model, predict
from cutslots.train.breakdown import Breakdown
from cutslots.train.inputs import masks_to_model, to_model
from cutslots.train.scoring import label_maps
from cutslots.train.video import Clips, chain, track

CPU = torch.device("cpu")


def test_a_known_permutation_over_time_is_undone():
    rng = np.random.default_rng(0)
    objects = rng.normal(size=(6, 32))
    true = np.stack(
        [np.arange(6), *(rng.permutation(6) for _ in range(9))]
    )  # which object slot i of frame t holds
    slots = objects[true] + 0.3 * rng.normal(size=(10, 6, 32))
    found = chain(slots[:-1] @ slots[1:].transpose(0, 2, 1))
    np.testing.assert_array_equal(found, true)


def test_two_slots_that_want_the_same_partner_stay_two():
    """Row by row both would take slot 0; a permutation has the larger sum when slot 1 gives way."""
    similarity = np.array([[[0.9, 0.1], [0.8, 0.6]]])
    np.testing.assert_array_equal(chain(similarity), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(
        chain(np.array([[[0.5, 0.9], [0.8, 0.6]]] * 3)), [[0, 1], [1, 0], [0, 1], [1, 0]]
    )
    np.testing.assert_array_equal(chain(np.empty((0, 3, 3))), [[0, 1, 2]])


def test_clips_of_a_model_that_has_diverged_are_refused(any_config, clips_dir):
    model = any_config.model.build()
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(InputError, match="has diverged. Use a checkpoint from before"):
        evaluate(model, Batches(clips_dir, "val", 4), CPU)


@dataclass(frozen=True)
class Size:
    image_size: int = 8


class Colours(torch.nn.Module):
    """Tells ground, red and green apart without fault, but the order of its slots changes with the blue that a frame is tinted."""

    config = Size()

    def forward(self, images):
        orders = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])[
            (images[:, 2, 0, 0] * 4).long()
        ]
        red, green = (images[:, channel] > 0 for channel in (0, 1))
        alpha = torch.stack([~(red | green), red, green], 1).float()
        own = torch.eye(3)[orders]  # (frame, slot, what it holds)
        return SimpleNamespace(
            alpha=torch.einsum("fkh,fhyx->fkyx", own, alpha),
            slots=own,
            reconstruction=images,
            reconstructions=images[:, None],
        )


def test_tracking_undoes_the_order_of_a_model_that_changes_it():
    frames = -torch.ones(4, 3, 8, 8)
    for time in range(4):
        frames[time, 0, 1:3, time : time + 2] = 1
        frames[time, 1, 5:8, 4 - time : 6 - time] = 1
        frames[time, 2] = (time + 0.5) / 4
    true = (frames[:, 0] > 0).long() + 2 * (frames[:, 1] > 0).long()
    model = Colours()
    untracked = label_maps(model(frames), 8)["masks"]
    assert not torch.equal(untracked, true)
    assert torch.equal(track(model, frames).maps["masks"], true)


def test_a_model_without_slots_keeps_their_numbers():
    class Plain(Colours):
        def forward(self, images):
            found = super().forward(images)
            del found.slots
            return found

    frames = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(track(Plain(), frames).maps, label_maps(Plain()(frames), 8))


@pytest.fixture(params=["video", "image"])
def any_config(request, config, video_config):
    return {"video": video_config, "image": config}[request.param]


def test_scores_of_clips_are_the_joint_definition(any_config, clips_dir):
    """scikit-learn on all pixels of a clip at once, and on each frame by itself."""
    torch.manual_seed(0)
    model = any_config.model.build()
    scores, sample = evaluate(
        model, Batches(clips_dir, "val", 3, shuffle=False, drop_last=False), CPU
    )
    expected = {name: [] for name in ("video_ari", "video_ari_fg", "ari", "video_cut_ari", "mse")}
    model.eval()
    with torch.no_grad():
        for clip in Batches(clips_dir, "val", 1, shuffle=False).epoch(0):
            frames, true = to_model(clip.images[0], 32, CPU), masks_to_model(clip.masks[0], 32, CPU)
            found = track(model, frames)
            masks, cuts = found.maps["masks"], found.maps["cut_masks"]
            shown = true > 0
            expected["video_ari"].append(adjusted_rand_score(true.flatten(), masks.flatten()))
            expected["video_ari_fg"].append(adjusted_rand_score(true[shown], masks[shown]))
            expected["video_cut_ari"].append(adjusted_rand_score(true.flatten(), cuts.flatten()))
            expected["ari"] += [
                adjusted_rand_score(a.flatten(), b.flatten())
                for a, b in zip(true, masks, strict=True)
            ]
            expected["mse"].append(
                float((found.outputs.reconstruction - frames).square().sum() / 4 / len(frames))
            )
    for name, values in expected.items():
        assert scores[name] == pytest.approx(np.mean(values), abs=1e-6, rel=1e-6), name
    assert scores["num_images"] == 20
    assert isinstance(sample, Clips)
    assert sample.images.shape == (3, 5, 3, 32, 32)
    assert (
        sample.true.shape
        == sample.outputs.masks.shape
        == sample.outputs.cut_masks.shape
        == (3, 5, 32, 32)
    )


def test_frames_of_a_pair_model_are_the_first_of_their_pairs(video_config, clips_dir):
    torch.manual_seed(0)
    model = video_config.model.build().eval()
    clip = next(Batches(clips_dir, "val", 1, shuffle=False).epoch(0)).images[0]
    frames = to_model(clip, 32, CPU)
    with torch.no_grad():
        found = track(model, frames)
        outputs = model(torch.stack([frames[:-1], frames[1:]], 1))
        last = model(frames[None, [-1, -1]])
    torch.testing.assert_close(found.outputs.alpha[:-1], outputs.alpha[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.outputs.alpha[-1:], last.alpha[:, 0], atol=1e-4, rtol=1e-4)
    identities = torch.from_numpy(chain(outputs.assignment.double().numpy()))
    for time in range(5):
        assert torch.equal(
            found.maps["masks"][time], identities[time][found.outputs.alpha[time].argmax(0)]
        )


def test_predictions_of_a_clip_are_its_tracked_masks(video_config, clips_dir):
    torch.manual_seed(0)
    model = video_config.model.build().eval()
    clip = next(Batches(clips_dir, "val", 1, shuffle=False).epoch(0)).images[0]
    sizes = []
    model.register_forward_hook(lambda module, inputs, outputs: sizes.append(len(inputs[0])))
    found, parts = predict(model, clip.numpy()), predict(model, clip.numpy(), batch_size=2)
    assert sizes == [5, 2, 2, 1]
    with torch.no_grad():
        expected = track(model, to_model(clip, 32, CPU)).maps
    for name, labels in expected.items():
        np.testing.assert_array_equal(found[name], labels.numpy())
        assert np.mean(found[name] != parts[name]) < 0.01, (
            name
        )  # rounding may differ between batch sizes
    assert predict(model, clip.numpy()[:1])["masks"].shape == (1, 32, 32)
    assert predict(model, clip.numpy()[:0])["masks"].shape == (0, 32, 32)


def test_how_many_frames_are_scored(config, clips_dir):
    model, batches = (
        config.model.build(),
        Batches(clips_dir, "val", 3, shuffle=False, drop_last=False),
    )
    told = []
    assert evaluate(model, batches, CPU, 6, told.append)[0]["num_images"] == 10
    assert told == [5, 10]
    with pytest.raises(InputError, match="number of images is 0; give at least 1"):
        evaluate(model, batches, CPU, 0)
    with pytest.raises(InputError, match="watch is given, but the data are clips"):
        evaluate(model, batches, CPU, watch=Breakdown(batches, ["shape"]))


def test_images_are_refused_where_clips_are_needed(video_config, config, data_dir, tmp_path):
    with pytest.raises(InputError, match="takes pairs of frames, but the data are single images"):
        evaluate(video_config.model.build(), Batches(data_dir, "val", 4), CPU)
    with pytest.raises(InputError, match="the data are single images"):
        fit(video_config, data_dir, tmp_path / "a")
    with pytest.raises(InputError, match="best_metric is 'video_ari', which only clips have"):
        fit(options.override(config, "best_metric=video_ari"), data_dir, tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_pairs_train_at_the_distance_asked_for(video_config, clips_dir, tmp_path):
    """5 clips of 5 frames: 4 pairs of adjacent frames each, one of the first and last frame."""
    for distance, batch_size, per_epoch in ((1, 4, 5), (4, 5, 1)):
        config = video_config
        for assignment in (
            f"distance={distance}",
            f"batch_size={batch_size}",
            "train.steps=1",
            "log_every=1",
        ):
            config = options.override(config, assignment)

        class Epochs(Callback):
            def on_log(self, step, values):
                self.values = values

        seen = Epochs()
        fit(config, clips_dir, tmp_path / f"{distance}", seen, device="cpu")
        assert seen.values["epoch"] == pytest.approx(1 / per_epoch)
    with pytest.raises(InputError, match="span 6"):
        fit(options.override(video_config, "distance=5"), clips_dir, tmp_path / "far")


def test_it_learns_and_resumes_with_the_same_bits(any_config, clips_dir, tmp_path):
    class Keep(Callback):
        def __init__(self, stop_at=None):
            self.losses, self.stop_at = [], stop_at

        def on_log(self, step, values):
            self.losses.append(values["loss"])

        def on_save(self, step, path, best):
            if step == self.stop_at:
                raise KeyboardInterrupt

    config = options.override(any_config, "best_metric=video_ari_fg")
    for assignment in ("learning_rate=5e-3", "warmup_steps=0", "train.steps=18"):
        config = options.override(config, assignment)
    keep = Keep()
    whole = fit(config, clips_dir, tmp_path / "whole", keep, device="cpu")
    assert keep.losses[-1] < 0.8 * keep.losses[0]
    assert {"video_ari_fg", "video_ari", "video_cut_ari_fg", "ari_fg", "step"} <= whole.best.keys()
    with pytest.raises(KeyboardInterrupt):
        fit(config, clips_dir, tmp_path / "parts", Keep(stop_at=8), device="cpu")
    torch.rand(3)
    resumed = fit(config, clips_dir, tmp_path / "parts", resume=True, device="cpu")
    assert resumed.best == whole.best
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_scored_and_drawn_from_the_command_line(any_config, clips_dir, tmp_path, capsys):
    run_dir, figure, scores = tmp_path / "clips", tmp_path / "figure.gif", tmp_path / "scores.json"
    fit(options.override(any_config, "train.steps=1"), clips_dir, run_dir, device="cpu")
    arguments = ["evaluate", str(run_dir), "--data", str(clips_dir), "--device", "cpu"]
    assert main([*arguments, "--figure", str(figure), "--json", str(scores)]) == 0
    assert "video ARI-FG" in capsys.readouterr().out
    with Image.open(figure) as image:
        assert len(list(ImageSequence.Iterator(image))) == 5
    expected, _ = evaluate(load_model(run_dir), Batches(clips_dir, "val", 4, shuffle=False), CPU)
    (written,) = json.loads(scores.read_text())["sets"]
    assert written["scores"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_run_log_has_animations_and_a_model_that_tracks(
    video_config, clips_dir, tmp_path, capsys
):
    import mlflow
    from mlflow import MlflowClient

    train_run(
        options.override(video_config, "train.steps=6"),
        clips_dir,
        tmp_path,
        experiment="movi_a",
        device="cpu",
    )
    assert "over clips: ARI-FG" in capsys.readouterr().err
    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("movi_a")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert {"val/video_ari_fg", "best/video_ari"} <= run.data.metrics.keys()
    assert "figures/step-00000006.gif" in [
        file.path for file in client.list_artifacts(run.info.run_id, "figures")
    ]
    mlflow.set_tracking_uri(default_uri())
    clip = next(Batches(clips_dir, "val", 1, shuffle=False).epoch(0)).images[0].numpy()
    found = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(clip)
    np.testing.assert_array_equal(found, predict(load_model(tmp_path), clip)["masks"])
