"""What cluster/environment.sh and cluster/setup.sh do to a node, here in a separate home folder."""

import json
import os
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
# As Ray runs commands on a node, and as ssh does, where ~/.bashrc returns early.
RAY, SSH = ["bash", "--login", "-c", "-i"], ["bash", "-c"]
GUARDED = """# a person's own
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


def run(script: str, node: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", TREE / "cluster" / script]
    return subprocess.run(
        command,
        env=node | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def seen(node: dict[str, str], shell: list[str]) -> dict[str, str]:
    """What a process sees that is started through `shell`, which reads ~/.bashrc."""
    code = "import json, os; print('::' + json.dumps(dict(os.environ)))"
    command = [*shell, f'source ~/.bashrc; /usr/bin/env python3 -c "{code}"']
    done = subprocess.run(
        command, env=node, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout.split("::", 1)[1])


def set_site(node: dict[str, str], text: str) -> None:
    (Path(node["HOME"]) / ".cutslots-site").write_text(text)


def test_every_shell_knows_the_cluster(node):
    assert run("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    shared = Path(node["HOME"]).parent / "shared"
    assert "/opt/other/bin" not in seen(node, SSH)["PATH"]
    assert "/opt/other/bin" in seen(node, RAY)["PATH"]
    for shell in (SSH, RAY):
        found = seen(node, shell)
        assert found["PATH"].startswith(f"{TREE / '.venv' / 'bin'}:"), (
            "others have put themselves before our Python"
        )
        check(found, shared)


def check(found: dict[str, str], shared: Path) -> None:
    assert found["RAY_ADDRESS"] == "auto"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_JOB_STOP_WAIT_TIME_S"] == "240"
    assert found["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert found["CUTSLOTS_HOME"] == str(shared / "home")
    assert found["CUTSLOTS_DATA"] == str(shared / "data")
    assert found["CUTSLOTS_CLUSTER"] == "GPU=2,CPU=16"
    assert not found["CUTSLOTS_FACTORS"].startswith(str(shared)), "factors belong to the node"


def test_once_more_changes_nothing_but_a_new_head_does(node):
    home = Path(node["HOME"])
    assert run("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    files = [home / ".bashrc", home / ".profile", home / ".cutslots.env"]
    before = [file.read_text() for file in files]
    old = seen(node, RAY)
    assert run("environment.sh", node, RAY_HEAD_IP="127.0.0.1").returncode == 0
    assert [file.read_text() for file in files] == before
    # What the old head has left in the environment does not stay.
    assert run("environment.sh", old, RAY_HEAD_IP="127.0.0.9").returncode == 0
    assert seen(node, RAY)["MLFLOW_TRACKING_URI"] == "http://127.0.0.9:5000"
    assert GUARDED.strip() in files[0].read_text()
    assert not [name for name in os.listdir(home) if name.startswith(".cutslots.env.")]


def test_the_head_of_own_machines_is_what_the_cluster_file_says(node):
    config = {"provider": {"type": "local", "head_ip": "localhost"}}
    (Path(node["HOME"]) / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    assert run("environment.sh", node).returncode == 0
    assert seen(node, RAY)["CUTSLOTS_HEAD"] == "127.0.0.1"


def test_a_ready_environment_is_taken(node):
    done = run("setup.sh", node)
    assert done.returncode == 0, done.stderr
    assert (Path(node["HOME"]).parent / "shared" / "home").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "CUTSLOTS_FILE_SYSTEM=fs-EDIT-ME\nCUTSLOTS_SHARED=/mnt/cutslots\nCUTSLOTS_CLUSTER=GPU=8,CPU=64\n",
            "in place of EDIT-ME",
        ),
        ("CUTSLOTS_SHARED=/nfs/EDIT-ME\nCUTSLOTS_CLUSTER=GPU=8,CPU=64\n", "in place of EDIT-ME"),
        (
            "CUTSLOTS_FILE_SYSTEM=efs\nCUTSLOTS_SHARED=/mnt/cutslots\nCUTSLOTS_CLUSTER=CPU=1\n",
            "begins with fs-",
        ),
        ("CUTSLOTS_SHARED=/tmp\n", "CUTSLOTS_CLUSTER is not set"),
        ("CUTSLOTS_CLUSTER=CPU=1\n", "CUTSLOTS_SHARED is not set"),
        (
            "CUTSLOTS_SHARED=/no/such/folder\nCUTSLOTS_CLUSTER=CPU=1\nCUTSLOTS_INSTALL=no\n",
            "mount the folder that all nodes share",
        ),
        (
            "CUTSLOTS_SHARED=/proc\nCUTSLOTS_CLUSTER=CPU=1\nCUTSLOTS_INSTALL=no\n",
            "cannot be written",
        ),
    ],
)
def test_impossible_settings_are_refused(node, settings, message):
    set_site(node, settings)
    done = run("setup.sh", node)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_environment_without_the_package_is_refused(node, tmp_path):
    subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    settings = (
        f"CUTSLOTS_SHARED={tmp_path / 'shared'}\nCUTSLOTS_CLUSTER=CPU=1\nCUTSLOTS_INSTALL=no\n"
    )
    set_site(node, f"{settings}CUTSLOTS_VENV={tmp_path / 'empty'}\n")
    done = run("setup.sh", node)
    assert done.returncode == 1
    assert "does not have cutslots and ray" in done.stderr
