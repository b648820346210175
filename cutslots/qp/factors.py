"""The factor cache: a matrix is factored once a node.

A factor belongs to the matrix it factors, so its key is a digest of that matrix up to scale: the graph, the back end, and how the
gammas relate to each other. A sweep over the paper's single gamma shares one factor; gammas set apart (another reach) are another
matrix. Layers of one process share a factor in memory while any of them lives. Processes of one node share it on disk: the first
computes it under a lock, the others wait and map the file. A file that is cut short, altered or of another version is said and
made anew.

Where: `CUTSLOTS_FACTORS`, else `cutslots/factors` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`).
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutslots.errors import InputError
from cutslots.files import atomic
from cutslots.qp.cholesky import Factor, factorise, has_cholmod

LOG = logging.getLogger("cutslots.qp")
VERSION = "1"
ARRAYS = ("permutation", "starts", "ends", "rows", "values")
_alive: WeakValueDictionary[str, Factor] = WeakValueDictionary()
_in_process = threading.Lock()


class Stored(NamedTuple):
    """A file of the cache; `problem` says what is wrong with it."""

    path: Path
    bytes: int
    about: str
    problem: str | None


def folder() -> Path:
    """Where this node's factors lie."""
    named = os.environ.get("CUTSLOTS_FACTORS")
    if named:
        return Path(named).absolute()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
        / "cutslots"
        / "factors"
    )


def digest(*parts: Any) -> str:
    """The key of a matrix: of strings, numbers and arrays that determine it. Numbers count to 12 digits."""
    state = hashlib.sha256()
    for part in parts:
        array = np.asarray(part)
        if array.dtype.kind == "f":
            with np.errstate(divide="ignore"):
                scale = 10.0 ** (11 - np.floor(np.log10(np.where(array == 0, 1, np.abs(array)))))
            array = np.round(array * scale) / scale
        if array.dtype.kind in "iub":
            array = array.astype(np.int64)
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:32]


def get(key: str, about: str, build: Callable[[], Factor]) -> Factor:
    """The factor of a key: from this process, from this node's disk, or built and kept.

    Args:
        about: what it factors, for people.
        build: computes it; called in one process of the node at a time.
    """
    with _in_process:
        factor = _alive.get(key)
        if factor is None:
            factor = _alive[key] = _from_disk(key, about, build)
        return factor


def of_constraints(A: sp.csr_array, about: str) -> Factor:
    """The factor of A A^T."""

    def build() -> Factor:
        rows = len(A.indptr) - 1
        if rows > 10_000:
            way = (
                "CHOLMOD"
                if has_cholmod()
                else "SciPy (pip install 'cutslots[cholmod]' brings CHOLMOD, which is faster)"
            )
            LOG.warning(
                "Factoring %s with %s: %d rows, minutes. It is kept in %s.",
                about,
                way,
                rows,
                folder(),
            )
        return factorise(A, transposed=True)

    return get(digest("A A^T", np.array(A.shape), A.indptr, A.indices, A.data), about, build)


def of_matrix(matrix: sp.csc_array, about: str) -> Factor:
    """The factor of a symmetric positive definite matrix."""
    key = digest("M", np.array(matrix.shape), matrix.indptr, matrix.indices, matrix.data)
    return get(key, about, lambda: factorise(matrix))


def stored() -> list[Stored]:
    """Every factor file of this node, verified."""
    return [_examined(path) for path in sorted(folder().glob("*.safetensors"))]


def clear() -> list[Stored]:
    """Delete every factor file of this node; returns what was deleted. Layers that live keep their factors."""
    deleted = stored()
    for path in folder().glob("*"):
        # Locks stay: a process that waits at one would otherwise guard a file that nobody else sees.
        if path.suffix == ".safetensors" or path.name.startswith("."):
            path.unlink(missing_ok=True)
    return deleted


def _from_disk(key: str, about: str, build: Callable[[], Factor]) -> Factor:
    path = folder() / f"{key}.safetensors"
    # Read without the lock first: files appear whole, and a folder may be one that others have filled and this process only reads.
    factor = _read_or_say(path, key)
    if factor is not None:
        return factor
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), about):
            factor = _read_or_say(path, key, quiet=True)
            if factor is not None:
                return factor
            factor = build()
            _write(path, key, about, factor)
            # From the file again, so that all processes map one copy.
            return _read(path, key)
    except (OSError, SafetensorError) as error:
        LOG.warning(
            "The factor of %s is not kept on disk (%s); CUTSLOTS_FACTORS names another folder.",
            about,
            error,
        )
        return build() if factor is None else factor


def _read_or_say(path: Path, key: str, quiet: bool = False) -> Factor | None:
    """The factor of a file; None where there is none that can be used, and why."""
    try:
        return _read(path, key)
    except FileNotFoundError:
        return None
    except (InputError, OSError) as problem:
        if not quiet:
            LOG.warning("%s It is computed anew.", problem)
        return None


@contextmanager
def _locked(path: Path, about: str) -> Iterator[None]:
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("Another process computes the factor of %s; waiting for it.", about)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, key: str, about: str, factor: Factor) -> None:
    arrays = {name: getattr(factor, name).contiguous() for name in ARRAYS}
    metadata = {"cutslots_factor": VERSION, "key": key, "about": about, "sha256": _checksum(arrays)}
    with atomic(path) as temporary:
        save_file(arrays, temporary, metadata)
        temporary.chmod(0o644)


def _read(path: Path, key: str | None = None) -> Factor:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("cutslots_factor") != VERSION:
                raise InputError(
                    f"{path} is of version {metadata.get('cutslots_factor')}, not {VERSION}."
                )
            if set(file.keys()) != set(ARRAYS) or not {"key", "about", "sha256"} <= set(metadata):
                raise InputError(f"{path} is no factor file.")
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
    except SafetensorError as error:
        raise InputError(f"{path} is cut short or no factor file ({error}).") from error
    if metadata["sha256"] != _checksum(arrays):
        raise InputError(f"{path} is damaged: its checksum is wrong.")
    if key is not None and metadata["key"] != key:
        raise InputError(f"{path} holds the factor {metadata['key']}.")
    return Factor(*arrays.values())


def _examined(path: Path) -> Stored:
    size = path.stat().st_size
    try:
        _read(path)
        with safe_open(path, framework="pt") as file:
            return Stored(path, size, file.metadata()["about"], None)
    except (InputError, OSError) as problem:
        return Stored(path, size, "unknown", str(problem))


def _checksum(arrays: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in ARRAYS:
        array = arrays[name]
        state.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        state.update(array.numpy().data.cast("B"))
    return state.hexdigest()
