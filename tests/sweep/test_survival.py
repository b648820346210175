"""What happens to sweeps: processes, drivers and nodes that die, trials that fail, signals. All of it happens for real."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from driven import Driven, in_shared_memory
from traces import (
    assert_resumed,
    assert_same,
    last_step,
    newest_step,
    status,
    stretches,
    undisturbed,
    weights,
    written,
)

from cutslots.tracking import find_runs

pytestmark = pytest.mark.slow


def at_its_end(driven: Driven) -> Path | None:
    """A run that has written its last checkpoint and not yet closed its log."""
    return next(
        (run for run in driven.runs() if newest_step(run) == 200 and status(run) is None), None
    )


def test_a_killed_trial_goes_on_from_its_checkpoint(
    sweep: Callable[..., Driven], tmp_path: Path
) -> None:
    driven = sweep()
    driven.start("--trials", "0")
    run = driven.wait(lambda: driven.between_checkpoints(40), "a trial past its first checkpoints")
    driven.trainer(run).kill()
    assert driven.ended() == 0, driven.said()

    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driven.data, tmp_path / "undisturbed"))
    (child,) = driven.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == (
        "FINISHED",
        "finished",
        None,
    )
    assert driven.parent().status == "FINISHED"
    assert [each["state"] for each in driven.records()] == ["finished"]
    assert "goes on from its last checkpoint" in driven.log.read_text()


def test_a_killed_driver_is_followed_by_another(sweep: Callable[..., Driven]) -> None:
    """One trial is finished, one has only its log to end, one is in the middle, one has not begun."""
    driven = sweep()
    driven.start("--trials", "3", "--concurrent", "2")
    ending = driven.wait(lambda: at_its_end(driven), "a trial at its last checkpoint")
    trainer = driven.trainer(ending)
    trainer.suspend()
    assert status(ending) is None
    driven.wait(lambda: driven.finished(), "a finished trial")
    middle = driven.wait(lambda: driven.between_checkpoints(40), "a trial in the middle")
    driven.kill()
    trainer.kill()
    driven.gone()
    (done,) = driven.finished()
    before = written(done), [(trial.number, trial.params) for trial in driven.study()][:3]
    assert {run.status for run in driven.children()} == {"RUNNING", "FINISHED"}

    assert driven.run("--trials", "3", "--concurrent", "2", "--resume") == 0, driven.said()
    assert (written(done), [(trial.number, trial.params) for trial in driven.study()][:3]) == before
    assert [trial.number for trial in driven.study() if trial.state.name == "COMPLETE"] == [
        0,
        1,
        2,
        3,
    ]
    assert stretches(ending) == [list(range(5, 201, 5)), []]
    assert_resumed(middle, 40)
    runs = driven.children()
    assert [run.status for run in runs] == ["FINISHED"] * 4
    assert len({run.tags["signature"] for run in runs}) == 4
    assert all("best/ari_fg" in run.metrics and run.tags["state"] == "finished" for run in runs)
    assert find_runs("attributes.status = 'RUNNING'", tracking_uri=driven.uri) == []
    assert sorted(run.tags["rank"] for run in runs) == ["1", "2", "3", "4"]

    assert driven.run("--trials", "3", "--resume") == 0
    assert "is finished" in driven.log.read_text()
    assert written(done) == before[0]


def test_what_can_never_run_is_refused(sweep: Callable[..., Driven]) -> None:
    driven = sweep()
    for asked, answer in (
        ("--gpus-per-trial 8", "--gpus-per-trial 8: a worker uses one GPU"),
        ("--gpus-per-trial 1 --workers-per-trial 8", "a trial takes 8 GPU"),
        ("--cpus-per-trial 9999", "a trial takes 9999 CPU"),
        ("--workers-per-trial 64 --cpus-per-trial 64", "a trial takes 4096 CPU"),
    ):
        assert driven.run(*asked.split(), "--set", "optim.batch_size=64") == 2, driven.said()
        said = driven.log.read_text().splitlines()[-1]
        assert said.startswith("error: ")
        assert answer in said
    assert {trial.state.name for trial in driven.study()} == {"WAITING"}
    assert find_runs("tags.kind = 'sweep'", tracking_uri=driven.uri) == []


def test_sigterm_leaves_checkpoints_and_nothing_else(sweep: Callable[..., Driven]) -> None:
    driven = sweep()
    rarely = (
        "--trials",
        "1",
        "--set",
        "train.checkpoint_every=1000",
        "--set",
        "train.eval_every=1000",
    )
    shared = in_shared_memory()
    driven.start(*rarely)
    driven.wait(
        lambda: [last_step(run) > 40 for run in driven.runs()] == [True, True],
        "two trials under way",
    )
    driven.process.send_signal(signal.SIGTERM)
    assert driven.ended() == 130, driven.said()
    driven.gone()

    runs = driven.runs()
    assert all(40 < newest_step(run) < 200 for run in runs)
    assert [(run.status, run.tags["state"]) for run in driven.children()] == [
        ("KILLED", "interrupted")
    ] * 2
    assert (driven.parent().status, driven.parent().tags["state"]) == ("KILLED", "interrupted")
    assert [each["state"] for each in driven.records()] == ["interrupted"] * 2
    assert in_shared_memory() <= shared

    stopped = {run: newest_step(run) for run in runs}
    assert driven.run(*rarely, "--resume") == 0, driven.said()
    for run in runs:
        first, second = stretches(run)
        assert first + second == list(range(5, 201, 5))
        assert first[-1] <= stopped[run] < second[0]
    assert [run.status for run in driven.children()] == ["FINISHED"] * 2
