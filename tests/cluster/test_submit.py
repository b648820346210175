"""The whole way over ssh: `ray up`, `ray submit`, MLflow, `ray down`."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

TREE = Path(__file__).parents[2]
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [
    name for name in ("sshd", "ssh", "ssh-keygen", "rsync") if not shutil.which(name, path=SEARCHED)
]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install openssh-server rsync"
)
def test_ray_submit_over_ssh():
    if any(process.name() == "raylet" for process in psutil.process_iter()):
        pytest.skip("another Ray is running on this machine")
    command = ["bash", TREE / "tests" / "cluster" / "submit.sh", "sweeps/demo.py", "--smoke"]
    done = subprocess.run(
        command, cwd=TREE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "nodes: 127.0.0.2" in done.stdout
    assert "Sweep demo-smoke: scenes" in done.stdout
    assert (
        done.stdout.count("'FINISHED': 4") == 2
    )  # three trials and the sweep; on the server, and in its safe copy
    assert not list(Path("/tmp").glob("cutslots-submit-*"))
