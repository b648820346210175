"""What cluster/environment.sh and cluster/setup.sh do to a node, here in a separate home folder."""

import json
import os
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
# As Ray runs commands on a node, and as ssh does, where ~/.bashrc returns early.
RAY, SSH = ["bash", "--login", "-c", "-i"], ["bash", "-c"]
GUARDED = """# of a user
case $- in *i*) ;; *) return ;; esac
export PATH="/opt/other/bin:$PATH"
"""


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who logs in to a node with the settings of a cluster file."""
    shared, home = tmp_path / "shared", tmp_path / "home"
    shared.mkdir()
    home.mkdir()
    settings = f"CUTSLOTS_SHARED={shared}\nCUTSLOTS_CLUSTER=GPU=2,CPU=16   # a comment\n"
    settings += f"CUTSLOTS_VENV={TREE / '.venv'}\nCUTSLOTS_INSTALL=no\n"
    (home / ".cutslots-site").write_text(settings)
    (home / ".bashrc").write_text(GUARDED)
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "TERM": "dumb"}


def run(command: list[str | Path], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def set_up(script: str, node: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return run(["bash", TREE / "cluster" / script], node | more)


def seen(node: dict[str, str], shell: list[str]) -> dict[str, str]:
    """The environment of a process that is started through `shell`, which reads ~/.bashrc."""
    code = "import json, os; print('::' + json.dumps(dict(os.environ)))"
    done = run([*shell, f'source ~/.bashrc; /usr/bin/env python3 -c "{code}"'], node)
    return json.loads(done.stdout.split("::", 1)[1])


def test_every_shell_knows_the_cluster(node):
    assert set_up("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    shared = str(Path(node["HOME"]).parent / "shared")
    for shell in (SSH, RAY):
        env = seen(node, shell)
        assert ("/opt/other/bin" in env["PATH"]) == (shell == RAY)
        assert env["PATH"].startswith(f"{TREE / '.venv' / 'bin'}:"), "our Python comes first"
        expected = {
            "RAY_ADDRESS": "auto",
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": "240",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
            "CUTSLOTS_HOME": f"{shared}/home",
            "CUTSLOTS_DATA": f"{shared}/data",
            "CUTSLOTS_CLUSTER": "GPU=2,CPU=16",
        }
        assert {name: env[name] for name in expected} == expected
        assert not env["CUTSLOTS_FACTORS"].startswith(shared), "factors belong to the node"


def test_a_second_run_changes_nothing_but_a_new_head_does(node):
    home = Path(node["HOME"])
    assert set_up("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    files = [home / ".bashrc", home / ".profile", home / ".cutslots.env"]
    before = [file.read_text() for file in files]
    old = seen(node, RAY)
    assert set_up("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    assert [file.read_text() for file in files] == before
    # The old head's values in the environment are replaced.
    assert set_up("environment.sh", old, RAY_HEAD_IP="127.0.0.9").returncode == 0
    assert seen(node, RAY)["MLFLOW_TRACKING_URI"] == "http://127.0.0.9:5000"
    assert GUARDED.strip() in files[0].read_text()
    assert not [name for name in os.listdir(home) if name.startswith(".cutslots.env.")]


def test_the_head_of_own_machines_is_that_of_the_cluster_file(node):
    config = {"provider": {"type": "local", "head_ip": "localhost"}}
    (Path(node["HOME"]) / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    assert set_up("environment.sh", node).returncode == 0
    assert seen(node, RAY)["CUTSLOTS_HEAD"] == "127.0.0.1"


def test_a_ready_environment_is_used(node):
    done = set_up("setup.sh", node)
    assert done.returncode == 0, done.stderr
    assert (Path(node["HOME"]).parent / "shared" / "home").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("FILE_SYSTEM=fs-EDIT-ME SHARED=/mnt/cutslots CLUSTER=GPU=8,CPU=64", "EDIT-ME"),
        ("SHARED=/nfs/EDIT-ME CLUSTER=GPU=8,CPU=64", "in place of EDIT-ME"),
        ("FILE_SYSTEM=efs SHARED=/mnt/cutslots CLUSTER=CPU=1", "begins with fs-"),
        ("SHARED=/tmp", "CUTSLOTS_CLUSTER is not set"),
        ("CLUSTER=CPU=1", "CUTSLOTS_SHARED is not set"),
        ("SHARED=/no/such/folder CLUSTER=CPU=1 INSTALL=no", "mount the folder"),
        ("SHARED=/proc CLUSTER=CPU=1 INSTALL=no", "cannot be written"),
        ("SHARED={tmp}/shared CLUSTER=CPU=1 INSTALL=no VENV={tmp}/empty", "have cutslots and ray"),
    ],
)
def test_impossible_settings_are_refused(node, tmp_path, settings, message):
    if "empty" in settings:
        subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    lines = [f"CUTSLOTS_{setting}\n" for setting in settings.format(tmp=tmp_path).split()]
    (Path(node["HOME"]) / ".cutslots-site").write_text("".join(lines))
    done = set_up("setup.sh", node)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
