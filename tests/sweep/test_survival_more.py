"""Survival: failing trials, dead workers and nodes, signals, an absent tracking server."""

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
from driver_process import DriverProcess
from run_facts import (
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


def failed_alone(driver: DriverProcess, number: int, cause: str) -> None:
    """Trial `number` has failed for `cause` wherever one looks."""
    record, run = driver.records()[number], driver.children()[number]
    assert record["state"] == "failed"
    assert cause in record["cause"]
    assert driver.study()[number].state.name == "FAIL"
    assert cause in driver.study()[number].user_attrs["cause"]
    assert (
        f"failed: {record['cause']}".replace("|", "/") in (driver.folder / "table.md").read_text()
    )
    assert (run.status, run.tags["state"]) == ("FAILED", "failed")
    assert cause in run.tags["cause"]


def test_other_trials_survive_failing_ones(sweep: Callable[..., DriverProcess]) -> None:
    driver = sweep("faults.py")
    driver.start("--retries", "1")

    run = driver.run_of("killed")
    driver.trainer(run).kill()
    driver.wait(lambda: len(stretches(run)) == 2, "its second process")
    driver.trainer(run).kill()
    assert driver.wait_for_exit() == 0, driver.output()

    assert [each["state"] for each in driver.records()] == ["finished"] + ["failed"] * 4
    assert driver.children()[0].status == driver.parent().status == "FINISHED"
    failed_alone(driver, 1, DIVERGED)
    failed_alone(driver, 2, "can't allocate memory")
    failed_alone(driver, 3, "batch")
    failed_alone(driver, 4, "its process died 2 times")


def test_two_workers_have_the_scores_of_one(compared: dict[int, DriverProcess]) -> None:
    """As long as rounding has not grown: each step turns it into a little more."""
    one, two = (driver.run_of("sound") for driver in compared.values())
    assert one.name == two.name
    scores = [driver.study()[0].intermediate_values[60] for driver in compared.values()]
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


def test_other_trials_survive_failing_ones_of_two_workers(
    compared: dict[int, DriverProcess],
) -> None:
    driver = compared[2]
    assert [each["state"] for each in driver.records()] == ["finished", "failed", "failed"]
    failed_alone(driver, 1, DIVERGED)
    failed_alone(driver, 2, "can't allocate memory")
    assert len(stretches(driver.home / "runs" / driver.records()[1]["run"])) == 1, (
        "what fails for sure is not repeated"
    )


def test_trial_of_two_workers_survives_kills_and_ctrl_c(
    sweep: Callable[..., DriverProcess], compared: dict[int, DriverProcess]
) -> None:
    """Rank 1 is killed, then all get Ctrl-C, then, resumed, rank 0 is killed."""
    driver, arguments = (
        sweep(),
        ("--trials", "0", "--workers-per-trial", "2", "--set", "train.steps=300"),
    )
    driver.start(*arguments)
    run = driver.wait(
        lambda: driver.between_checkpoints(40, 300), "a trial past its first checkpoints"
    )
    (other,) = set(driver.workers()) - {driver.trainer(run)}
    other.kill()
    driver.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "the trial under way again"
    )
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does it
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()
    stopped = newest_step(run)
    (child,) = driver.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert 60 < stopped < 300

    driver.start(*arguments, "--resume")
    driver.wait(
        lambda: len(stretches(run)) == 3 and last_step(run) > stopped + 25,
        "the trial past another checkpoint",
    )
    driver.trainer(run).kill()
    assert driver.wait_for_exit() == 0, driver.output()
    assert_resumed(run, 40, stopped, stopped + 5, end=300)
    assert_same(weights(run), weights(compared[2].run_of("sound")))
    (child,) = driver.children()
    assert (child.status, child.tags["state"], child.tags.get("cause")) == (
        "FINISHED",
        "finished",
        None,
    )


