"""cluster/slurm.sh with real Ray, MLflow and driver, and stand-ins for srun and scontrol."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

TREE = Path(__file__).parents[2]
SCRIPT = TREE / "cluster" / "slurm.sh"
# Options take their value after "=" in slurm.sh; what follows them is the command.
SRUN = """#!/bin/bash
echo "srun $*" >> "$SHIM_LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$SHIM_LOG"
if [ "$1 $2" = "show hostnames" ]; then printf '%s\\n' node1 node2; fi
"""
# A sweep that resumes: the first time it waits to be asked to end, the second time it is done.
SWEEP = """import os, signal, sys, time
from pathlib import Path
import ray
from mlflow import MlflowClient

asked = []
ray.init(logging_level="ERROR", log_to_driver=False)
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))  # Ray has set its own handler

@ray.remote(num_cpus=1)
def work():
    return sum(range(10))

assert ray.get(work.remote()) == 45
client, checkpoint = MlflowClient(), Path(os.environ["CUTSLOTS_HOME"]) / "checkpoint"
if checkpoint.exists():
    run = client.create_run(client.create_experiment("sweep"))
    client.set_terminated(run.info.run_id)
    print("done", *sys.argv[1:])
    sys.exit(0)
print("waiting", *sys.argv[1:], flush=True)
while not asked:
    time.sleep(0.1)
checkpoint.write_text("here")
sys.exit(143)
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes, both of them this machine."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    (tmp_path / "sweep.py").write_text(SWEEP)
    foreign = ("RAY_", "MLFLOW_", "CUTSLOTS_", "SLURM_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(foreign)
    }
    return environment | {
        "PATH": f"{shims}:{environment['PATH']}",
        "SHIM_LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(TREE),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_END_TIME": str(int(time.time()) + 170),
        "CUTSLOTS_VENV": str(TREE / ".venv"),
        "CUTSLOTS_HEAD": "127.0.0.1",
        "CUTSLOTS_HOME": str(tmp_path / "home"),
        "CUTSLOTS_LOCAL": str(tmp_path / "local"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def refused(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    return done.stderr


def test_impossible_jobs_are_refused(job: dict[str, str]) -> None:
    assert "no sweeps/none.py" in refused(job, "sweeps/none.py")
    assert "run make there once" in refused(
        job | {"CUTSLOTS_VENV": "/nowhere", "PATH": "/usr/bin:/bin"}, "sweeps/cora.py"
    )
    del job["SLURM_JOB_ID"]
    assert "sbatch cluster/slurm.sh" in refused(job)


@pytest.mark.slow
def test_the_time_limit_sends_it_back_into_the_queue_and_it_goes_on(
    job: dict[str, str], tmp_path: Path
) -> None:
    if any(process.name() == "raylet" for process in psutil.process_iter()):
        pytest.skip("another Ray is running on this machine")
    first = run(job, tmp_path, "waiting", end=True)
    assert "2 nodes" in first
    assert "waiting --resume --trials 3" in first
    assert "on from its checkpoints" in first
    log = (tmp_path / "log").read_text()
    assert f"scontrol requeue {job['SLURM_JOB_ID']}" in log
    assert "--nodelist=node1" in log
    assert "--exclude=node1" in log

    second = run(job, tmp_path, "done", end=False)
    assert "done --resume --trials 3" in second
    assert (tmp_path / "log").read_text().count("requeue") == 1
    assert runs(tmp_path / "home" / "tracking" / "mlflow.db") == ["FINISHED"]


def run(job: dict[str, str], folder: Path, sign: str, end: bool) -> str:
    """Run the job, with SIGTERM if `end`, and return its output; no process may be left."""
    output = folder / f"{sign}.out"
    with output.open("w") as file:
        command = ["bash", str(SCRIPT), str(folder / "sweep.py"), "--trials", "3"]
        process = subprocess.Popen(
            command, env=job, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while end and process.poll() is None and f"{sign} --resume" not in output.read_text():
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        if end:
            process.send_signal(signal.SIGTERM)
        status = process.wait(180)
        assert status == (143 if end else 0), output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20  # Ray's own helpers follow it by a moment
    while mine := [
        each.cmdline() for each in psutil.process_iter() if belongs(each, job["CUTSLOTS_HOME"])
    ]:
        assert time.monotonic() < deadline, mine
        time.sleep(0.5)
    assert not Path(f"/tmp/ray-{job['SLURM_JOB_ID']}").exists()
    assert not (folder / "local").exists()
    assert not list((folder / "home" / "slurm").iterdir()), "the token is still there"
    return output.read_text()


def belongs(process: psutil.Process, home: str) -> bool:
    try:
        return (
            process.environ().get("CUTSLOTS_HOME") == home
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def runs(database: Path) -> list[str]:
    from mlflow import MlflowClient

    copy = shutil.copyfile(database, database.with_name("seen.db"))
    client = MlflowClient(f"sqlite:///{copy}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [found.info.status for found in client.search_runs(experiments)]
