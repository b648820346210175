"""The tracking server of a cluster: MLflow on the head node, with a safe copy of its database on the shared folder.

    python cluster/tracking.py start    # in the background; comes back when the server answers
    python cluster/tracking.py stop     # a last copy, then the end
    python cluster/tracking.py serve    # in the foreground, for containers

SQLite is not safe on network folders, so the database lies on the head's own disk. Every two minutes, and at the end, a
consistent copy goes to the shared folder; a new head starts from it. Artifacts lie on the shared folder and pass through the
server, so that workers need nothing but http. A server that dies is started again.

Environment:
    CUTSLOTS_HOME            the shared folder: tracking/mlflow.db is the copy, artifacts/ the artifacts
    CUTSLOTS_LOCAL           a folder on this machine's own disk for the database and the log
    MLFLOW_TRACKING_URI      http://ADDRESS:PORT, as the workers know it; the server listens on this address only
    CUTSLOTS_TRACKING_NAMES  more host names by which browsers or workers ask for it, with commas between
    CUTSLOTS_TRACKING_BIND   the address to listen on where it differs, 0.0.0.0 in a container behind a service
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import psutil

from cutslots.errors import InputError
from cutslots.files import atomic, home, write_text

COPY_SECONDS = 120
START_SECONDS, STOP_SECONDS = 180, 60  # MLflow needs 20 s to start on a busy machine


@dataclass(frozen=True)
class Places:
    """Where everything lies.

    Attributes:
        url: the server's, without a slash at the end.
        bind: the address it listens on.
        shared, local: the folders of the copy and of the database.
    """

    url: str
    bind: str
    shared: Path
    local: Path

    @classmethod
    def from_environment(cls) -> "Places":
        """Raises: InputError: something is missing in the environment, or is not a URL."""
        missing = [
            name
            for name in ("CUTSLOTS_HOME", "CUTSLOTS_LOCAL", "MLFLOW_TRACKING_URI")
            if not os.environ.get(name)
        ]
        if missing:
            raise InputError(
                f"{', '.join(missing)} not set. Source ~/.cutslots.env first; its lines are explained in {__file__}."
            )
        url = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise InputError(
                f"MLFLOW_TRACKING_URI is {url}; a server can be started for http://ADDRESS:PORT only."
            )
        bind = os.environ.get("CUTSLOTS_TRACKING_BIND") or parts.hostname
        return cls(url, bind, home() / "tracking", Path(os.environ["CUTSLOTS_LOCAL"]) / "tracking")

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port
        return port

    @property
    def database(self) -> Path:
        return self.local / "mlflow.db"

    @property
    def copy(self) -> Path:
        return self.shared / "mlflow.db"

    @property
    def owner(self) -> Path:
        """Which database the copy is of, and the server that is running on it."""
        return self.shared / "owner.json"


def main() -> None:
    actions = {"start": start, "stop": stop, "serve": serve}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    try:
        actions[sys.argv[1]](Places.from_environment())
    except InputError as error:
        sys.exit(f"error: {error}")


def start(places: Places) -> None:
    """Serve in the background, free of this session; nothing happens when it is running already."""
    with locked(places) as free:
        if free:
            _claim(places, dry=True)
    log, child = places.local / "server.log", None
    if free:
        with open(log, "ab") as output:
            command = [sys.executable, __file__, "serve"]
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    deadline = time.monotonic() + START_SECONDS
    while not answers(places.url):
        if (child and child.poll() is not None) or time.monotonic() > deadline:
            tail = (
                "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                if log.exists()
                else ""
            )
            raise InputError(
                f"the tracking server does not answer at {places.url}. The end of {log}:\n{tail}"
            )
        time.sleep(0.5)
    print(f"tracking server: {places.url} (log: {log})")


def stop(places: Places) -> None:
    """End the server of this machine after a last copy; nothing happens when none is running."""
    with locked(places) as free:
        if free:
            _end_leftovers(places)
            print("no tracking server is running here")
            return
    os.kill(int((places.local / "pid").read_text()), signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        with locked(places) as free:
            if free:
                print(f"tracking server stopped; its database is {places.copy}")
                return
        time.sleep(0.2)
    raise InputError(
        f"the tracking server has not ended within {STOP_SECONDS} s; see {places.local / 'server.log'}."
    )


def serve(places: Places) -> None:
    """Serve until SIGTERM or SIGINT."""
    ending = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with locked(places) as free:
        if not free:
            raise InputError(f"a tracking server is already running on {places.local}.")
        write_text(places.local / "pid", str(os.getpid()))
        restore(places)
        _claim(places)
        if places.database.exists():  # a newer MLflow asks for it, and otherwise it changes nothing
            uri = f"sqlite:///{places.database}"
            subprocess.run(
                [sys.executable, "-m", "mlflow", "db", "upgrade", uri],
                cwd=places.local,
                check=False,
            )
        try:
            _keep_serving(places, ending)
        finally:
            _release(places)


@contextmanager
def locked(places: Places) -> Iterator[bool]:
    """Hold the lock of the local folder; yields False when a server holds it."""
    places.local.mkdir(parents=True, exist_ok=True)
    with open(places.local / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def restore(places: Places) -> None:
    """Take the shared copy when this machine's database is another one, or is missing."""
    mine, theirs = places.local / "id", _owner(places).get("id")
    if places.database.exists() and mine.exists() and mine.read_text() == theirs:
        return  # the newest there is: the copy was made from it
    for part in (
        places.database,
        *(places.database.with_name(f"mlflow.db{end}") for end in ("-wal", "-shm")),
    ):
        if part.exists():
            part.rename(part.with_name(f"{part.name}.old"))
    if places.copy.exists():
        shutil.copyfile(places.copy, places.database)
        print(f"database restored from {places.copy}", flush=True)
    write_text(mine, uuid.uuid4().hex)


