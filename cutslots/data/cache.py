"""Prepared folders that lie elsewhere: fetched once into the home folder, put there shard by shard."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cutslots import files
from cutslots.data.manifest import MANIFEST, Manifest
from cutslots.data.places import Place, is_uri
from cutslots.errors import InputError


def local(where: Place | Path | str) -> Path:
    """The prepared folder on this machine: the path itself, or for a URI its copy in `CUTSLOTS_HOME/cache`.

    Only what the copy lacks is fetched, and every shard is compared with the manifest's SHA-256. Several processes may ask
    for the same folder; one fetches, the others wait.

    Raises:
        InputError: the place cannot be reached, holds no finished prepared data, or a shard is not what the manifest says.
    """
    if not isinstance(where, Place) and not is_uri(where):
        return Path(where)
    place = Place.of(where)
    try:
        text = (place / MANIFEST).read()
    except OSError as error:
        raise InputError(
            f"{place} has no {MANIFEST} that can be read ({error}). Give a folder that cutslots prepare wrote."
        ) from None
    manifest = Manifest.parse(text, f"{place}/{MANIFEST}")
    folder = _copy(place, manifest)
    with _alone(folder):
        for split in manifest.splits.values():
            for entry in split.shards:
                if not (folder / entry.file).is_file():
                    _fetch(place / entry.file, folder / entry.file, entry.sha256)
        if not (folder / MANIFEST).exists():
            manifest.save(folder / MANIFEST)
    return folder


def prepared(where: Place | str, write: Callable[[Path], Manifest], overwrite: bool = False) -> Manifest:
    """Let `write` prepare a folder of this machine, then publish it; a rerun goes on where either stopped.

    Raises: what `write` and `publish` raise.
    """
    place = Place.of(where)
    name = hashlib.sha256(str(where).encode()).hexdigest()[:12]
    folder = files.home() / "cache" / f"{place.name}-made-{name}"
    for link in folder.parent.glob(f"{place.name}-*"):
        if link.is_symlink() and link.readlink().name == folder.name:
            link.unlink()  # the name of a content that the folder may lose now
    manifest = write(folder)
    publish(folder, place, overwrite)
    copy = _copy(place, manifest)
    if not copy.exists():
        copy.symlink_to(folder.name)  # it need not be fetched again
    return manifest


def publish(directory: Path | str, where: Place | str, overwrite: bool = False) -> None:
    """Copy a finished prepared folder to a URI; the manifest comes last, so that no reader takes a part for the whole.

    Args:
        overwrite: replace other prepared data there.

    Raises:
        InputError: no finished folder, see `Manifest.load`, or the place holds other prepared data.
    """
    directory, place = Path(directory), Place.of(where)
    manifest = Manifest.load(directory)
    if (place / MANIFEST).exists:
        if Manifest.parse((place / MANIFEST).read(), str(place)).digest == manifest.digest:
            return
        if not overwrite:
            raise InputError(f"{place} already holds other prepared data. Name another place, or overwrite it.")
        place.filesystem.delete_file((place / MANIFEST).path)
    place.filesystem.create_dir(place.path, recursive=True)
    names = [entry.file for split in manifest.splits.values() for entry in split.shards]
    for name in (*names, MANIFEST):
        with open(directory / name, "rb") as source, place.filesystem.open_output_stream((place / name).path) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def _copy(place: Place, manifest: Manifest) -> Path:
    """Where the copy of a folder is kept: by its content, so that another content there is another copy."""
    return files.home() / "cache" / f"{place.name}-{manifest.digest}"


def _fetch(source: Place, target: Path, sha256: str) -> None:
    with files.atomic(target) as temporary:
        try:
            with source.open() as incoming, open(temporary, "wb") as out:
                shutil.copyfileobj(incoming, out, 1 << 20)
        except FileNotFoundError:
            raise InputError(f"{source} is missing, though the manifest beside it names it. Prepare or publish it again.") from None
        if files.sha256(temporary) != sha256:
            raise InputError(f"{source} is damaged: its SHA-256 is not the manifest's. Prepare or publish it again.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that fetch into the same folder; it is made when it is absent."""
    if folder.is_symlink() and not folder.exists():
        folder.unlink()  # somebody removed what it stood for
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
