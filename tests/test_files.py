"""Atomic writes, locks, and the commit of a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from cutslots.files import atomic, git_commit, lock, sha256, write_text


def test_atomic_writes_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    assert sha256(path)[:8] == "a7937b64"


def test_lock_excludes_another_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    code = "from pathlib import Path; from cutslots.files import lock\n"
    code += f"with lock(Path({str(path)!r})) as held: print(held)"

    def held_elsewhere() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with lock(path) as held:
        assert held
        assert held_elsewhere() == "False\n"
        with lock(path, timeout=0.1) as again:
            assert not again
    assert held_elsewhere() == "True\n"


def test_git_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one", "--no-gpg-sign"]):
        subprocess.run([*git, *command], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "untracked").write_text("1")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
