"""`ray up`, `ray submit`, MLflow and `ray down` over ssh."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

TREE = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [p for p in ("sshd", "ssh", "ssh-keygen", "rsync") if not shutil.which(p, path=PATH)]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"apt-get install openssh-server rsync: no {MISSING}")
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
    # Three trials and the sweep, on the server and in the copy of its database.
    assert done.stdout.count("'FINISHED': 4") == 2
    assert not list(Path("/tmp").glob("cutslots-submit-*"))
