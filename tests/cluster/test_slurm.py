"""cluster/slurm.sh with real Ray, MLflow and driver, and stand-ins for srun and scontrol."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from node_processes import living

from cutslots.tracking import find_runs

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
# A sweep that resumes: the first time it waits for SIGTERM, the second time it is done.
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


def test_impossible_jobs_are_refused(job: dict[str, str]) -> None:
    nothing = {"CUTSLOTS_VENV": "/nowhere", "PATH": "/usr/bin:/bin"}
    outside = {name: value for name, value in job.items() if name != "SLURM_JOB_ID"}
    for env, arguments, message in (
        (job, ["sweeps/none.py"], "no sweeps/none.py"),
        (job | nothing, ["sweeps/cora.py"], "run make there once"),
        (outside, [], "sbatch cluster/slurm.sh"),
    ):
        command = ["bash", SCRIPT, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_requeued_and_resumes(
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

    assert "done --resume --trials 3" in run(job, tmp_path, "done", end=False)
    assert (tmp_path / "log").read_text().count("requeue") == 1
    database = tmp_path / "home" / "tracking" / "mlflow.db"
    found = find_runs(tracking_uri=f"sqlite:///{database}")
    assert [run.status for run in found] == ["FINISHED"]


def run(job: dict[str, str], folder: Path, sign: str, end: bool) -> str:
    """Run the job, with SIGTERM if `end`, and return its output; no process may be left."""
    output, command = folder / f"{sign}.out", ["bash", str(SCRIPT), str(folder / "sweep.py")]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--trials", "3"],
            env=job,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while end and process.poll() is None and f"{sign} --resume" not in output.read_text():
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        if end:
            process.send_signal(signal.SIGTERM)
        assert process.wait(180) == (143 if end else 0), output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20  # Ray's helper processes end a moment later
    while left := [p.cmdline() for p in living("CUTSLOTS_HOME", job["CUTSLOTS_HOME"])]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert not Path(f"/tmp/ray-{job['SLURM_JOB_ID']}").exists()
    assert not (folder / "local").exists()
    assert not list((folder / "home" / "slurm").iterdir()), "the token is still there"
    return output.read_text()
