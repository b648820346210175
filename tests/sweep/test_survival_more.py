"""Survival: failing trials, dead workers and nodes, signals, an absent tracking server."""

import json
import os
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

FINISHED, KILLED = ("FINISHED", "finished"), ("KILLED", "interrupted")
DIVERGED = "the loss or its gradient is not finite at step 2"
ONE_TRIAL, TWO_WORKERS = ("--trials", "0"), ("--trials", "0", "--workers-per-trial", "2")


def assert_failed(driver: DriverProcess, *causes: str) -> None:
    """The first trial is finished, the others have failed for these causes in every record."""
    records, runs = driver.records(), driver.children()
    assert [record["state"] for record in records] == ["finished"] + ["failed"] * len(causes)
    assert driver.states()[:2] == [FINISHED] * 2
    table = (driver.folder / "table.md").read_text()
    for number, cause in enumerate(causes, 1):
        assert cause in records[number]["cause"]
        assert f"failed: {records[number]['cause']}".replace("|", "/") in table
        assert driver.study()[number].state.name == "FAIL"
        assert cause in driver.study()[number].user_attrs["cause"]
        assert (runs[number].status, runs[number].tags["state"]) == ("FAILED", "failed")
        assert cause in runs[number].tags["cause"]


def test_other_trials_survive_failing_ones(sweep: Callable[..., DriverProcess]) -> None:
    driver = sweep("faults.py")
    driver.start("--retries", "1")
    run = driver.run_of("killed")
    driver.trainer(run).kill()
    driver.wait(lambda: len(stretches(run)) == 2, "its second process")
    driver.trainer(run).kill()
    assert driver.wait_for_exit() == 0, driver.output()
    assert_failed(driver, DIVERGED, "can't allocate memory", "batch", "its process died 2 times")


def test_two_workers_have_the_scores_of_one(compared: dict[int, DriverProcess]) -> None:
    """As long as rounding has not grown: each step turns it into a little more."""
    one, two = (driver.run_of("sound") for driver in compared.values())
    assert one.name == two.name
    scores = [driver.study()[0].intermediate_values[60] for driver in compared.values()]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    names = ("train/loss", "train/gradient_norm", "val/mse", "val/ari_fg", "val/cut_ari_fg")
    for name in (*names, "val/num_images"):
        curves = [{s: v for s, v in logged(run, name).items() if s <= 60} for run in (one, two)]
        assert list(curves[0]) == (list(range(5, 61, 5)) if name.startswith("train") else [60])
        assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-4), name


def test_other_trials_survive_failing_ones_of_two_workers(
    compared: dict[int, DriverProcess],
) -> None:
    driver = compared[2]
    assert_failed(driver, DIVERGED, "can't allocate memory")
    run = driver.home / "runs" / driver.records()[1]["run"]
    assert len(stretches(run)) == 1, "a deterministic failure is not repeated"


def test_trial_of_two_workers_survives_kills_and_ctrl_c(
    sweep: Callable[..., DriverProcess], compared: dict[int, DriverProcess]
) -> None:
    """Rank 1 is killed, then all get Ctrl-C, then, resumed, rank 0 is killed."""
    driver, arguments = sweep(), (*TWO_WORKERS, "--set", "train.steps=300")
    run = driver.start_past_checkpoints(*arguments, end=300)
    (other,) = set(driver.workers()) - {driver.trainer(run)}
    other.kill()
    driver.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "steps of the second process"
    )
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does it
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()
    stopped = newest_step(run)
    assert driver.states() == [KILLED] * 2
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
    assert driver.states() == [FINISHED] * 2
    assert "cause" not in driver.children()[0].tags


