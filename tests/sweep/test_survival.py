"""Survival of killed trials and drivers, and of signals, with real processes."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from driver_process import DriverProcess, in_shared_memory
from run_facts import (
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


def at_its_end(driver: DriverProcess) -> Path | None:
    """A run that has written its last checkpoint and not yet closed its log."""
    return next(
        (run for run in driver.runs() if newest_step(run) == 200 and status(run) is None),
        None,
    )


def test_killed_trial_resumes_from_its_checkpoint(
    sweep: Callable[..., DriverProcess], tmp_path: Path
) -> None:
    driver = sweep()
    driver.start("--trials", "0")
    run = driver.wait(lambda: driver.between_checkpoints(40), "a trial past its first checkpoints")
    driver.trainer(run).kill()
    assert driver.wait_for_exit() == 0, driver.output()

    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driver.data, tmp_path / "undisturbed"))
    (child,) = driver.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == (
        "FINISHED",
        "finished",
        None,
    )
    assert driver.parent().status == "FINISHED"
    assert [each["state"] for each in driver.records()] == ["finished"]
    assert "resumes from its last checkpoint" in driver.log.read_text()


def test_next_driver_continues_after_a_killed_one(sweep: Callable[..., DriverProcess]) -> None:
    """One trial is finished, one must close its log, one is half-way, one has not started."""
    driver = sweep()
    driver.start("--trials", "3", "--concurrent", "2")
    ending = driver.wait(lambda: at_its_end(driver), "a trial at its last checkpoint")
    trainer = driver.trainer(ending)
    trainer.suspend()
    assert status(ending) is None
    driver.wait(lambda: driver.finished(), "a finished trial")
    middle = driver.wait(lambda: driver.between_checkpoints(40), "a trial in the middle")
    driver.kill()
    trainer.kill()
    driver.wait_for_processes()
    (done,) = driver.finished()
    before = written(done), [(trial.number, trial.params) for trial in driver.study()][:3]
    assert {run.status for run in driver.children()} == {"RUNNING", "FINISHED"}

    assert driver.run("--trials", "3", "--concurrent", "2", "--resume") == 0, driver.output()
    assert (
        written(done),
        [(trial.number, trial.params) for trial in driver.study()][:3],
    ) == before
    assert [trial.number for trial in driver.study() if trial.state.name == "COMPLETE"] == [
        0,
        1,
        2,
        3,
    ]
    assert stretches(ending) == [list(range(5, 201, 5)), []]
    assert_resumed(middle, 40)
    runs = driver.children()
    assert [run.status for run in runs] == ["FINISHED"] * 4
    assert len({run.tags["signature"] for run in runs}) == 4
    assert all("best/ari_fg" in run.metrics and run.tags["state"] == "finished" for run in runs)
    assert find_runs("attributes.status = 'RUNNING'", tracking_uri=driver.uri) == []
    assert sorted(run.tags["rank"] for run in runs) == ["1", "2", "3", "4"]

    assert driver.run("--trials", "3", "--resume") == 0
    assert "is finished" in driver.log.read_text()
    assert written(done) == before[0]


def test_impossible_resources_are_refused(sweep: Callable[..., DriverProcess]) -> None:
    driver = sweep()
    for asked, answer in (
        ("--gpus-per-trial 8", "--gpus-per-trial"),
        ("--gpus-per-trial 1 --workers-per-trial 8", "A trial needs 8 GPU"),
        ("--cpus-per-trial 9999", "A trial needs 9999 CPU"),
        ("--workers-per-trial 64 --cpus-per-trial 64", "A trial needs 4096 CPU"),
    ):
        assert driver.run(*asked.split(), "--set", "optim.batch_size=64") == 2, driver.output()
        message = driver.log.read_text().splitlines()[-1]
        assert message.startswith("error: ")
        assert answer in message
    assert {trial.state.name for trial in driver.study()} == {"WAITING"}
    assert find_runs("tags.kind = 'sweep'", tracking_uri=driver.uri) == []


def test_sigterm_leaves_only_checkpoints(sweep: Callable[..., DriverProcess]) -> None:
    driver = sweep()
    rarely = (
        "--trials",
        "1",
        "--set",
        "train.checkpoint_every=1000",
        "--set",
        "train.eval_every=1000",
    )
    shared = in_shared_memory()
    driver.start(*rarely)
    driver.wait(
        lambda: [last_step(run) > 40 for run in driver.runs()] == [True, True],
        "two trials under way",
    )
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()

    runs = driver.runs()
    assert all(40 < newest_step(run) < 200 for run in runs)
    assert [(run.status, run.tags["state"]) for run in driver.children()] == [
        ("KILLED", "interrupted")
    ] * 2
    assert (driver.parent().status, driver.parent().tags["state"]) == (
        "KILLED",
        "interrupted",
    )
    assert [each["state"] for each in driver.records()] == ["interrupted"] * 2
    assert in_shared_memory() <= shared

    stopped = {run: newest_step(run) for run in runs}
    assert driver.run(*rarely, "--resume") == 0, driver.output()
    for run in runs:
        first, second = stretches(run)
        assert first + second == list(range(5, 201, 5))
        assert first[-1] <= stopped[run] < second[0]
    assert [run.status for run in driver.children()] == ["FINISHED"] * 2
