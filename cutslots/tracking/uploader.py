"""The thread that delivers a journal to a tracking store, and its record of how far it got."""

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutslots.files import lock
from cutslots.tracking.client import OutageError, RefusedError, Store, without_password
from cutslots.tracking.journal import FILE, opening, read

Say = Callable[[str], None]

STATE, LOCK = "mlflow.json", "mlflow.lock"
BATCH, REFUSALS_SHOWN = 500, 10
PAUSES = 5.0, 60.0  # seconds between attempts at an absent store, first and longest
GATHER_SECONDS = 1.0  # between looks at the journal: many lines go into one call


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
    """Delivers the lines of a journal in order until `finish`."""

    def __init__(self, run_dir: Path, uri: str, say: Say) -> None:
        super().__init__(name=f"run log of {run_dir.name}", daemon=True)
        self.run_dir, self._say, self._waiting = run_dir, say, False
        self.state = Delivered.load(run_dir, without_password(uri))
        self._store = Store(uri)
        self._finishing, self._abandoned = threading.Event(), threading.Event()

    def finish(self, timeout: float) -> int:
        """Deliver what is left, for at most `timeout` seconds; report and count what remains."""
        self._finishing.set()
        self.join(timeout)
        self._abandoned.set()
        rest = self.pending()
        if rest:
            self.say(
                f"{rest} events of this run are not in {self.state.tracking_uri}, but in "
                f"{self.run_dir / FILE}. Deliver them with: cutslots sync {self.run_dir}"
            )
        if self.state.refused:
            self.say(f"MLflow rejected {self.state.refused} events; they are in the journal only")
        return rest

    def pending(self) -> int:
        """Complete lines of the journal that the store neither has nor has rejected."""
        # From the file: it is right while another process delivers, too.
        position = Delivered.load(self.run_dir, self.state.tracking_uri).position
        return sum(1 for _ in read(self.run_dir / FILE, position))

    def say(self, text: str) -> None:
        with suppress(Exception):  # a closed terminal must not end the delivery
            self._say(text)

    def _say_once(self, text: str) -> None:
        """Say why the delivery waits."""
        if not self._waiting:
            self._waiting = True
            self.say(text)

    def run(self) -> None:
        while not self._abandoned.is_set():
            with lock(self.run_dir / LOCK) as held:
                if held:
                    self._waiting = False
                    self.state = Delivered.load(self.run_dir, self.state.tracking_uri)
                    self._deliver()
                    return
            self._say_once(f"another process is delivering {self.run_dir}; this one waits for it")
            self._abandoned.wait(1.0)

    def _deliver(self) -> None:
        failures = 0
        while not self._abandoned.is_set():
            try:
                self._find_run()
                while not self._abandoned.is_set():
                    batch = self._next_batch()
                    if batch:
                        self._send(batch)
                    failures = 0
                    if self._waiting:
                        self._waiting = False
                        uri = self.state.tracking_uri
                        self.say(f"tracking store {uri} is back; delivering what it missed")
                    if not batch:
                        if self._finishing.is_set():
                            return
                        self._finishing.wait(GATHER_SECONDS)
            except Exception as error:  # an outage, another server, a bug: none ends the delivery
                failures += 1
                self._wait_out(error, failures)

    def _wait_out(self, error: Exception, failures: int) -> None:
        first, longest = PAUSES
        if failures == 1:  # a locked database or a dropped connection takes less than a second
            pause = min(1.0, longest)
        else:
            pause = min(first * 2.0 ** min(failures - 2, 30), longest)
            cause = str(error) if isinstance(error, OutageError) else f"{error!r}."
            self._say_once(f"{cause} Training continues; the journal keeps everything.")
        if self._finishing.wait(pause):
            self._abandoned.wait(min(1.0, first))

    def _find_run(self) -> None:
        state = self.state
        if state.run_id is None or not self._store.has_run(state.run_id):
            opened = opening(self.run_dir)
            if opened is None:
                raise OutageError(f"{self.run_dir / FILE} has no entry that names the run.")
            state.experiment_id, state.run_id = self._store.find_or_create(opened)
            state.refused = 0
            self._save(0)  # a store that lost the run gets all of it again

    def _next_batch(self) -> list[tuple[dict[str, Any], int]]:
        """The next event, or the metrics events up to another kind, with their ends."""
        batch = []
        for event, end in read(self.run_dir / FILE, self.state.position):
            kind = event and event["kind"]
            if batch and (kind != "metrics" or len(batch) == BATCH):
                break
            if event is None:
                self._refuse("a line", "it is not JSON (cut off by a full disk?)")
                self._save(end)
                continue
            batch.append((event, end))
            if kind != "metrics":
                break
        return batch

    def _send(self, batch: list[tuple[dict[str, Any], int]]) -> None:
        """Deliver a batch; if it is rejected, value by value, without those rejected alone."""
        run_id = self.state.run_id or ""
        try:
            self._store.send(run_id, [event for event, _ in batch], self.run_dir)
            self._save(batch[-1][1])
            return
        except RefusedError as refused:
            if not self._store.has_run(run_id):
                raise OutageError(f"the tracking store lost run {run_id}.") from refused
        for event, end in batch:
            values = event.get("values") or {}
            for part in [{**event, "values": {name: values[name]}} for name in values] or [event]:
                try:
                    self._store.send(run_id, [part], self.run_dir)
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
