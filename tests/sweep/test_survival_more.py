"""More of what happens to sweeps: failing trials, workers and nodes that die, a tracking server that goes away."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from driven import Driven
from traces import (
    assert_resumed,
    assert_same,
    last_step,
    logged,
    newest_step,
    status,
    stretches,
    undisturbed,
    weights,
    written,
)

from cutslots.tracking import events

pytestmark = [pytest.mark.slow, pytest.mark.survival]


DIVERGED = "the loss or its gradient is not finite at step 2"


def failed_alone(driven: Driven, number: int, cause: str) -> None:
    """Trial `number` has failed for `cause` wherever one looks."""
    record, run = driven.records()[number], driven.children()[number]
    assert record["state"] == "failed"
    assert cause in record["cause"]
    assert driven.study()[number].state.name == "FAIL"
    assert cause in driven.study()[number].user_attrs["cause"]
    assert (
        f"failed: {record['cause']}".replace("|", "/") in (driven.folder / "table.md").read_text()
    )
    assert (run.status, run.tags["state"]) == ("FAILED", "failed")
    assert cause in run.tags["cause"]


def test_failing_trials_fail_alone(sweep: Callable[..., Driven]) -> None:
    driven = sweep("faults.py")
    driven.start("--retries", "1")

    run = driven.run_of("killed")
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
    one, two = (driven.run_of("sound") for driven in compared.values())
    assert one.name == two.name
    scores = [driven.study()[0].intermediate_values[60] for driven in compared.values()]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    for name in (
        "train/loss",
        "train/gradient_norm",
        "val/mse",
        "val/ari_fg",
        "val/cut_ari_fg",
        "val/num_images",
    ):
        curves = [
            {step: value for step, value in logged(run, name).items() if step <= 60}
            for run in (one, two)
        ]
        assert list(curves[0]) == (list(range(5, 61, 5)) if name.startswith("train") else [60])
        assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-4), name


def test_failing_trials_of_two_workers_fail_alone(compared: dict[int, Driven]) -> None:
    driven = compared[2]
    assert [each["state"] for each in driven.records()] == ["finished", "failed", "failed"]
    failed_alone(driven, 1, DIVERGED)
    failed_alone(driven, 2, "can't allocate memory")
    assert len(stretches(driven.home / "runs" / driven.records()[1]["run"])) == 1, (
        "what fails for sure is not repeated"
    )


def test_workers_are_killed_and_interrupted(
    sweep: Callable[..., Driven], compared: dict[int, Driven]
) -> None:
    """Rank 1 is killed, then all get Ctrl-C, then, resumed, rank 0 is killed."""
    driven, arguments = (
        sweep(),
        ("--trials", "0", "--workers-per-trial", "2", "--set", "train.steps=300"),
    )
    driven.start(*arguments)
    run = driven.wait(
        lambda: driven.between_checkpoints(40, 300), "a trial past its first checkpoints"
    )
    (other,) = set(driven.workers()) - {driven.trainer(run)}
    other.kill()
    driven.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "the trial under way again"
    )
    os.killpg(driven.process.pid, signal.SIGINT)  # as a terminal does it
    assert driven.ended() == 130, driven.said()
    driven.gone()
    stopped = newest_step(run)
    (child,) = driven.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert 60 < stopped < 300

    driven.start(*arguments, "--resume")
    driven.wait(
        lambda: len(stretches(run)) == 3 and last_step(run) > stopped + 25,
        "the trial past another checkpoint",
    )
    driven.trainer(run).kill()
    assert driven.ended() == 0, driven.said()
    assert_resumed(run, 40, stopped, stopped + 5, end=300)
    assert_same(weights(run), weights(compared[2].run_of("sound")))
    (child,) = driven.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == (
        "FINISHED",
        "finished",
        None,
    )


def test_a_second_ctrl_c_does_not_wait(sweep: Callable[..., Driven]) -> None:
    """Several workers heed the first one when they log the next time, and these do not."""
    driven = sweep()
    endless = [f"train.{name}=1000000" for name in ("steps", "log_every", "eval_every")]
    driven.start(
        "--trials",
        "0",
        "--workers-per-trial",
        "2",
        *(word for each in endless for word in ("--set", each)),
    )
    run = driven.wait(
        lambda: next((run for run in driven.runs() if newest_step(run) > 0), None), "a checkpoint"
    )
    os.killpg(driven.process.pid, signal.SIGINT)
    driven.wait(
        lambda: "once more ends them at once" in driven.log.read_text(), "a word on the first one"
    )
    assert newest_step(run) < 1000000
    os.killpg(driven.process.pid, signal.SIGINT)
    assert driven.ended() == 130, driven.said()
    driven.gone()
    (child,) = driven.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert driven.parent().status == "KILLED"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster with three nodes on this machine: the head without a CPU, two with one CPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONBREAKPOINT", "")  # Ray sets it
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    try:
        made.small = [made.add_node(num_cpus=1) for _ in range(2)]  # type: ignore[attr-defined]
        yield made
    finally:
        made.shutdown()
        signal.signal(signal.SIGTERM, handler)


def test_trials_of_a_lost_node_move(
    sweep: Callable[..., Driven], cluster: Any, tmp_path: Path
) -> None:
    """Each node has a trial; one goes, and its trial waits for the other one."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.small}
    driven = sweep(env={"RAY_ADDRESS": cluster.address})
    driven.start("--trials", "1")
    driven.wait(lambda: len(driven.runs()) == 2, "two trials")
    run = driven.wait(lambda: driven.between_checkpoints(40), "a trial past its first checkpoints")
    cluster.remove_node(nodes.pop(driven.trainer(run).ppid()), allow_graceful=False)
    driven.wait(lambda: len(stretches(run)) == 2, "its second process")
    assert driven.trainer(run).ppid() in nodes
    assert driven.ended() == 0, driven.said()
    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driven.data, tmp_path / "undisturbed"))
    assert [child.status for child in driven.children()] == ["FINISHED"] * 2
    (other,) = set(driven.runs()) - {run}
    assert len(stretches(other)) == 1


