"""The training loop: what it reports, keeps, resumes and refuses."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from tiny_runs import Recorder, changed

from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.train import Callback, NonFiniteLossError, checkpoint, fit, load_model
from cutslots.train.config import to_json


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def steps_of(run):
    return [int(path.stem[5:]) for path in checkpoint.steps(run / "checkpoints")]


def test_training_learns_and_reports(config, data_dir, tmp_path):
    recorder = Recorder()
    config = changed(
        config, "train.steps=60", "learning_rate=1e-2", "warmup_steps=10", "model.init=he"
    )
    result = fit(config, data_dir, tmp_path, recorder)
    losses = [values["loss"] for _, values in recorder.values]
    assert losses[-1] < 0.8 * losses[0]
    assert [step for step, _ in recorder.values] == list(range(3, 61, 3))
    assert [step for step, _ in recorder.scores] == list(range(6, 61, 6))
    names = {"loss", "gradient_norm", "learning_rate", "epoch", "images_per_second"}
    assert recorder.values[0][1].keys() == names | {"data_wait_share", "model_share"}
    assert recorder.sample.outputs.alpha.shape[1] == config.model.num_slots
    # Examples come with every improvement; the best and the last two checkpoints are kept.
    best, improved = -1.0, []
    for step, scores in recorder.scores:
        if scores["miou"] > best:
            best = scores["miou"]
            improved.append(step)
    assert [step for step, _ in recorder.examples] == improved
    step, examples = recorder.examples[-1]
    assert (step, best) == (result.best["step"], result.best["miou"])
    assert examples.values == sorted(examples.values, reverse=True)
    assert steps_of(tmp_path) == [58, 60]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == step


def test_same_seed_gives_same_run(config, data_dir, tmp_path):
    first, again, other = (
        fit(made, data_dir, tmp_path / name, debug=name == "b").model.state_dict()
        for name, made in (("a", config), ("b", config), ("c", changed(config, "train.seed=1")))
    )
    assert_same_weights(first, again)
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


def test_resume_of_clips_is_bit_exact(video_config, clips_dir, tmp_path):
    changes = "learning_rate=5e-3", "warmup_steps=0", "train.steps=18", "best_metric=video_ari_fg"
    config = changed(video_config, *changes)
    whole = fit(config, clips_dir, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(config, clips_dir, tmp_path / "parts", Recorder(stop_at=8), device="cpu")
    torch.rand(3)
    resumed = fit(config, clips_dir, tmp_path / "parts", resume=True, device="cpu")
    assert resumed.best == whole.best
    assert "video_cut_ari_fg" in whole.best
    assert_same_weights(whole.model.state_dict(), resumed.model.state_dict())


def script(body, config, *arguments):
    """A command that runs `body` with a configuration and further arguments."""
    header = """
        import resource, signal, sys, time
        from cutslots.train import Callback, fit
        from cutslots.train.config import from_json
        config = from_json(sys.argv[1])
        data, run = sys.argv[2:4]
        """
    code = textwrap.dedent(header) + textwrap.dedent(body)
    return [sys.executable, "-c", code, to_json(config), *map(str, arguments)]


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_exact(config, data_dir, tmp_path):
    """Killed twice in mid-epoch: 5 steps per epoch and a checkpoint every 2."""
    config, run = changed(config, "train.steps=40"), tmp_path / "killed"
    body = """
        class Wait(Callback):
            def on_log(self, step, values):
                print(step, flush=True)
                if str(step) == sys.argv[4]: time.sleep(600)
        fit(config, data, run, Wait(), resume=True)
        """
    for waits_at, saved in ((9, 8), (24, 22)):
        command = script(body, config, data_dir, run, waits_at)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == waits_at:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        assert steps_of(run)[-1] == saved
    command = script(body, config, data_dir, run, "never")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    undisturbed = fit(config, data_dir, tmp_path / "whole")
    resumed = checkpoint.load(checkpoint.path_of(run / "checkpoints", 40))
    assert_same_weights(undisturbed.model.state_dict(), resumed["model"])
    assert resumed["best"] == undisturbed.best


def test_resume_from_weights_in_another_memory_order(config, data_dir, tmp_path):
    """A GPU writes channels-last tensors; the result is the same as from its own checkpoint."""
    weights = []
    for order in (torch.contiguous_format, torch.channels_last):
        run = tmp_path / str(order)
        fit(config, data_dir, run, stop=lambda: True)
        (path,) = checkpoint.steps(run / "checkpoints")
        state = checkpoint.load(path)
        for tensors in (state["model"], *state["optimizer"]["state"].values()):
            for name, tensor in tensors.items():
                if tensor.dim() == 4:
                    tensors[name] = tensor.contiguous(memory_format=order)
        checkpoint.save(path, state, keep_last=9)
        weights.append(fit(config, data_dir, run, resume=True).model.state_dict())
    assert_same_weights(*weights)


def test_kill_before_best_checkpoint_is_named(config, data_dir, tmp_path, monkeypatch):
    def kill(path):
        raise SystemExit

    config = changed(config, "train.eval_every=100")  # the only evaluation is at step 12
    best = tmp_path / "checkpoints" / "best.pt"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "mark_best", kill)
        with pytest.raises(SystemExit):
            fit(config, data_dir, tmp_path)
    assert not best.exists()
    assert fit(config, data_dir, tmp_path, resume=True).best["step"] == 12
    assert checkpoint.load(best)["step"] == 12


def test_failing_callback_costs_no_checkpoint(config, data_dir, tmp_path):
    class NoFigure(Callback):
        def on_evaluate(self, step, scores, sample):
            raise OSError("no room for a figure")

    with pytest.raises(OSError, match="no room for a figure"):
        fit(config, data_dir, tmp_path, NoFigure())
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == 6


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("decoder.start=3", r"decoder.start is 3 and image_size 32|decoder.start .* got 3"),
        ("decoder.kernel=4", r"model.decoder.kernel must be >= 1, odd, got 4"),
        ("model.image_size=64", r"64 x 64, got 32 x 32.*--size 64"),
        ("best_metric=video_ari", r"best_metric .* got 'video_ari'"),
    ],
)
def test_refused_start_leaves_no_run(config, data_dir, tmp_path, assignment, message):
    with pytest.raises(InputError, match=message):
        fit(changed(config, assignment), data_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_without_checkpoint_is_replaced(config, data_dir, tmp_path):
    """By one whose images are smaller than the stored ones."""
    (tmp_path / "config.json").write_text(to_json(changed(config, "cut.gamma=0.3")))
    config = changed(config, "model.image_size=16", "train.steps=2")
    assert fit(config, data_dir, tmp_path).step == 2
    assert (tmp_path / "config.json").read_text() == to_json(config)


def test_only_one_process_trains_in_a_folder(config, data_dir, tmp_path):
    class Second(Callback):
        def on_start(self, start):
            assert checkpoint.held(tmp_path)
            with pytest.raises(InputError, match=f"another process is training in {tmp_path}"):
                fit(config, data_dir, tmp_path, resume=True)
            raise KeyError("first")

    assert not checkpoint.held(tmp_path)
    with pytest.raises(KeyError, match="first"):
        fit(config, data_dir, tmp_path, Second())
    assert not checkpoint.held(tmp_path)
    assert fit(config, data_dir, tmp_path).step == 12


def test_resume_with_fewer_steps(config, data_dir, tmp_path):
    config = changed(config, "train.eval_every=100")
    with pytest.raises(KeyboardInterrupt):
        fit(config, data_dir, tmp_path, Recorder(stop_at=10))
    with pytest.raises(InputError, match=r"train.steps must be at least 10, .* got 8"):
        fit(changed(config, "train.steps=8"), data_dir, tmp_path, resume=True)
    first, again, config = Recorder(), Recorder(), changed(config, "train.steps=10")
    result = fit(config, data_dir, tmp_path, first, resume=True)
    assert result.best["step"] == 10
    assert first.paths == [(10, "step-00000010.pt", True)]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["best"] == result.best
    assert fit(config, data_dir, tmp_path, again, resume=True).best == result.best
    assert not again.scores
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("assignments", "newest"),
    [
        ((), "step 8"),
        (("checkpoint_every=10",), "step 6"),
        (("checkpoint_every=10", "eval_every=10"), "none"),
    ],
)
def test_interrupt_reports_newest_checkpoint(config, data_dir, tmp_path, assignments, newest):
    class Interrupt(Recorder):
        def on_log(self, step, values):
            if step == 9:
                raise KeyboardInterrupt

    recorder = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        fit(changed(config, *assignments), data_dir, tmp_path, recorder)
    (line,) = recorder.lines
    assert "after step 9" in line
    assert f"newest checkpoint: {newest}" in line


@pytest.mark.parametrize("at", [6, 7])
def test_stop_and_resume_is_bit_exact(config, data_dir, tmp_path, at):
    """At a step that saves in any case, and at one that does not."""
    asked, recorder = [], Recorder()

    def stop():
        asked.append(1)
        return len(asked) == at

    stopped = fit(config, data_dir, tmp_path / "run", recorder, device="cpu", stop=stop)
    assert (stopped.step, len(asked)) == (at, at)
    assert f"after step {at} of 12" in recorder.lines[0]
    assert [step for step, _, _ in recorder.paths] == [2, 4, 6, 7][: 3 if at == 6 else 4]
    assert [step for step, _ in recorder.scores] == [6]
    resumed = fit(config, data_dir, tmp_path / "run", device="cpu", resume=True)
    whole = fit(config, data_dir, tmp_path / "whole", device="cpu", stop=lambda: False)
    assert (resumed.step, resumed.best) == (12, whole.best)
    assert resumed.seconds > stopped.seconds > 0  # the time of the first part counts
    assert_same_weights(whole.model.state_dict(), resumed.model.state_dict())


def test_damaged_checkpoint_falls_back_to_the_previous_one(config, data_dir, tmp_path):
    fit(config, data_dir, tmp_path)
    folder = tmp_path / "checkpoints"
    older, newest = checkpoint.steps(folder)
    newest.write_bytes(newest.read_bytes()[:1000])
    state = checkpoint.newest(folder)
    assert state is not None
    assert state["step"] == 10
    older.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.newest(folder)


def test_checkpoint_executes_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("cause", "clip_norm"), [("loss", "1"), ("gradient", "1"), ("gradient", "none")]
)
def test_non_finite_loss_names_step_images_and_checkpoint(
    config, data_dir, tmp_path, monkeypatch, cause, clip_norm
):
    """At a step that saves: the spoiled weights are not kept."""
    model_class = type(config.model.build())
    real, calls = model_class.loss, []

    def loss(model, outputs, images):
        calls.append(1)
        value = real(model, outputs, images)
        if len(calls) != 8:
            return value
        if cause == "loss":
            return value * float("nan")
        return (value - value.detach()).sqrt() + value.detach()

    monkeypatch.setattr(model_class, "loss", loss)
    with pytest.raises(NonFiniteLossError, match=r"at step 8\..*step-00000006.pt") as caught:
        fit(changed(config, f"optim.clip_norm={clip_norm}"), data_dir, tmp_path)
    batches = Batches(data_dir, "train", 8)
    assert ", ".join(batches.ids(batches.batch(1, 2).index)) in str(caught.value)
    assert len(calls) == 8
    assert steps_of(tmp_path)[-1] == 6


def test_folder_of_another_run_is_refused(config, data_dir, other_data_dir, tmp_path):
    fit(config, data_dir, tmp_path)
    with pytest.raises(InputError, match=r"model.cut.gamma was 0.5, now 0.3"):
        fit(changed(config, "cut.gamma=0.3"), data_dir, tmp_path, resume=True)
    with pytest.raises(InputError, match="already holds this run, at step 12"):
        fit(config, data_dir, tmp_path)
    with pytest.raises(InputError, match="was trained on other data"):
        fit(config, other_data_dir, tmp_path, resume=True)
    assert fit(changed(config, "train.steps=14"), data_dir, tmp_path, resume=True).step == 14


def test_full_disk_keeps_the_last_checkpoint(config, data_dir, tmp_path):
    """A limit on the size of files simulates a full disk."""
    run = tmp_path / "run"
    body = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        class Fill(Callback):
            def on_save(self, step, path, best):
                limit = path.stat().st_size // 2, resource.RLIM_INFINITY
                if step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        fit(config, data, run, Fill())
        """
    command = script(body, config, data_dir, run)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert message.startswith("cutslots.errors.InputError")
    assert "step-00000006.pt cannot be written (File too large)" in message
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000002.pt", "step-00000004.pt"], done.stderr
    assert fit(config, data_dir, run, resume=True).step == 12


@pytest.mark.gpu
def test_bfloat16_on_a_gpu(config, data_dir, tmp_path):
    recorder = Recorder()
    fit(config, data_dir, tmp_path, recorder, device="cuda")
    assert recorder.start.precision == "bfloat16"
    assert all(values["loss"] < 1 for _, values in recorder.values)
