"""What is logged of the machine and of the code."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from stores import local

from cutslots.files import git_commit
from cutslots.tracking import RunLog, SystemMetrics


def test_system_metrics(home: Path, opened: Callable[..., RunLog]) -> None:
    with opened() as log, SystemMetrics(log, interval=0.1):
        time.sleep(0.5)
    metrics = local(home).get_run(log.run_id).data.metrics
    assert metrics["system/process_rss_megabytes"] > 10
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert {"system/system_memory_usage_megabytes", "system/disk_available_megabytes"} <= set(
        metrics
    )


def test_git_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
    ]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "untracked").write_text("1")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
