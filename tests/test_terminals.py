"""Commands in a terminal: bars fit, Ctrl-C ends a command cleanly."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutslots.data import prepare, sources

SWEEP = Path(__file__).parents[1] / "sweeps" / "demo.py"
ROWS, PATIENCE = 40, 240.0
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
TINY = [
    *("--set", "image_size=16", "--set", "encoder.channels=4", "--set", "decoder.channels=4"),
    *("--set", "batch_size=4", "--set", "log_every=1", "--set", "train.eval_images=4"),
]


class Terminal:
    """A pseudo-terminal of so many columns, with its own home folder."""

    def __init__(self, home: Path, columns: int) -> None:
        self.home, self.columns, self.output = home, columns, ""
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self.modes = termios.tcgetattr(self.theirs)

    def run(self, *command: str, interrupt: Callable[[], bool] | None = None) -> int:
        """Run a command to its end, with one Ctrl-C when `interrupt` is true; its exit status."""
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        env |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "CUTSLOTS_HOME": str(self.home)}
        process = subprocess.Popen(
            [sys.executable, *command],
            **dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs),
            cwd=self.home,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C reaches its group
        )
        end, received = time.monotonic() + PATIENCE, b""
        try:
            while process.poll() is None or select.select([self.ours], [], [], 0.2)[0]:
                assert time.monotonic() < end, f"no end after {PATIENCE:.0f} s:\n{self.output}"
                if select.select([self.ours], [], [], 0.1)[0]:
                    received += os.read(self.ours, 65536)
                    self.output = received.decode(errors="replace")
                if interrupt and interrupt():
                    interrupt = None
                    os.write(self.ours, b"\x03")
        finally:
            process.kill()
        return process.wait()

    def check(self, status: int, expected: int, bars: bool) -> None:
        """Assert what holds after every command; `bars`: whether it draws some."""
        assert status == expected, self.output
        assert "Traceback" not in self.output
        assert termios.tcgetattr(self.theirs) == self.modes
        assert self.output.rfind(SHOW_CURSOR) >= self.output.rfind(HIDE_CURSOR)
        printed = re.sub(r"\x1b\[\??[\d;]*[A-Za-z]", "", self.output)
        lines = [line for line in re.split(r"[\r\n]", printed) if "━" in line]
        assert [line for line in lines if len(line) > self.columns] == []
        if bars:
            assert HIDE_CURSOR in self.output
            assert any(re.search(r"\d", line) for line in lines), self.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a dataset, an image and a run."""
    folder = tmp_path_factory.mktemp("terminals")
    options = sources.load("scenes").Options(count=40, size=32)
    prepare("scenes", None, folder / "data" / "plain", options)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "black.png")
    terminal = Terminal(folder, 100)
    command = ["train", "scenes", "--data", "plain", *TINY, "--steps", "2", "--name", "run"]
    assert terminal.run("-m", "cutslots", *command) == 0, terminal.output
    return folder


COMMANDS = {
    "train": ["scenes", "--data", "plain", *TINY, "--steps", "20", "--name", "narrow"],
    "prepare": ["scenes", "new", "--count", "40", "--size", "16", "--workers", "1"],
    "evaluate": ["run", "--data", "plain"],
    "predict": ["run", "black.png", "--out", "predicted"],
    "check": ["plain"],
    "bench": ["batches", "--count", "320", "--epochs", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_in_a_narrow_terminal(name: str, home: Path) -> None:
    terminal = Terminal(home, 80)
    status = terminal.run("-m", "cutslots", name, *COMMANDS[name])
    terminal.check(status, 0, bars=name not in ("check", "bench"))


@pytest.mark.parametrize("module", ["cutslots.cli", "cutslots.cli.common"])
def test_ctrl_c_during_imports(module: str) -> None:
    code = f"""
import builtins, sys
real = builtins.__import__
def interrupt(name, *args, **kwargs):
    if name == {module!r}:
        raise KeyboardInterrupt
    return real(name, *args, **kwargs)
builtins.__import__ = interrupt
from cutslots.__main__ import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


def test_ctrl_c_in_training(home: Path) -> None:
    terminal, run = Terminal(home, 80), home / "runs" / "stopped"
    command = ["-m", "cutslots", "train", "scenes", "--data", "plain", *TINY, "--steps", "100000"]
    command += ["--set", "checkpoint_every=5", "--name", run.name]
    status = terminal.run(*command, interrupt=lambda: any(run.glob("checkpoints/*.pt")))
    terminal.check(status, 130, bars=True)
    assert "--resume" in terminal.output


def test_ctrl_c_in_preparing(home: Path) -> None:
    command = ["-m", "cutslots", "prepare", "scenes", "stopped", "--count", "4000", "--size", "16"]
    terminal, manifest = Terminal(home, 80), home / "stopped" / "manifest.json"
    status = terminal.run(*command, interrupt=lambda: "/3200" in terminal.output)
    terminal.check(status, 130, bars=True)
    assert "again" in terminal.output
    assert not manifest.exists()
    assert terminal.run(*command) == 0
    assert manifest.exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_in_a_narrow_terminal_and_its_resume_in_a_wide_one(home: Path) -> None:
    terminal, before = Terminal(home, 80), set(home.glob("runs/*/*/*.pt"))
    sweep = [str(SWEEP), "--smoke", "--data", "data/plain"]
    status = terminal.run(*sweep, interrupt=lambda: before < set(home.glob("runs/*/*/*.pt")))
    terminal.check(status, 130, bars=False)
    assert HIDE_CURSOR in terminal.output, "a live table"
    assert "--resume" in terminal.output
    wide = Terminal(home, 200)
    wide.check(wide.run(*sweep, "--resume"), 0, bars=False)
