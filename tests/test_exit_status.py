"""Exit status and messages of commands, and closed pipes."""

import errno
import os
import subprocess
import sys

import pytest

from cutslots.errors import InputError, NonFiniteLossError
from cutslots.exit_status import exit_status

PROGRAM = (
    "from cutslots.exit_status import exit_status; "
    "raise SystemExit(exit_status(lambda: print('{}')))"
)


def failing(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_status_of_work():
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 3) == 3


ENOSPC = OSError(errno.ENOSPC, "No space left on device", "here")
ALLOCATION = RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: of 9 bytes\nmore")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("k is 0; give at least 1."), 2, "error: k is 0; give at least 1.\n"),
        (NonFiniteLossError("the loss is nan"), 2, "error: the loss is nan\n"),
        (ENOSPC, 2, "error: No space left on device: here."),
        (ALLOCATION, 2, "error: not enough memory: [x]"),
        (MemoryError(), 2, "error: not enough memory."),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_status_and_message_of_errors(error, status, message, capsys):
    assert exit_status(failing(error), interrupted="stopped") == status
    assert capsys.readouterr().err.startswith(message)


def test_faults_of_cutslots_raise():
    with pytest.raises(KeyError):
        exit_status(failing(KeyError("lost")))
    with pytest.raises(InputError):
        exit_status(failing(InputError("x")), debug=True)
    code = PROGRAM.replace("print('{}')", "(_ for _ in ()).throw(BrokenPipeError('a server'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"BrokenPipeError" in done.stderr, "another pipe than standard output"


def test_without_standard_output():
    command = ["sh", "-c", f'"{sys.executable}" -c "{PROGRAM.format("lost")}" >&-']
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["when it flushes", "while it prints"])
def test_closed_pipe_is_not_an_error(unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format("line")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (141, b"")
