"""The training loop: what it reports, keeps, resumes and refuses."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from cutslots import options
from cutslots.data import prepare, sources
from cutslots.errors import InputError
from cutslots.train import Callback, NonFiniteLossError, checkpoint, fit, load_model
from cutslots.train.config import OptimConfig, to_json


class Recorder(Callback):
    def __init__(self):
        self.values, self.scores, self.paths = [], [], []

    def on_start(self, start):
        self.start = start

    def on_log(self, step, values):
        self.values.append((step, dict(values)))

    def on_evaluate(self, step, scores, sample):
        self.scores.append((step, dict(scores)))
        self.sample = sample

    def on_save(self, step, path, best):
        self.paths.append((step, path.name, best))


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), (
            f"{name} differs by {(tensor - second[name]).abs().max()}"
        )


def test_it_learns_and_tells(config, data_dir, tmp_path):
    recorder = Recorder()
    for assignment in ("train.steps=60", "learning_rate=1e-2", "warmup_steps=10", "init=he"):
        config = options.override(config, assignment)
    result = fit(config, data_dir, tmp_path / "run", recorder)
    losses = [values["loss"] for _, values in recorder.values]
    assert [step for step, _ in recorder.values] == list(range(3, 61, 3))
    assert losses[-1] < 0.8 * losses[0]
    assert [step for step, _ in recorder.scores] == list(range(6, 61, 6))
    assert set(recorder.values[0][1]) >= {
        "loss",
        "gradient_norm",
        "learning_rate",
        "images_per_second",
        "data_wait_share",
    }
    assert recorder.sample.outputs.alpha.shape[1] == config.model.num_slots
    best = max(recorder.scores, key=lambda pair: pair[1]["ari_fg"])
    assert result.best["ari_fg"] == best[1]["ari_fg"]
    # The last two and the best stay.
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["best.pt", "step-00000058.pt", "step-00000060.pt"]
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["step"] == best[0]


def test_the_schedule():
    optim = OptimConfig(learning_rate=1.0, warmup_steps=10, decay=0.8, decay_share=0.2)
    assert optim.rate(0, 1000) == pytest.approx(0.1)
    assert optim.rate(200, 1000) == pytest.approx(0.8)
    assert optim.rate(1000, 1000) == pytest.approx(0.8**5)


def test_the_same_seed_gives_the_same_run(config, data_dir, tmp_path):
    first = fit(config, data_dir, tmp_path / "a").model.state_dict()
    again = fit(config, data_dir, tmp_path / "b", debug=True).model.state_dict()
    other = fit(
        options.override(config, "train.seed=1"), data_dir, tmp_path / "c"
    ).model.state_dict()
    assert_same_weights(first, again)
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(config, data_dir, tmp_path):
    config = options.override(config, "train.steps=40")
    (tmp_path / "config.json").write_text(to_json(config))
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from cutslots.train import Callback, fit
        from cutslots.train.config import from_json
        config, data, run = map(Path, sys.argv[1:4])
        class Wait(Callback):
            def on_log(self, step, values):
                print(step, flush=True)
                if str(step) == sys.argv[4]: time.sleep(600)
        fit(from_json(config.read_text()), data, run, Wait(), resume=True)
        """
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "config.json"),
        str(data_dir),
        str(tmp_path / "killed"),
    ]
    # 5 steps an epoch and a checkpoint every 2: a process that is killed while it waits at these steps left one in mid-epoch.
    for at, left in ((9, 8), (24, 22)):
        process = subprocess.Popen([*command, str(at)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == at:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        newest = checkpoint.newest(tmp_path / "killed" / "checkpoints")
        assert newest is not None
        assert newest["step"] == left
        assert newest["step"] % 5 != 0
    subprocess.run([*command, "never"], check=True, stdout=subprocess.DEVNULL)
    undisturbed = fit(config, data_dir, tmp_path / "whole")
    resumed = checkpoint.load(checkpoint.path_of(tmp_path / "killed" / "checkpoints", 40))
    assert_same_weights(undisturbed.model.state_dict(), resumed["model"])
    assert resumed["best"] == undisturbed.best


def test_random_numbers_go_on_where_the_checkpoint_was_taken(config, data_dir, tmp_path):
    class Draws(Callback):
        def on_start(self, start):
            self.at_start = torch.get_rng_state()

        def on_log(self, step, values):
            torch.rand(
                step
            )  # the model draws nothing after its first weights; a state that never changes would prove nothing

    first, second = Draws(), Draws()
    fit(config, data_dir, tmp_path / "run", first)
    stored = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert stored is not None
    assert not torch.equal(first.at_start, stored["random"]["cpu"])
    fit(options.override(config, "train.steps=14"), data_dir, tmp_path / "run", second, resume=True)
    assert torch.equal(second.at_start, stored["random"]["cpu"])


def test_killed_before_the_best_got_its_name(config, data_dir, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(path):
        raise Killed

    config = options.override(
        config, "train.eval_every=100"
    )  # the only evaluation, so the best, is of step 12
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "mark_best", kill)
        with pytest.raises(Killed):
            fit(config, data_dir, tmp_path / "run")
    assert not best.exists()
    assert fit(config, data_dir, tmp_path / "run", resume=True).best["step"] == 12
    assert checkpoint.load(best)["step"] == 12


def test_a_listener_that_fails_costs_no_checkpoint(config, data_dir, tmp_path):
    class NoFigure(Callback):
        def on_evaluate(self, step, scores, sample):
            raise OSError("no room for a figure")

    with pytest.raises(OSError, match="no room for a figure"):
        fit(config, data_dir, tmp_path / "run", NoFigure())
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["step"] == 6


def test_a_refused_start_leaves_no_run(config, data_dir, tmp_path):
    run = tmp_path / "run"
    for assignment, message in (
        ("decoder.start=3", r"decoder.start is 3 and image_size 32.*Use decoder.start=4"),
        ("decoder.start=64", r"decoder.start is 64 and image_size 32"),
        ("decoder.kernel=4", r"model.decoder.kernel is 4; it must be odd."),
        ("encoder.kernel=2", r"model.encoder.kernel is 2; it must be odd."),
        ("weights.kernel=2", r"model.weights.kernel is 2; it must be odd."),
    ):
        with pytest.raises(InputError, match=message):
            fit(options.override(config, assignment), data_dir, run)
        assert not run.exists()
    assert options.resolve(config, "decoder.kernel").range == ">= 1, odd"


def test_a_run_without_checkpoint_gives_way_to_another(config, data_dir, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(
        to_json(options.override(config, "cut.gamma=0.3"))
    )
    assert fit(config, data_dir, tmp_path / "run").step == 12
    assert (tmp_path / "run" / "config.json").read_text() == to_json(config)


def test_one_process_at_a_time_trains_in_a_folder(config, data_dir, tmp_path):
    class Second(Callback):
        def on_start(self, start):
            with pytest.raises(InputError, match="another process is training in .*run"):
                fit(config, data_dir, tmp_path / "run", resume=True)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fit(config, data_dir, tmp_path / "run", Second())
    assert fit(config, data_dir, tmp_path / "run").step == 12


def test_resuming_at_or_behind_the_last_step(config, data_dir, tmp_path):
    config = options.override(config, "train.eval_every=100")

    class Stop(Callback):
        def on_save(self, step, path, best):
            if step == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, data_dir, tmp_path / "run", Stop())
    with pytest.raises(
        InputError, match=r"is already at step 10; train.steps is 8. Ask for more steps."
    ):
        fit(options.override(config, "train.steps=8"), data_dir, tmp_path / "run", resume=True)
    recorder = Recorder()
    result = fit(
        options.override(config, "train.steps=10"),
        data_dir,
        tmp_path / "run",
        recorder,
        resume=True,
    )
    assert result.best["step"] == 10
    assert recorder.paths == [(10, "step-00000010.pt", True)]
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["best"] == result.best
    again = Recorder()
    assert (
        fit(
            options.override(config, "train.steps=10"),
            data_dir,
            tmp_path / "run",
            again,
            resume=True,
        ).best
        == result.best
    )
    assert not again.scores
    load_model(tmp_path / "run")


def test_an_interrupt_leaves_a_whole_checkpoint(config, data_dir, tmp_path):
    class Interrupt(Callback):
        said_lines: tuple[str, ...] = ()

        def on_log(self, step, values):
            if step == 9:
                raise KeyboardInterrupt

        def on_message(self, message):
            self.said_lines = (*self.said_lines, message)

    callback = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        fit(config, data_dir, tmp_path / "run", callback)
    assert callback.said_lines == ("interrupted after step 9; the newest checkpoint is of step 8.",)
    assert fit(config, data_dir, tmp_path / "run", resume=True).step == 12
    with pytest.raises(KeyboardInterrupt):
        fit(options.override(config, "checkpoint_every=10"), data_dir, tmp_path / "none", callback)
    assert (
        callback.said_lines[-1] == "interrupted after step 9; the newest checkpoint is of step 6."
    )
    late = options.override(options.override(config, "checkpoint_every=10"), "eval_every=10")
    with pytest.raises(KeyboardInterrupt):
        fit(late, data_dir, tmp_path / "nothing", callback)
    assert callback.said_lines[-1] == "interrupted after step 9; there is no checkpoint yet."


@pytest.mark.parametrize("at", [6, 7])
def test_stopped_when_asked_and_resumed_with_the_same_weights(config, data_dir, tmp_path, at):
    """At a step that saves anyway, and at one that does not."""

    class Said(Recorder):
        lines = ()

        def on_message(self, message):
            self.lines = (*self.lines, message)

    asked, recorder = [], Said()

    def stop():
        asked.append(1)
        return len(asked) == at

    stopped = fit(config, data_dir, tmp_path / "run", recorder, device="cpu", stop=stop)
    assert (stopped.step, len(asked)) == (at, at)
    assert recorder.lines == (
        f"stopped as asked after step {at} of 12; resuming goes on from there.",
    )
    assert [step for step, _, _ in recorder.paths] == [2, 4, 6, 7][: 3 if at == 6 else 4]
    assert [step for step, _ in recorder.scores] == [6]
    resumed = fit(config, data_dir, tmp_path / "run", device="cpu", resume=True, stop=lambda: False)
    whole = fit(config, data_dir, tmp_path / "whole", device="cpu", stop=lambda: False)
    assert (resumed.step, resumed.best) == (12, whole.best)
    assert resumed.seconds > stopped.seconds > 0, "the first part's time counts, too"
    assert_same_weights(whole.model.state_dict(), resumed.model.state_dict())


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(config, data_dir, tmp_path):
    fit(config, data_dir, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = checkpoint.steps(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    stored = checkpoint.newest(folder)
    assert stored is not None
    assert stored["step"] == 10
    checkpoint.steps(folder)[0].write_bytes(b"")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.newest(folder)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    torch.save({"format": 1, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("cause", "clip_norm"), [("loss", "1"), ("gradient", "1"), ("gradient", "none")]
)
def test_a_non_finite_loss_stops_with_step_images_and_checkpoint(
    config, data_dir, tmp_path, monkeypatch, cause, clip_norm
):
    """At a step that saves: what the bad gradient made of the weights is not kept."""
    config = options.override(config, f"optim.clip_norm={clip_norm}")
    model_class = type(config.model.build())
    real, calls = model_class.loss, []

    def loss(outputs, images):
        calls.append(1)
        value = real(outputs, images)
        if len(calls) != 8:
            return value
        return (
            value * float("nan")
            if cause == "loss"
            else (value - value.detach()).sqrt() + value.detach()
        )

    monkeypatch.setattr(model_class, "loss", staticmethod(loss))
    with pytest.raises(
        NonFiniteLossError, match=r"at step 8\..*Images of that batch: .*step-00000006.pt"
    ) as caught:
        fit(config, data_dir, tmp_path / "run")
    from cutslots.data import Batches

    batches = Batches(data_dir, "train", 8)
    named = str(caught.value).split("batch: ")[1].split(". Last")[0].split(", ")
    assert named == batches.ids(batches.batch(1, 2).index)
    assert len(calls) == 8
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1].name == "step-00000006.pt"


def test_a_run_directory_of_another_run_is_refused(config, data_dir, tmp_path):
    fit(config, data_dir, tmp_path / "run")
    with pytest.raises(InputError, match=r"model.cut.gamma was 0.5, now 0.3"):
        fit(options.override(config, "cut.gamma=0.3"), data_dir, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="already holds this run, at step 12"):
        fit(config, data_dir, tmp_path / "run")
    assert (
        fit(
            options.override(config, "train.steps=14"), data_dir, tmp_path / "run", resume=True
        ).step
        == 14
    )


def test_other_data_are_refused_on_resume(config, data_dir, tmp_path):
    fit(config, data_dir, tmp_path / "run")
    prepare(
        "scenes",
        None,
        tmp_path / "other",
        sources.load("scenes").Options(count=50, size=32, seed=9),
    )
    with pytest.raises(InputError, match="was trained on other data"):
        fit(config, tmp_path / "other", tmp_path / "run", resume=True)


def test_images_of_another_size(config, data_dir, tmp_path):
    with pytest.raises(
        InputError, match=r"images are 32 x 32 and the model takes 64 x 64.*--size 64"
    ):
        fit(options.override(config, "model.image_size=64"), data_dir, tmp_path / "run")
    # A whole multiple is averaged down.
    half = options.override(options.override(config, "model.image_size=16"), "train.steps=2")
    assert fit(half, data_dir, tmp_path / "half").step == 2


def test_a_full_disk_keeps_the_last_checkpoint(config, data_dir, tmp_path):
    """The file-size limit of a process stands in for a disk that fills up while a checkpoint is written."""
    (tmp_path / "config.json").write_text(to_json(config))
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from cutslots.train import Callback, fit
        from cutslots.train.config import from_json
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        class Fill(Callback):
            def on_save(self, step, path, best):
                if step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, resource.RLIM_INFINITY))
        config, data, run = map(Path, sys.argv[1:])
        fit(from_json(config.read_text()), data, run, Fill())
        """
    )
    run = tmp_path / "run"
    command = [sys.executable, "-c", script, str(tmp_path / "config.json"), str(data_dir), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    refused = run / "checkpoints" / "step-00000006.pt"
    assert done.stderr.splitlines()[-1] == (
        f"cutslots.errors.InputError: checkpoint {refused} cannot be written (File too large). "
        "Earlier ones are whole; make room and use --resume."
    )
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["step-00000002.pt", "step-00000004.pt"], done.stderr
    assert fit(config, data_dir, run, resume=True).step == 12


@pytest.mark.gpu
def test_bfloat16_on_a_gpu(config, data_dir, tmp_path):
    recorder = Recorder()
    fit(config, data_dir, tmp_path / "run", recorder, device="cuda")
    assert recorder.start.precision == "bfloat16"
    assert all(values["loss"] < 1 for _, values in recorder.values)
