"""The thread that delivers a journal to a tracking store, and its record of how far it got."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutslots.files import lock
from cutslots.tracking.client import (
    METRICS_PER_CALL,
    OutageError,
    RefusedError,
    Store,
    without_password,
)
from cutslots.tracking.journal import FILE, opening, read

Say = Callable[[str], None]

STATE, LOCK = "mlflow.json", "mlflow.lock"
REFUSALS_SHOWN = 10


@dataclass
class Delivered:
    """`run_dir/mlflow.json`: what the store has. Without it, everything is delivered again."""

    tracking_uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    position: int = 0  # bytes of the journal
    refused: int = 0  # events that the store rejected permanently

    @classmethod
    def load(cls, run_dir: Path, uri: str | None = None) -> "Delivered":
        """The content of the file; position 0 if there is none, or it is about another store."""
        try:
            state = cls(**json.loads((run_dir / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(uri or "")
        return state if uri in (None, state.tracking_uri) else cls(uri or "")


class Uploader(threading.Thread):
    """Delivers the lines of a journal in order until `finish`.

    Args:
        pause: seconds between attempts at an absent store, first and longest.
        gather: seconds for which lines are collected into one call.
        patient: False leaves the lines to a process that is already delivering this journal, and
            gives up on an absent store after two attempts.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        say: Say,
        pause: tuple[float, float],
        gather: float,
        patient: bool = True,
    ) -> None:
        super().__init__(name=f"run log of {run_dir.name}", daemon=True)
        self.run_dir, self._say, self._pause = run_dir, say, pause
        self._gather, self._patient = gather, patient
        self.state = Delivered.load(run_dir, without_password(uri))
        self.left_to_another = False  # another process delivers this journal
        self._store = Store(uri)
        self._new, self._finishing, self._abandoned = (threading.Event() for _ in range(3))
        self._connected = self._waiting = False

    def wake(self) -> None:
        """Signal a new line."""
        self._new.set()

    def finish(self, timeout: float) -> None:
        """Deliver what is left, for at most `timeout` seconds."""
        self._finishing.set()
        self._new.set()
        self.join(timeout)
        self._abandoned.set()

    def pending(self) -> int:
        """Complete lines of the journal that the store neither has nor has rejected."""
        # From the file: it is right while another process delivers, too.
        position = Delivered.load(self.run_dir, self.state.tracking_uri).position
        return sum(1 for _ in read(self.run_dir / FILE, position))

    def say(self, text: str) -> None:
        try:
            self._say(text)
        except Exception:  # a closed terminal must not end the delivery
            return

    def run(self) -> None:
        while not self._abandoned.is_set():
            with lock(self.run_dir / LOCK) as held:
                if held:
                    self._waiting = False
                    self.state = Delivered.load(self.run_dir, self.state.tracking_uri)
                    self._deliver()
                    return
            busy = f"another process is delivering {self.run_dir}"
            if not self._patient:
                self.left_to_another = True
                self.say(f"{busy} and will deliver this too")
                return
            if not self._waiting:
                self._waiting = True
                self.say(f"{busy}; this one waits for it, the journal keeps everything")
            self._abandoned.wait(1.0)

    def _deliver(self) -> None:
        failures = 0
        while not self._abandoned.is_set():
            try:
                progress = self._step()
            except Exception as error:  # an outage, another server, a bug: none ends the delivery
                failures += 1
                self._connected = False
                self._wait_out(error, failures)
                continue
            failures = 0
            if self._waiting:
                self._waiting = False
                uri = self.state.tracking_uri
                self.say(f"tracking store {uri} is back; delivering what it missed")
            if not progress:
                if self._finishing.is_set():
                    return
                self._new.wait()
                self._new.clear()
                self._finishing.wait(self._gather)  # one call takes a thousand values

    def _wait_out(self, error: Exception, failures: int) -> None:
        if failures == 1:  # a locked database or a dropped connection takes less than a second
            pause = min(1.0, self._pause[1])
        elif not self._patient:
            self._abandoned.set()  # `close` reports what is left
            return
        else:
            pause = min(self._pause[0] * 2.0 ** min(failures - 2, 30), self._pause[1])
            if not self._waiting:
                self._waiting = True
                cause = str(error) if isinstance(error, OutageError | RefusedError) else repr(error)
                self.say(
                    f"tracking store {self.state.tracking_uri} unreachable: {cause}; "
                    "training continues, the journal keeps everything"
                )
        if self._finishing.wait(pause):
            self._abandoned.wait(min(1.0, self._pause[0]))

    def _step(self) -> bool:
        """Deliver one batch; False if nothing was left."""
        if not self._connected:
            self._connect()
        batch = self._next_batch()
        if not batch:
            return False
        try:
            self._store.send(self._run_id(), [event for event, _ in batch], self.run_dir)
        except RefusedError:
            self._send_one_by_one(batch)
        self._save(batch[-1][1])
        return True

    def _run_id(self) -> str:
        assert self.state.run_id is not None
        return self.state.run_id

    def _connect(self) -> None:
        state = self.state
        if state.run_id is None or not self._store.has_run(state.run_id):
            opened = opening(self.run_dir)
            if opened is None:
                raise OutageError(f"{self.run_dir / FILE} has no entry that names the run")
            state.experiment_id, state.run_id = self._store.find_or_create(opened)
            state.refused = 0
            self._save(0)  # a store that lost the run gets all of it again
        self._connected = True

    def _next_batch(self) -> list[tuple[dict[str, Any], int]]:
        """The next event, or as many metrics events as fit into one call, with their ends."""
        batch, points = [], 0
        for event, end in read(self.run_dir / FILE, self.state.position):
            if event is None:
                if batch:
                    break
                self._refuse("a line", "it is not JSON (cut off by a full disk?)")
                self._save(end)
                continue
            points += len(event["values"]) if event["kind"] == "metrics" else METRICS_PER_CALL
            if batch and points > METRICS_PER_CALL:
                break
            batch.append((event, end))
        return batch

    def _send_one_by_one(self, batch: list[tuple[dict[str, Any], int]]) -> None:
        """Deliver a rejected batch value by value, and skip the values that are rejected alone."""
        if not self._store.has_run(self._run_id()):
            raise OutageError(f"it no longer has run {self.state.run_id}")
        for event, end in batch:
            values = event.get("values") or {}
            parts = [{**event, "values": {name: values[name]}} for name in values]
            for part in parts or [event]:
                try:
                    self._store.send(self._run_id(), [part], self.run_dir)
                except RefusedError as refused:
                    names = [*part.get("values", ()), *map(event.get, ("name", "path", "status"))]
                    name = next(filter(None, names), "")
                    self._refuse(f"{event['kind']} {name!r}", str(refused))
            self._save(end)

    def _refuse(self, what: str, cause: str) -> None:
        self.state.refused += 1
        if self.state.refused > REFUSALS_SHOWN:
            return
        more = " (further ones are only counted)" if self.state.refused == REFUSALS_SHOWN else ""
        self.say(
            f"MLflow rejected {what} permanently ({cause}); it is kept in the journal only{more}"
        )

    def _save(self, position: int) -> None:
        self.state.position = position
        # Not synced to the disk as `files.atomic` does, which every second would stall the
        # training's own writes: a position lost with the power costs a repeated delivery.
        temporary = self.run_dir / f".{STATE}.tmp"
        temporary.write_text(json.dumps(asdict(self.state), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.run_dir / STATE)
