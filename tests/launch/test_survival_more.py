"""More of what happens to sweeps: failing trials, workers and nodes that die, a tracking server that goes away."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from driven import Driven
from traces import assert_resumed, assert_same, last_step, logged, newest_step, stretches, undisturbed, weights

pytestmark = [pytest.mark.slow, pytest.mark.survival]


DIVERGED = "the loss or its gradient is not finite at step 2"


def failed_alone(driven: Driven, number: int, cause: str) -> None:
    """Trial `number` has failed for `cause` wherever one looks."""
    record, run = driven.records()[number], driven.children()[number]
    assert record["state"] == "failed"
    assert cause in record["cause"]
    assert driven.study()[number].state.name == "FAIL"
    assert cause in driven.study()[number].user_attrs["cause"]
    assert f"failed: {record['cause']}".replace("|", "/") in (driven.folder / "table.md").read_text()
    assert (run.status, run.tags["state"]) == ("FAILED", "failed")
    assert cause in run.tags["cause"]


def test_failing_trials_fail_alone(sweep: Callable[..., Driven]) -> None:
    driven = sweep("faults.py")
    driven.start("--retries", "1")

    run = driven.wait(lambda: driven.labelled("killed"), "the trial that is killed")
    driven.trainer(run).kill()
    driven.wait(lambda: len(stretches(run)) == 2, "its second process")
    driven.trainer(run).kill()
    assert driven.ended() == 0, driven.said()

    assert [each["state"] for each in driven.records()] == ["finished"] + ["failed"] * 4
    assert driven.children()[0].status == driven.parent().status == "FINISHED"
    failed_alone(driven, 1, DIVERGED)
    failed_alone(driven, 2, "can't allocate memory")
    failed_alone(driven, 3, "batch")
    failed_alone(driven, 4, "its process died 2 times")


def test_two_workers_give_the_numbers_of_one(compared: dict[int, Driven]) -> None:
    """As long as rounding has not grown: each step turns it into a little more."""
    one, two = (driven.runs()[0] for driven in compared.values())
    assert one.name == two.name
    scores = [driven.study()[0].intermediate_values[60] for driven in compared.values()]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    for name in ("train/loss", "train/gradient_norm", "val/mse", "val/ari_fg", "val/cut_ari_fg", "val/num_images"):
        curves = [{step: value for step, value in logged(run, name).items() if step <= 60} for run in (one, two)]
        assert list(curves[0]) == (list(range(5, 61, 5)) if name.startswith("train") else [60])
        assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-4), name


def test_failing_trials_of_two_workers_fail_alone(compared: dict[int, Driven]) -> None:
    driven = compared[2]
    assert [each["state"] for each in driven.records()] == ["finished", "failed", "failed"]
    failed_alone(driven, 1, DIVERGED)
    failed_alone(driven, 2, "can't allocate memory")
    assert len(stretches(driven.home / "runs" / driven.records()[1]["run"])) == 1, "what fails for sure is not repeated"


def test_workers_are_killed_and_interrupted(sweep: Callable[..., Driven], compared: dict[int, Driven]) -> None:
    """Rank 1 is killed, then all get Ctrl-C, then, resumed, rank 0 is killed."""
    driven, arguments = sweep(), ("--trials", "0", "--workers-per-trial", "2", "--set", "train.steps=300")
    driven.start(*arguments)
    run = driven.wait(lambda: driven.between_checkpoints(40, 300), "a trial past its first checkpoints")
    (other,) = set(driven.workers()) - {driven.trainer(run)}
    other.kill()
    driven.wait(lambda: len(stretches(run)) == 2 and last_step(run) > 60, "the trial under way again")
    os.killpg(driven.process.pid, signal.SIGINT)  # as a terminal does it
    assert driven.ended() == 130, driven.said()
    driven.gone()
    stopped = newest_step(run)
    (child,) = driven.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert 60 < stopped < 300

    driven.start(*arguments, "--resume")
    driven.wait(lambda: len(stretches(run)) == 3 and last_step(run) > stopped + 25, "the trial past another checkpoint")
    driven.trainer(run).kill()
    assert driven.ended() == 0, driven.said()
    assert_resumed(run, 40, stopped, stopped + 5, end=300)
    assert_same(weights(run), weights(compared[2].runs()[0]))
    (child,) = driven.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == ("FINISHED", "finished", None)


def test_a_second_ctrl_c_does_not_wait(sweep: Callable[..., Driven]) -> None:
    """Several workers heed the first one when they log the next time, and these do not."""
    driven = sweep()
    endless = [f"train.{name}=1000000" for name in ("steps", "log_every", "eval_every")]
    driven.start("--trials", "0", "--workers-per-trial", "2", *(word for each in endless for word in ("--set", each)))
    run = driven.wait(lambda: next((run for run in driven.runs() if newest_step(run) > 0), None), "a checkpoint")
    os.killpg(driven.process.pid, signal.SIGINT)
    driven.wait(lambda: "once more ends them at once" in driven.log.read_text(), "a word on the first one")
    assert newest_step(run) < 1000000
    os.killpg(driven.process.pid, signal.SIGINT)
    assert driven.ended() == 130, driven.said()
    driven.gone()
    (child,) = driven.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert driven.parent().status == "KILLED"


def test_trials_of_a_lost_node_move(sweep: Callable[..., Driven], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes with room for one trial each; one of them goes, and its trial waits for the other."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONBREAKPOINT", "")  # Ray sets it
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = {node.all_processes["raylet"][0].process.pid: node for node in (cluster.add_node(num_cpus=1) for _ in range(2))}
        driven = sweep(env={"RAY_ADDRESS": cluster.address})
        driven.start("--trials", "1")
        driven.wait(lambda: len(driven.runs()) == 2, "two trials")
        run = driven.wait(lambda: driven.between_checkpoints(40), "a trial past its first checkpoints")
        lost = driven.trainer(run).ppid()
        cluster.remove_node(nodes.pop(lost), allow_graceful=False)
        driven.wait(lambda: len(stretches(run)) == 2, "its second process")
        assert driven.trainer(run).ppid() in nodes
        assert driven.ended() == 0, driven.said()
    finally:
        cluster.shutdown()
    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driven.data, tmp_path / "undisturbed"))
    assert [child.status for child in driven.children()] == ["FINISHED"] * 2
    (other,) = set(driven.runs()) - {run}
    assert len(stretches(other)) == 1