def test_second_ctrl_c_does_not_wait(sweep: Callable[..., DriverProcess]) -> None:
    """Several workers stop when they log the next time, and these never log."""
    driver = sweep()
    endless = [f"train.{name}=1000000" for name in ("steps", "log_every", "eval_every")]
    driver.start(
        "--trials",
        "0",
        "--workers-per-trial",
        "2",
        *(word for each in endless for word in ("--set", each)),
    )
    run = driver.wait(
        lambda: next((run for run in driver.runs() if newest_step(run) > 0), None),
        "a checkpoint",
    )
    os.killpg(driver.process.pid, signal.SIGINT)
    driver.wait(
        lambda: "repeat it to kill them" in driver.log.read_text(), "a word on the first one"
    )
    assert newest_step(run) < 1000000
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()
    (child,) = driver.children()
    assert (child.status, child.tags["state"]) == ("KILLED", "interrupted")
    assert driver.parent().status == "KILLED"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster on this machine: a head without CPUs, and two nodes with one CPU each."""
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
    sweep: Callable[..., DriverProcess], cluster: Any, tmp_path: Path
) -> None:
    """Each node has a trial; one goes, and its trial waits for the other one."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.small}
    driver = sweep(env={"RAY_ADDRESS": cluster.address})
    driver.start("--trials", "1")
    driver.wait(lambda: len(driver.runs()) == 2, "two trials")
    run = driver.wait(lambda: driver.between_checkpoints(40), "a trial past its first checkpoints")
    cluster.remove_node(nodes.pop(driver.trainer(run).ppid()), allow_graceful=False)
    driver.wait(lambda: len(stretches(run)) == 2, "its second process")
    assert driver.trainer(run).ppid() in nodes
    assert driver.wait_for_exit() == 0, driver.output()
    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driver.data, tmp_path / "undisturbed"))
    assert [child.status for child in driver.children()] == ["FINISHED"] * 2
    (other,) = set(driver.runs()) - {run}
    assert len(stretches(other)) == 1


class Server:
    """An MLflow server with a database that survives it."""

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


def test_tracking_server_is_away_for_a_while(
    sweep: Callable[..., DriverProcess], server: Server
) -> None:
    """One trial ends while it is away, and another begins."""
    driver = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    server.start()
    driver.start("--trials", "2", "--concurrent", "1", "--set", "train.steps=300")
    first = driver.wait(
        lambda: driver.between_checkpoints(40, 300), "a trial past its first checkpoints"
    )
    server.stop()
    driver.wait(lambda: status(first) == "FINISHED", "an end of the trial")
    second = driver.wait(
        lambda: next((run for run in driver.runs() if run != first and last_step(run) > 40), None),
        "the next one",
    )
    server.start()
    assert driver.wait_for_exit() == 0, driver.output()

    assert len(driver.runs()) == 3
    assert all(stretches(run) == [list(range(5, 301, 5))] for run in (first, second))
    for run in (*driver.runs(), driver.folder):
        delivered = json.loads((run / "mlflow.json").read_text())
        assert delivered["refused"] == 0
        journal = [event for event in events(run) if event["kind"] == "metrics"]
        assert server.points(delivered["run_id"]) == {
            (name, event["step"], value, event["time"])
            for event in journal
            for name, value in event["values"].items()
        }
    assert [(child.status, child.tags["state"]) for child in driver.children()] == [
        ("FINISHED", "finished")
    ] * 3
    assert sorted(child.tags["rank"] for child in driver.children()) == ["1", "2", "3"]
    assert (driver.parent().status, driver.parent().tags["state"]) == (
        "FINISHED",
        "finished",
    )
    assert "version 1" in driver.log.read_text()


def test_tracking_server_stays_away(sweep: Callable[..., DriverProcess], server: Server) -> None:
    """The sweep ends without it, and `--resume` brings all there is when it is back."""
    driver = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    server.start()
    driver.start("--trials", "0")
    run = driver.wait(lambda: driver.between_checkpoints(40), "a trial past its first checkpoints")
    server.stop()
    assert driver.wait_for_exit() == 0, driver.output()
    assert "the ranks and the best model are not in MLflow" in driver.log.read_text()
    assert stretches(run) == [list(range(5, 201, 5))]
    before = written(run)

    server.start()
    assert driver.run("--trials", "0", "--resume") == 0, driver.output()
    assert written(run) == before
    (child,) = driver.children()
    assert (child.status, child.tags["state"], child.tags["rank"]) == ("FINISHED", "finished", "1")
    assert (driver.parent().status, driver.parent().tags["state"]) == (
        "FINISHED",
        "finished",
    )
    assert "version 1" in driver.log.read_text()


def test_cluster_is_free_after_a_sweep(sweep: Callable[..., DriverProcess], cluster: Any) -> None:
    """After a killed driver, and after SIGTERM; the cluster itself keeps running."""
    driver, arguments = (
        sweep(env={"RAY_ADDRESS": cluster.address}),
        ("--trials", "0", "--workers-per-trial", "2"),
    )
    driver.start(*arguments)
    run = driver.wait(lambda: driver.between_checkpoints(40), "a trial past its first checkpoints")
    driver.kill()
    driver.wait(lambda: taken(cluster) == [], "a free cluster")

    driver.start(*arguments, "--resume")
    driver.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "the trial under way again"
    )
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait(lambda: taken(cluster) == [], "a free cluster")
    assert_resumed(run, 40, end=last_step(run))
    assert newest_step(run) < 200
    assert [(child.status, child.tags["state"]) for child in driver.children()] == [
        ("KILLED", "interrupted")
    ]


def taken(cluster: Any) -> list[str]:
    """Used CPUs, placement groups and actors, except Ray's own actor."""
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
