"""The factor cache: each node factors a matrix once.

The key is a digest of the matrix up to scale: the graph, the back end and the ratios of the gammas,
so a sweep over the paper's single gamma shares one factor. Layers of one process share a factor in
memory while any of them is alive; processes of one node share it on disk. The first computes it
under a lock, the others wait and map the file. A damaged file is reported and computed again.

Folder: `CUTSLOTS_FACTORS`, else `cutslots/factors` in `XDG_CACHE_HOME`, else in `~/.cache`.
"""

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutslots.errors import InputError
from cutslots.files import atomic, lock
from cutslots.qp.cholesky import factorise, has_cholmod
from cutslots.qp.factor import Factor

LOG = logging.getLogger("cutslots.qp")
VERSION = "1"
ARRAYS = ("permutation", "starts", "ends", "rows", "values")
_alive: WeakValueDictionary[str, Factor] = WeakValueDictionary()
_in_process = threading.Lock()


class Stored(NamedTuple):
    """A file of the cache; `problem` is None for an intact file."""

    path: Path
    bytes: int
    about: str
    problem: str | None


def folder() -> Path:
    """The folder of this node's factors."""
    if os.environ.get("CUTSLOTS_FACTORS"):
        return Path(os.environ["CUTSLOTS_FACTORS"]).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache.absolute() / "cutslots" / "factors"


def digest(*parts: Any) -> str:
    """The key of a matrix: of strings, numbers and arrays that determine it, up to 12 digits."""
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


def factor_of(matrix: sp.csr_array | sp.csc_array, about: str, transposed: bool = False) -> Factor:
    """The factor of a symmetric positive definite M, or with `transposed` of A A^T."""

    def build() -> Factor:
        rows = len(matrix.indptr) - 1
        if transposed and rows > 10_000:
            faster = "" if has_cholmod() else " (faster with pip install 'cutslots[cholmod]')"
            text = "Factoring %s: %d rows take minutes%s. The factor is kept in %s."
            LOG.warning(text, about, rows, faster, folder())
        return factorise(matrix, transposed)

    shape, kind = np.array(matrix.shape), "A A^T" if transposed else "M"
    key = digest(kind, shape, matrix.indptr, matrix.indices, matrix.data)
    return get(key, about, build)


def get(key: str, about: str, build: Callable[[], Factor]) -> Factor:
    """The factor of a key: from this process, from this node's disk, or built and kept.

    `about` describes the matrix for people; `build` runs in one process of the node at a time.
    """
    with _in_process:
        factor = _alive.get(key)
        if factor is None:
            factor = _alive[key] = _from_disk(key, about, build)
        return factor


def stored() -> list[Stored]:
    """Every factor file of this node, verified."""
    files = []
    for path in sorted(folder().glob("*.safetensors")):
        about, problem = "unknown", None
        try:
            about = _read(path)[1]
        except (InputError, OSError) as error:
            problem = str(error)
        files.append(Stored(path, path.stat().st_size, about, problem))
    return files


def clear() -> list[Stored]:
    """Delete every factor file of this node; returns them. Live layers keep their factors."""
    deleted = stored()
    for path in folder().glob("*"):
        # Lock files stay: a process that waits for a deleted one would guard a file nobody sees.
        if path.suffix == ".safetensors" or path.name.startswith("."):
            path.unlink(missing_ok=True)
    return deleted


def _from_disk(key: str, about: str, build: Callable[[], Factor]) -> Factor:
    path = folder() / f"{key}.safetensors"
    factor = None
    # First without the lock: files appear whole, and the folder may be read-only.
    try:
        return _read(path, key)[0]
    except FileNotFoundError:
        pass
    except (InputError, OSError) as problem:
        LOG.warning("%s The factor is computed again.", problem)
    try:
        with ExitStack() as stack:
            if not stack.enter_context(lock(path.with_suffix(".lock"))):
                LOG.info("Another process computes the factor of %s; waiting for it.", about)
                stack.enter_context(lock(path.with_suffix(".lock"), math.inf))
            with suppress(InputError, OSError):
                return _read(path, key)[0]
            factor = build()
            _write(path, key, about, factor)
            # Read back, so that all processes map one copy.
            return _read(path, key)[0]
    except (OSError, SafetensorError) as error:
        text = "The factor of %s is not kept on disk (%s); set CUTSLOTS_FACTORS to another folder."
        LOG.warning(text, about, error)
        return build() if factor is None else factor


def _write(path: Path, key: str, about: str, factor: Factor) -> None:
    arrays = {name: getattr(factor, name).contiguous() for name in ARRAYS}
    metadata = {"cutslots_factor": VERSION, "key": key, "about": about, "sha256": _checksum(arrays)}
    with atomic(path) as temporary:
        save_file(arrays, temporary, metadata)
        temporary.chmod(0o644)


def _read(path: Path, key: str | None = None) -> tuple[Factor, str]:
    """The factor in a file, and its description."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            version = metadata.get("cutslots_factor")
            if version != VERSION:
                raise InputError(f"{path} has version {version}, expected {VERSION}.")
            if set(file.keys()) != set(ARRAYS) or not {"key", "about", "sha256"} <= set(metadata):
                raise InputError(f"{path} is not a factor file.")
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a factor file ({error}).") from error
    if metadata["sha256"] != _checksum(arrays):
        raise InputError(f"{path} is damaged: its checksum is wrong.")
    if key is not None and metadata["key"] != key:
        raise InputError(f"{path} contains the factor {metadata['key']}, expected {key}.")
    return Factor(*arrays.values()), metadata["about"]


def _checksum(arrays: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in ARRAYS:
        array = arrays[name]
        state.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        state.update(array.numpy().data.cast("B"))
    return state.hexdigest()
