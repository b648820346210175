"""The journal of a run: one JSON object per line, appended and never changed.

Every line has `time` (milliseconds since 1970) and `kind`, and by kind:

    open      log_id, experiment, run_name, parent_run_id, tracking_uri, run_dir, user;
              one per training process, and the first one names the run
    params    values {name: text}
    tags      values {name: text}
    metrics   step, values {name: number, or "NaN", "Infinity", "-Infinity"}
    dataset   name, digest, source, schema, profile, context
    artifact  path (relative to the run folder if inside it), folder
    status    status
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "journal.jsonl"
TAIL_BYTES = 65536  # what `latest` reads


def number(value: Any) -> float | str:
    """A metric value in strict JSON; `float()` turns the three texts back into numbers."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """The open journal of a run.

    Each line is one write to a file opened for appending: lines of two processes do not mix.

    Args:
        shared: another process may be writing. An incomplete last line may then be its next one
            and is kept; the first line written here starts on a new line. Otherwise a crash left
            it, and it is removed.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        if self._torn and not shared:
            os.ftruncate(self._file, path.read_bytes().rfind(b"\n") + 1)
            self._torn = False

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one line; it survives the death of this process, by any signal.

        Raises:
            OSError: the disk refuses it.
        """
        event = {"time": now(), "kind": kind, **fields}
        text = json.dumps(
            event, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=str
        )
        with self._lock:
            line = (b"\n" if self._torn else b"") + text.encode(errors="replace") + b"\n"
            # A full disk may take a part of the line. Readers skip it.
            self._torn = True
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written to {self.path}")
            self._torn = False

    def close(self) -> None:
        with self._lock:
            os.close(self._file)


def read(path: Path, position: int = 0) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """The event (None if unreadable) and the end of each complete line from byte `position`."""
    with open(path, "rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            if line != b"\n":
                event = None
                with suppress(ValueError):
                    event = json.loads(line)
                yield (event if isinstance(event, dict) and "kind" in event else None), position


def events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The events of a run in order, with the fields listed at the top of this file."""
    return (event for event, _ in read(Path(run_dir) / FILE) if event is not None)


def opening(run_dir: Path) -> dict[str, Any] | None:
    """The event that names the run; None if the journal has none."""
    return next((event for event in events(run_dir) if event["kind"] == "open"), None)


@dataclass
class Latest:
    """The state of a run according to the last 64 KB of its journal.

    Attributes:
        metrics: newest value and its step, by name.
        time: of the last line, in seconds since 1970, by the clock of the machine that wrote it.
        status: how the run ended; None while it runs, also after it was reopened.
        tags: newest value, by name.
    """

    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    time: float = 0.0
    status: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def latest(run_dir: Path) -> Latest | None:
    """The state of a run, in a few milliseconds; None if its journal has no complete line."""
    path = Path(run_dir) / FILE
    if not path.exists():
        return None
    state = None
    for event, _ in read(path, max(0, path.stat().st_size - TAIL_BYTES)):
        if event is None or "time" not in event:  # the first line of the tail may be cut
            continue
        state = state or Latest()
        state.time = event["time"] / 1000
        if event["kind"] == "metrics":
            for name, value in event["values"].items():
                state.metrics[name] = (float(value), event["step"])
        elif event["kind"] == "tags":
            state.tags |= event["values"]
        elif event["kind"] in ("open", "status"):
            state.status = event.get("status")
    return state