def copy(places: Places) -> None:
    """A consistent copy of the database to the shared folder, in one rename.

    Raises:
        InputError: another server has taken the folder over.
    """
    if _owner(places).get("id") != (places.local / "id").read_text():
        raise InputError(
            f"{places.shared} now belongs to another tracking server; no more copies from here."
        )
    whole = places.local / "mlflow.db.copy"
    with (
        closing(sqlite3.connect(places.database)) as source,
        closing(sqlite3.connect(whole)) as target,
    ):
        source.backup(target)
    with atomic(places.copy) as temporary:
        shutil.copyfile(whole, temporary)


def answers(url: str) -> bool:
    """Whether a tracking server is there."""
    try:
        # Straight to it: a proxy that the environment names would answer for addresses it cannot reach.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _owner(places: Places) -> dict[str, str]:
    return json.loads(places.owner.read_text()) if places.owner.exists() else {}


def _claim(places: Places, dry: bool = False) -> None:
    """Note that the shared copy is ours from now on; with `dry` only see whether that is possible."""
    url = _owner(places).get("url")
    if url and url != places.url and answers(url):
        raise InputError(
            f"{places.shared} belongs to the tracking server {url}, which is running. "
            f"Use it (MLFLOW_TRACKING_URI={url}), stop it, or take another CUTSLOTS_HOME."
        )
    _end_leftovers(places)
    try:
        with socket.socket(socket.AF_INET6 if ":" in places.bind else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((places.bind, places.port))
    except OSError as error:
        raise InputError(
            f"cannot listen on {places.bind}, port {places.port}: {error.strerror or error}."
        ) from None
    if not dry:
        write_text(
            places.owner, json.dumps({"id": (places.local / "id").read_text(), "url": places.url})
        )


def _end_leftovers(places: Places) -> None:
    """End the MLflow of a server that was killed before it could; the caller holds the lock."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(places.local.resolve()) and "mlflow" in " ".join(
                process.cmdline()
            ):
                process.kill()
                process.wait(STOP_SECONDS)


def _release(places: Places) -> None:
    owner = _owner(places)
    if owner.get("id") == (places.local / "id").read_text():
        write_text(places.owner, json.dumps({"id": owner["id"]}))


def _keep_serving(places: Places, ending: Event) -> None:
    process, copied, seen = None, time.monotonic(), None
    with _watching(places) as changes:
        try:
            while not ending.wait(1):
                if process is None or process.poll() is not None:
                    if process:
                        print(
                            f"MLflow ended with {process.returncode}; it is started again",
                            flush=True,
                        )
                        _end(process)
                        ending.wait(5)
                    process = _launch(places)
                if time.monotonic() - copied > COPY_SECONDS:
                    copied, now = time.monotonic(), changes()
                    if now != seen:
                        _try_copy(places)
                        seen = now
        finally:
            if process:
                _end(process)
            if places.database.exists():
                copy(places)


def _try_copy(places: Places) -> None:
    try:
        copy(places)
    except (OSError, sqlite3.Error) as error:  # the shared folder may be back in two minutes
        print(f"no copy to {places.copy}: {error}", flush=True)


@contextmanager
def _watching(places: Places) -> Iterator:
    """A function whose value changes when somebody has written to the database."""
    with closing(sqlite3.connect(places.database)) as connection:
        yield lambda: connection.execute("PRAGMA data_version").fetchone()[0]


def _launch(places: Places) -> subprocess.Popen[bytes]:
    hosts = [urlsplit(places.url).netloc]
    hosts += [
        f"{name}:{places.port}"
        for name in os.environ.get("CUTSLOTS_TRACKING_NAMES", "").split(",")
        if name
    ]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nobody shall run anything through the tracking server
    }
    environment.pop("MLFLOW_TRACKING_URI", None)  # or the server would take itself for its client
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{places.database}",
    ]
    command += [
        "--serve-artifacts",
        "--artifacts-destination",
        str(places.shared.parent / "artifacts"),
    ]
    command += ["--host", places.bind, "--port", str(places.port)]
    command += ["--workers", "1"]  # one is the fastest with SQLite, and takes the least memory
    # Tunnels (ssh -L, kubectl port-forward) ask for localhost. Pages post to the host that they came from.
    command += ["--allowed-hosts", ",".join([*hosts, "localhost:*", "127.0.0.1:*"])]
    command += ["--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)]
    return subprocess.Popen(command, cwd=places.local, env=environment, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its own children, which outlive it by a moment."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 20
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()  # buries it: a dead child that nobody has waited for is still of the group
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            continue
        return


if __name__ == "__main__":
    main()
