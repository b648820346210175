"""The thread that brings a journal's lines to a tracking store, and its note of how far it came."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutslots.tracking.client import (
    METRICS_PER_CALL,
    OutageError,
    RefusedError,
    Store,
    locked,
    without_password,
)
from cutslots.tracking.journal import FILE, opening, read

Say = Callable[[str], None]

STATE = "mlflow.json"
REFUSALS_SAID = 10


@dataclass
class Delivered:
    """`run_dir/mlflow.json`: how far a tracking store has the journal; when lost, everything is delivered again."""

    tracking_uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    position: int = 0  # bytes of the journal
    refused: int = 0  # events the store will never take

    @classmethod
    def noted(cls, run_dir: Path) -> "Delivered | None":
        """What the file says, whatever store that is; None when it says nothing."""
        try:
            return cls(**json.loads((run_dir / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def load(cls, run_dir: Path, uri: str) -> "Delivered":
        """What the store at `uri` has; another store has nothing of this journal yet."""
        found = cls.noted(run_dir)
        return found if found and found.tracking_uri == uri else cls(uri)


class Delivery(threading.Thread):
    """Delivers a journal's lines in order until told to finish.

    One that is not `patient` leaves its lines to the process that is delivering already, and an absent store to a later `sync`.
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
        self.run_dir, self.uri, self._say = run_dir, uri, say
        self.state = Delivered.load(run_dir, without_password(uri))
        self._store = Store(uri)
        self._first_pause, self._longest_pause = pause
        self._gather, self._patient = gather, patient
        self.left_to_another = False
        self._new, self._finishing, self._abandoned = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._connected = self._out = False

    def wake(self) -> None:
        self._new.set()

    def finish(self, timeout: float) -> None:
        """Deliver what is left, for at most `timeout` seconds."""
        self._finishing.set()
        self._new.set()
        self.join(timeout)
        self._abandoned.set()

    def pending(self) -> int:
        """Whole lines of the journal that the store neither has nor has refused."""
        # From the file: while another process delivers this run, its position is the true one.
        known = Delivered.load(self.run_dir, self.state.tracking_uri)
        return sum(1 for _ in read(self.run_dir / FILE, known.position))

    def say(self, text: str) -> None:
        try:
            self._say(text)
        except Exception:  # a closed terminal is no reason to stop delivering
            return

    def run(self) -> None:
        # A second process on the same folder (a sync beside a living training) waits for its turn.
        while not self._abandoned.is_set():
            with locked(self.run_dir / "mlflow.lock") as mine:
                if mine:
                    self._out = False
                    self.state = Delivered.load(self.run_dir, self.state.tracking_uri)
                    self._deliver()
                    return
            if not self._patient:
                self.left_to_another = True
                self.say(f"another process is delivering {self.run_dir}, and will deliver this too")
                return
            if not self._out:
                self._out = True
                self.say(
                    f"another process is delivering {self.run_dir}; this one waits for it, the journal keeps everything"
                )
            self._abandoned.wait(1.0)

    def _deliver(self) -> None:
        failures = 0
        while not self._abandoned.is_set():
            try:
                busy = self._step()
                failures = 0
            except (
                Exception
            ) as error:  # an outage, or a fault of ours: neither may end the delivery
                failures += 1
                self._connected = False
                self._wait_out(error, failures)
                continue
            if self._out and self._connected:
                self._out = False
                self.say(
                    f"tracking store {self.state.tracking_uri} is back; what it missed is being delivered"
                )
            if not busy:
                if self._finishing.is_set():
                    return
                self._new.wait()
                self._new.clear()
                self._finishing.wait(
                    self._gather
                )  # let lines come together: one call takes a thousand points

    def _wait_out(self, error: Exception, failures: int) -> None:
        # A locked database or a dropped connection is over within a second; what lasts is said, once.
        if failures > 1 and not self._patient:
            self._abandoned.set()  # `close` says in one line what is left
            return
        if failures > 1 and not self._out:
            self._out = True
            uri = self.state.tracking_uri
            text = str(error) if isinstance(error, OutageError) else repr(error)
            self.say(
                f"tracking store {uri} unreachable: {text}; training goes on, the journal keeps everything"
            )
        pause = (
            1.0
            if failures == 1
            else min(self._first_pause * 2.0 ** min(failures - 2, 30), self._longest_pause)
        )
        if not self._finishing.wait(min(pause, self._longest_pause)):
            return
        self._abandoned.wait(min(1.0, self._first_pause))

    def _step(self) -> bool:
        """Deliver one call's worth; False when nothing was left."""
        try:
            if not self._connected:
                self._find_run()
        except (
            RefusedError
        ) as refused:  # not an MLflow server, say: no ground for skipping an event
            raise OutageError(str(refused)) from refused
        batch = self._next()
        if not batch:
            return False
        run_id = self.state.run_id
        assert run_id is not None
        try:
            self._store.send(run_id, [event for event, _ in batch], self.run_dir)
            self._save(batch[-1][1])
        except RefusedError:
            self._one_by_one(batch)
        return True

    def _find_run(self) -> None:
        state = self.state
        if state.run_id is None or not self._store.has_run(state.run_id):
            opened = opening(self.run_dir)
            if opened is None:
                raise OutageError(f"{self.run_dir / FILE} does not say which run it is of")
            state.experiment_id, state.run_id = self._store.find_or_create(opened)
            state.position = state.refused = 0  # a store that lost the run gets all of it again
            self._save(0)
        self._connected = True

    def _next(self) -> list[tuple[dict[str, Any], int]]:
        """The next line, and when it holds metrics the lines of metrics after it, up to one call's worth."""
        batch, points = [], 0
        for event, end in read(self.run_dir / FILE, self.state.position):
            if event is None:
                if batch:
                    break
                self._refuse("a line", "it is not JSON (torn by a full disk?)")
                self._save(end)
                continue
            points += len(event["values"]) if event["kind"] == "metrics" else METRICS_PER_CALL
            if batch and points > METRICS_PER_CALL:
                break
            batch.append((event, end))
        return batch

    def _one_by_one(self, batch: list[tuple[dict[str, Any], int]]) -> None:
        """Deliver a refused batch in its smallest parts, and skip those that are refused alone."""
        run_id = self.state.run_id
        assert run_id is not None
        try:
            there = self._store.has_run(run_id)
        except RefusedError as refused:
            raise OutageError(str(refused)) from refused
        if not there:
            raise OutageError(f"run {run_id} is gone from it")
        for event, end in batch:
            for part in _parts(event):
                try:
                    self._store.send(run_id, [part], self.run_dir)
                except RefusedError as refused:
                    self._refuse(_named(part), str(refused))
            self._save(end)

    def _refuse(self, what: str, why: str) -> None:
        self.state.refused += 1
        if self.state.refused <= REFUSALS_SAID:
            more = (
                " (more of the kind is only counted)" if self.state.refused == REFUSALS_SAID else ""
            )
            self.say(
                f"tracking store refused {what} for good, it stays in the journal only: {why}{more}"
            )

    def _save(self, position: int) -> None:
        self.state.position = position
        # Renamed into place, not synced to the disk as `files.atomic` does: a position lost with the power costs a
        # repeated delivery, and a sync every second stalls the training's own writes.
        temporary = self.run_dir / ".mlflow.json.tmp"
        temporary.write_text(json.dumps(asdict(self.state), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.run_dir / STATE)


def _parts(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "values" not in event:
        yield event
        return
    for name, value in event["values"].items():
        yield {**event, "values": {name: value}}


def _named(event: dict[str, Any]) -> str:
    name = (
        event.get("name")
        or event.get("path")
        or event.get("status")
        or next(iter(event.get("values", {})), "")
    )
    return f"{event['kind']} {name!r}"
