"""Exit status and words of a command, and a reader that leaves early."""

import errno
import os
import subprocess
import sys

import pytest

from cutslots.errors import InputError, NonFiniteLossError
from cutslots.exit_status import exit_status


def failing(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_what_a_command_returns():
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("k is 0; give at least 1."), 2, "error: k is 0; give at least 1.\n"),
        (NonFiniteLossError("the loss is nan"), 2, "error: the loss is nan\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "here"),
            2,
            "error: No space left on device: here. Make room",
        ),
        (
            RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: of 9 bytes\nmore"),
            2,
            "error: not enough memory: [x]",
        ),
        (MemoryError(), 2, "error: not enough memory. A smaller batch"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_is_said_of_an_error(error, status, said, capsys):
    assert exit_status(failing(error), interrupted="stopped") == status
    assert capsys.readouterr().err.startswith(said)


def test_without_standard_output():
    code = "from cutslots.exit_status import exit_status; raise SystemExit(exit_status(lambda: print('lost')))"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}" >&-'], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_faults_of_the_program_keep_their_traceback():
    for error in (KeyError("lost"), BrokenPipeError(errno.EPIPE, "a server is gone")):
        with pytest.raises(type(error)):
            exit_status(failing(error))
    with pytest.raises(InputError):
        exit_status(failing(InputError("x")), debug=True)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["when it flushes", "while it prints"])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    code = "from cutslots.exit_status import exit_status; raise SystemExit(exit_status(lambda: print('line')))"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert said == b""
    assert process.returncode == 141
