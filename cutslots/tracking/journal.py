"""The journal of a run: one JSON object a line, appended and never changed.

Every line carries `time` (milliseconds since 1970) and `kind`, and by kind:

    open      log_id, experiment, run_name, parent_run_id, tracking_uri, run_dir, user;
              one a training process, and the first names the run
    params    values {name: text}
    tags      values {name: text}
    metrics   step, values {name: number, or "NaN", "Infinity", "-Infinity"}
    dataset   name, digest, source, schema, profile, context
    artifact  path (relative to the run's folder when inside it), folder
    status    status
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "journal.jsonl"


def number(value: Any) -> float | str:
    """A metric's value as strict JSON can hold it; `float()` turns the three texts back into numbers."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class Journal:
    """The open journal of a run.

    A line is one write to a file opened for appending, so that lines of two processes do not mix.

    Args:
        shared: another process may be writing. A half line at the end may then be its next one, on its way: it is left alone and
            the first line of this process starts afresh. Otherwise a crash has left it, and it is cut off.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._torn = False
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if shared:
            end = os.fstat(self._file).st_size
            self._torn = end > 0 and os.pread(self._file, 1, end - 1) != b"\n"
        else:
            self._cut_half_line()

    def _cut_half_line(self) -> None:
        end = os.fstat(self._file).st_size
        whole, block = end, 65536
        while whole > 0:
            start = max(0, whole - block)
            newline = os.pread(self._file, whole - start, start).rfind(b"\n")
            whole = start if newline < 0 else start + newline + 1
            if newline >= 0:
                break
        if whole < end:
            os.ftruncate(self._file, whole)

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one line.

        It is with the operating system when this returns: no death of the process, by whatever signal, can take it.

        Raises:
            OSError: the disk refuses it.
        """
        event = {"time": time.time_ns() // 1_000_000, "kind": kind, **fields}
        text = json.dumps(
            event, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=str
        )
        line = text.encode(errors="replace") + b"\n"
        with self._lock:
            # After a full disk took only a part, the next line starts afresh; readers skip the torn one.
            line = b"\n" + line if self._torn else line
            self._torn = True
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written to {self.path}")
            self._torn = False

    def close(self) -> None:
        with self._lock:
            os.close(self._file)


def read(path: Path, position: int = 0) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Each whole line from byte `position` on: its event (None when it is not JSON) and the position after it."""
    with open(path, "rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            if line == b"\n":  # a line that started afresh where nothing was torn
                continue
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            yield (event if isinstance(event, dict) and "kind" in event else None), position


def events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What a run has logged, from its journal alone, in order; the fields are listed at the top of this file."""
    return (event for event, _ in read(Path(run_dir) / FILE) if event is not None)


def opening(run_dir: Path) -> dict[str, Any] | None:
    """The event that names the run, None when the journal has none."""
    return next((event for event in events(run_dir) if event["kind"] == "open"), None)


WINDOW = 65536


@dataclass
class Latest:
    """What the end of a journal says; what was logged longer ago is not in it.

    Attributes:
        metrics: the newest value of each, and its step.
        time: of the last line, seconds since 1970, by the clock of the machine that wrote it.
        status: how the run ended; None while it goes on, also when it ended once and was opened again.
        tags: the newest value of each.
    """

    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    time: float = 0.0
    status: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def latest(run_dir: Path) -> Latest | None:
    """What the last 64 KB of a run's journal say; None while it has no whole line in them.

    A line that is half written, or no JSON, is passed over.
    """
    try:
        with open(Path(run_dir) / FILE, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - WINDOW)
            file.seek(start)
            block = file.read()
    except FileNotFoundError:
        return None
    # The first piece began before the window, the last has not ended.
    lines = block.split(b"\n")[1 if start else 0 : -1]
    return _state(_parsed([line for line in lines if line]))


def _parsed(lines: list[bytes]) -> list[Any]:
    try:
        return json.loads(
            b"[" + b",".join(lines) + b"]"
        )  # one call for all takes a third of the time
    except ValueError:
        return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _state(events: Iterable[Any]) -> Latest | None:
    found = None
    for event in events:
        if not isinstance(event, dict) or "kind" not in event or "time" not in event:
            continue
        found = found or Latest()
        found.time = event["time"] / 1000
        match event["kind"]:
            case "metrics":
                step = event["step"]
                found.metrics.update(
                    {name: (float(value), step) for name, value in event["values"].items()}
                )
            case "tags":
                found.tags.update(event["values"])
            case "status":
                found.status = event["status"]
            case "open":
                found.status = None
    return found
