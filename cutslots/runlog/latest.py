"""The present state of a run from the end of its journal: for views that look every second."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutslots.runlog.journal import FILE

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