class Server:
    """An MLflow server on a port of its own, with a database that outlives it."""

    def __init__(self, folder: Path, database: Path) -> None:
        folder.mkdir()
        self.folder, self.database = folder, folder / "mlflow.db"
        shutil.copyfile(database, self.database)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self.database}",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        env = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # whose processes take longer to start than it
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )

    def stop(self) -> None:
        """Kill it."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def points(self, run_id: str) -> set[tuple[str, int, float, int]]:
        """All metric points of a run: name, step, value, time."""
        with sqlite3.connect(self.database) as database:
            rows = (
                "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ? AND NOT is_nan"
            )
            return set(database.execute(rows, (run_id,)))


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server", made / "home" / "mlflow.db")
    yield server
    server.stop()


def test_a_tracking_server_goes_away_and_comes_back(
    sweep: Callable[..., Driven], server: Server
) -> None:
    """One trial ends while it is away, and another begins."""
    driven = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    server.start()
    driven.start("--trials", "2", "--concurrent", "1", "--set", "train.steps=300")
    first = driven.wait(
        lambda: driven.between_checkpoints(40, 300), "a trial past its first checkpoints"
    )
    server.stop()
    driven.wait(lambda: status(first) == "FINISHED", "an end of the trial")
    second = driven.wait(
        lambda: next((run for run in driven.runs() if run != first and last_step(run) > 40), None),
        "the next one",
    )
    server.start()
    assert driven.ended() == 0, driven.said()

    assert len(driven.runs()) == 3
    assert all(stretches(run) == [list(range(5, 301, 5))] for run in (first, second))
    for run in (*driven.runs(), driven.folder):
        told = json.loads((run / "mlflow.json").read_text())
        assert told["refused"] == 0
        journal = [event for event in events(run) if event["kind"] == "metrics"]
        assert server.points(told["run_id"]) == {
            (name, event["step"], value, event["time"])
            for event in journal
            for name, value in event["values"].items()
        }
    assert [(child.status, child.tags["state"]) for child in driven.children()] == [
        ("FINISHED", "finished")
    ] * 3
    assert sorted(child.tags["rank"] for child in driven.children()) == ["1", "2", "3"]
    assert (driven.parent().status, driven.parent().tags["state"]) == ("FINISHED", "finished")
    assert "version 1" in driven.log.read_text()


def test_a_tracking_server_stays_away(sweep: Callable[..., Driven], server: Server) -> None:
    """The sweep ends without it, and `--resume` brings all there is when it is back."""
    driven = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    server.start()
    driven.start("--trials", "0")
    run = driven.wait(lambda: driven.between_checkpoints(40), "a trial past its first checkpoints")
    server.stop()
    assert driven.ended() == 0, driven.said()
    assert "MLflow has neither ranks nor the best model" in driven.log.read_text()
    assert stretches(run) == [list(range(5, 201, 5))]
    before = written(run)

    server.start()
    assert driven.run("--trials", "0", "--resume") == 0, driven.said()
    assert written(run) == before
    (child,) = driven.children()
    assert (child.status, child.tags["state"], child.tags["rank"]) == ("FINISHED", "finished", "1")
    assert (driven.parent().status, driven.parent().tags["state"]) == ("FINISHED", "finished")
    assert "version 1" in driven.log.read_text()


def test_a_cluster_is_free_after_its_sweep(sweep: Callable[..., Driven], cluster: Any) -> None:
    """After a driver that was killed, and after one that was asked to end; the cluster itself stays."""
    driven, arguments = (
        sweep(env={"RAY_ADDRESS": cluster.address}),
        ("--trials", "0", "--workers-per-trial", "2"),
    )
    driven.start(*arguments)
    run = driven.wait(lambda: driven.between_checkpoints(40), "a trial past its first checkpoints")
    driven.kill()
    driven.wait(lambda: taken(cluster) == [], "a free cluster")

    driven.start(*arguments, "--resume")
    driven.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "the trial under way again"
    )
    driven.process.send_signal(signal.SIGTERM)
    assert driven.ended() == 130, driven.said()
    driven.wait(lambda: taken(cluster) == [], "a free cluster")
    assert_resumed(run, 40, end=last_step(run))
    assert newest_step(run) < 200
    assert [(child.status, child.tags["state"]) for child in driven.children()] == [
        ("KILLED", "interrupted")
    ]


def taken(cluster: Any) -> list[str]:
    """What is in use on a cluster: CPUs, placement groups, actors but the one that Ray keeps for itself."""
    look = """
import sys
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors
ray.init(sys.argv[1], log_to_driver=False)
for name, there in ray.cluster_resources().items():
    if name == "CPU" and ray.available_resources().get(name, 0) < there:
        print("CPU")
for group in placement_group_table().values():
    if group["state"] != "REMOVED":
        print("placement group", group)
for actor in list_actors():
    if actor.state != "DEAD" and actor.class_name != "_AutoscalingCoordinatorActor":
        print("actor", actor.class_name)
"""
    return subprocess.check_output(
        [sys.executable, "-c", look, cluster.address], text=True
    ).splitlines()
