"""Survival of killed trials and drivers, and of signals, with real processes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from driver_process import DriverProcess
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
FINISHED, KILLED = ("FINISHED", "finished"), ("KILLED", "interrupted")


def in_shared_memory() -> set[str]:
    """Names of Ray and torch in shared memory."""
    prefixes = ("plasma", "ray", "torch", "sem.", "psm_")
    return {name for name in os.listdir("/dev/shm") if name.startswith(prefixes)}


def test_killed_trial_resumes_from_its_checkpoint(
    sweep: Callable[..., DriverProcess], tmp_path: Path
) -> None:
    driver = sweep()
    run = driver.start_past_checkpoints("--trials", "0")
    driver.trainer(run).kill()
    assert driver.wait_for_exit() == 0, driver.output()
    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driver.data, tmp_path / "undisturbed"))
    assert driver.states() == [FINISHED] * 2
    assert "cause" not in driver.children()[0].tags
    assert [record["state"] for record in driver.records()] == ["finished"]
    assert "resumes from its last checkpoint" in driver.log.read_text()


def test_next_driver_continues_after_a_killed_one(sweep: Callable[..., DriverProcess]) -> None:
    """One trial is finished, one must close its log, one is half-way, one has not started."""
    driver, arguments = sweep(), ("--trials", "3", "--concurrent", "2")

    def at_its_end() -> Path | None:
        runs = [run for run in driver.runs() if newest_step(run) == 200 and status(run) is None]
        return runs[0] if runs else None

    driver.start(*arguments)
    ending = driver.wait(at_its_end, "a trial at its last checkpoint, with an open log")
    trainer = driver.trainer(ending)
    trainer.suspend()
    assert status(ending) is None
    driver.wait(driver.finished, "a finished trial")
    middle = driver.wait(driver.between_checkpoints, "a trial in the middle")
    driver.kill()
    trainer.kill()
    driver.wait_for_processes()
    (done,) = driver.finished()
    before = written(done), [(trial.number, trial.params) for trial in driver.study()][:3]
    assert {run.status for run in driver.children()} == {"RUNNING", "FINISHED"}

    assert driver.run(*arguments, "--resume") == 0, driver.output()
    after = written(done), [(trial.number, trial.params) for trial in driver.study()][:3]
    assert after == before
    assert [trial.state.name for trial in driver.study()] == ["COMPLETE"] * 4
    assert stretches(ending) == [list(range(5, 201, 5)), []]
    assert_resumed(middle, 40)
    runs = driver.children()
    assert driver.states() == [FINISHED] * 5
    assert len({run.tags["signature"] for run in runs}) == 4
    assert all("best/ari_fg" in run.metrics for run in runs)
    assert find_runs("attributes.status = 'RUNNING'", tracking_uri=driver.uri) == []
    assert sorted(run.tags["rank"] for run in runs) == ["1", "2", "3", "4"]

    assert driver.run("--trials", "3", "--resume") == 0
    assert "is finished" in driver.log.read_text()
    assert written(done) == before[0]


def test_impossible_resources_are_refused(sweep: Callable[..., DriverProcess]) -> None:
    driver = sweep()
    for options, message in (
        ("--gpus-per-trial 1 --workers-per-trial 8", "A trial needs 8 GPU"),
        ("--workers-per-trial 64 --cpus-per-trial 64", "A trial needs 4096 CPU"),
    ):
        assert driver.run(*options.split(), "--set", "optim.batch_size=64") == 2, driver.output()
        assert driver.log.read_text().splitlines()[-1].startswith(f"error: {message}")
    assert not (driver.folder / "study.log").exists()
    assert find_runs("tags.kind = 'sweep'", tracking_uri=driver.uri) == []


def test_sigterm_leaves_only_checkpoints(sweep: Callable[..., DriverProcess]) -> None:
    driver, shared = sweep(), in_shared_memory()
    rarely = ["--trials", "1"]
    for name in ("checkpoint_every", "eval_every"):
        rarely += ["--set", f"train.{name}=1000"]
    driver.start(*rarely)
    driver.wait(
        lambda: [last_step(run) > 40 for run in driver.runs()] == [True, True],
        "two trials past step 40",
    )
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()
    assert driver.states() == [KILLED] * 3
    assert [record["state"] for record in driver.records()] == ["interrupted"] * 2
    assert in_shared_memory() <= shared
    stopped = {run: newest_step(run) for run in driver.runs()}
    assert all(40 < step < 200 for step in stopped.values())

    assert driver.run(*rarely, "--resume") == 0, driver.output()
    for run, step in stopped.items():
        first, second = stretches(run)
        assert first + second == list(range(5, 201, 5))
        assert first[-1] <= step < second[0]
    assert driver.states() == [FINISHED] * 3