def test_second_ctrl_c_does_not_wait(sweep: Callable[..., DriverProcess]) -> None:
    """Several workers stop when they log the next time, and these never log."""
    driver = sweep()
    endless = [f"train.{name}=1000000" for name in ("steps", "log_every", "eval_every")]
    driver.start(*TWO_WORKERS, *(word for option in endless for word in ("--set", option)))
    driver.wait(lambda: any(newest_step(run) > 0 for run in driver.runs()), "a checkpoint")
    os.killpg(driver.process.pid, signal.SIGINT)
    driver.wait(lambda: "repeat it to kill them" in driver.log.read_text(), "an answer to Ctrl-C")
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait_for_processes()
    assert driver.states() == [KILLED] * 2


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster on this machine: a head without CPUs, and two nodes with one CPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONBREAKPOINT", "")  # Ray sets it
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    try:
        ray.small = [ray.add_node(num_cpus=1) for _ in range(2)]  # type: ignore[attr-defined]
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def test_trials_of_a_lost_node_move(
    sweep: Callable[..., DriverProcess], cluster: Any, tmp_path: Path
) -> None:
    """Each node has a trial; one node dies, and its trial waits for the other one."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.small}
    driver = sweep(env={"RAY_ADDRESS": cluster.address})
    driver.start("--trials", "1")
    driver.wait(lambda: len(driver.runs()) == 2, "two trials")
    run = driver.wait(driver.between_checkpoints, "a run past its checkpoints")
    cluster.remove_node(nodes.pop(driver.trainer(run).ppid()), allow_graceful=False)
    driver.wait(lambda: len(stretches(run)) == 2, "its second process")
    assert driver.trainer(run).ppid() in nodes
    assert driver.wait_for_exit() == 0, driver.output()
    assert_resumed(run, 40)
    assert_same(weights(run), undisturbed(run, driver.data, tmp_path / "undisturbed"))
    assert driver.states() == [FINISHED] * 3
    (other,) = set(driver.runs()) - {run}
    assert len(stretches(other)) == 1


def test_cluster_is_free_after_a_sweep(sweep: Callable[..., DriverProcess], cluster: Any) -> None:
    """After a killed driver, and after SIGTERM; the cluster itself keeps running."""
    driver = sweep(env={"RAY_ADDRESS": cluster.address})
    run = driver.start_past_checkpoints(*TWO_WORKERS)
    driver.kill()
    driver.wait(lambda: used(cluster) == [], "a free cluster")
    driver.start(*TWO_WORKERS, "--resume")
    driver.wait(
        lambda: len(stretches(run)) == 2 and last_step(run) > 60, "steps of the second process"
    )
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait_for_exit() == 130, driver.output()
    driver.wait(lambda: used(cluster) == [], "a free cluster")
    assert_resumed(run, 40, end=last_step(run))
    assert newest_step(run) < 200
    assert driver.states() == [KILLED] * 2


def used(cluster: Any) -> list[str]:
    """Used CPUs, placement groups and actors, except Ray's own actor."""
    code = """
import sys
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors
ray.init(sys.argv[1], log_to_driver=False)
if ray.available_resources().get("CPU", 0) < ray.cluster_resources().get("CPU", 0):
    print("CPU")
for group in placement_group_table().values():
    if group["state"] != "REMOVED":
        print("placement group", group)
for actor in list_actors():
    if actor.state != "DEAD" and actor.class_name != "_AutoscalingCoordinatorActor":
        print("actor", actor.class_name)
"""
    command = [sys.executable, "-c", code, cluster.address]
    return subprocess.check_output(command, text=True).splitlines()


class Server:
    """An MLflow server with a database that survives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, folder / "mlflow.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        options = f"--host 127.0.0.1 --port {self.port} --workers 1"
        options += f" --backend-store-uri sqlite:///{self.database}"
        options += f" --artifacts-destination {self.folder / 'artifacts'}"
        command = [sys.executable, "-m", "mlflow", "server", *options.split()]
        # Its job processes take longer to start than the server.
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
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
        query = "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ? AND NOT is_nan"
        with sqlite3.connect(self.database) as database:
            return set(database.execute(query, (run_id,)))


@pytest.fixture
def server(copy_database: Callable[[Path], Path], tmp_path: Path) -> Iterator[Server]:
    server = Server(copy_database(tmp_path / "server"))
    server.start()
    yield server
    server.stop()


def test_tracking_server_is_away_for_a_while(
    sweep: Callable[..., DriverProcess], server: Server
) -> None:
    """One trial ends meanwhile, and another begins."""
    driver = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    arguments = ("--trials", "2", "--concurrent", "1", "--set", "train.steps=300")
    first = driver.start_past_checkpoints(*arguments, end=300)
    server.stop()
    driver.wait(lambda: status(first) == "FINISHED", "the end of the trial")
    second = driver.wait(
        lambda: next((run for run in driver.runs() if run != first and last_step(run) > 40), None),
        "the next trial",
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
    assert driver.states() == [FINISHED] * 4
    assert sorted(child.tags["rank"] for child in driver.children()) == ["1", "2", "3"]
    assert "version 1" in driver.log.read_text()


def test_tracking_server_stays_away(sweep: Callable[..., DriverProcess], server: Server) -> None:
    """The sweep ends without it, and `--resume` delivers everything when it is back."""
    driver = sweep(env={"MLFLOW_TRACKING_URI": server.uri})
    run = driver.start_past_checkpoints(*ONE_TRIAL)
    server.stop()
    assert driver.wait_for_exit() == 0, driver.output()
    assert "the ranks and the best model are not in MLflow" in driver.log.read_text()
    assert stretches(run) == [list(range(5, 201, 5))]
    before = written(run)

    server.start()
    assert driver.run(*ONE_TRIAL, "--resume") == 0, driver.output()
    assert written(run) == before
    assert driver.states() == [FINISHED] * 2
    assert driver.children()[0].tags["rank"] == "1"
    assert "version 1" in driver.log.read_text()
