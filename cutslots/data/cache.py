"""Prepared folders that lie elsewhere: fetched once into the home folder, put there shard by shard."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cutslots import files
from cutslots.data import reading
from cutslots.data.manifest import MANIFEST, PROGRESS, SHARD_NAME, Info, Manifest
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
    manifest = _manifest(place)
    folder = _copy(place, manifest)
    with _alone(folder):
        for entry in manifest.shards:
            path = folder / entry.file
            if not path.is_file() or path.stat().st_size != entry.bytes:
                _fetch(place / entry.file, path, entry.sha256)
        if not (folder / MANIFEST).exists():
            manifest.save(folder / MANIFEST)
    return folder


def manifest(where: Place | Path | str) -> Manifest:
    """What a prepared folder holds, without fetching it where it lies elsewhere.

    Raises:
        InputError: there is no finished prepared data.
    """
    return (
        _manifest(Place.of(where))
        if isinstance(where, Place) or is_uri(where)
        else Manifest.load(Path(where))
    )


def check(where: Place | Path | str) -> list[str]:
    """Everything that is wrong with a finished folder, one sentence each; an empty list when all is well.

    Compares every shard with the manifest (presence, size, SHA-256, schema, counts) and every record with itself (mask
    ids, `num_objects`, metadata). At a URI every byte is read; when all are right, the copy on this machine is checked.

    Raises:
        InputError: there is no finished folder to check, see `local` and `Manifest.load`.
    """
    if not isinstance(where, Place) and not is_uri(where):
        return reading.check(where)
    place = Place.of(where)
    with _telling(f"cannot check {place}", "Run the same command again."):
        problems = list(_problems(place, _manifest(place)))
    return problems or reading.check(local(place))


def prepared(
    where: Place | str, info: Info, write: Callable[[Path], Manifest], overwrite: bool = False
) -> Manifest:
    """Let `write` prepare a folder of this machine, then publish it; a rerun goes on where either stopped.

    Raises:
        InputError: before any work, the place holds other data or cannot be written to.
        And what `write` and `publish` raise.
    """
    place = Place.of(where)
    _ready(place, info, overwrite)
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
    """Copy what a URI lacks of a finished prepared folder; the manifest comes last, so that no reader takes a part for the whole.

    Until then `progress.json` there says whose the shards are: those of this folder that have the right size are kept.

    Args:
        overwrite: replace whatever prepared data is there, shard by shard.

    Raises:
        InputError: no finished folder, see `Manifest.load`, the place holds other prepared data, or it cannot be written to.
    """
    directory, place = Path(directory), Place.of(where)
    manifest = Manifest.load(directory)
    with _telling(
        f"cannot write to {place}",
        f"The prepared set stays in {directory}; the same command goes on from there.",
    ):
        place.filesystem.create_dir(place.path, recursive=True)
        state = next((name for name in (MANIFEST, PROGRESS) if (place / name).exists), None)
        finished = state == MANIFEST and not overwrite
        if finished and _manifest(place).digest != manifest.digest:
            raise InputError(
                f"{place} already holds other prepared data. Name another place, or give --overwrite."
            )
        begun = (
            state == PROGRESS
            and not overwrite
            and (place / PROGRESS).read() == (directory / MANIFEST).read_bytes()
        )
        there = _shards(place) if finished or begun else {}
        if not finished and not begun:
            _clear(place, state)
            _put(directory / MANIFEST, place / PROGRESS)
        for entry in manifest.shards:
            if there.get(entry.file) != entry.bytes:
                _put(directory / entry.file, place / entry.file)
        if not finished:
            _put(directory / MANIFEST, place / MANIFEST)
            place.filesystem.delete_file((place / PROGRESS).path)


def _ready(place: Place, info: Info, overwrite: bool) -> None:
    """Refuse before the work what could not be published after it."""
    with _telling(f"cannot write to {place}", "Check its name and the right to write there."):
        if not overwrite and (place / MANIFEST).exists:
            _manifest(place).refuse_other(info, str(place))
        place.filesystem.create_dir(place.path, recursive=True)
        probe = place / ".probe"
        _put(Path(os.devnull), probe)
        place.filesystem.delete_file(probe.path)


def _put(source: Path, target: Place) -> None:
    with open(source, "rb") as file, target.filesystem.open_output_stream(target.path) as sink:
        shutil.copyfileobj(file, sink, 1 << 20)


def _clear(place: Place, state: str | None) -> None:
    """Remove the prepared data that there is, the manifest first, so that no reader takes the rest for whole."""
    for name in (state, *_shards(place)) if state else ():
        place.filesystem.delete_file((place / name).path)


def _manifest(place: Place) -> Manifest:
    try:
        text = (place / MANIFEST).read()
    except OSError as error:
        raise InputError(
            f"{place} has no {MANIFEST} that can be read ({error}). Give a folder that cutslots prepare wrote."
        ) from None
    return Manifest.parse(text, f"{place}/{MANIFEST}")


def _shards(place: Place) -> dict[str, int]:
    """Sizes in bytes of the shards in a folder, by name."""
    sizes = {place.at(path).name: size for path, size in place.files().items()}
    return {name: size for name, size in sizes.items() if SHARD_NAME.fullmatch(name)}


def _problems(place: Place, manifest: Manifest) -> Iterator[str]:
    """What of a folder elsewhere is not as its manifest says."""
    sizes = _shards(place)
    for entry in manifest.shards:
        shard, size = place / entry.file, sizes.pop(entry.file, None)
        if size is None:
            yield f"{shard} is missing"
        elif size != entry.bytes:
            yield f"{shard} is damaged: {size} bytes, the manifest says {entry.bytes}"
        else:
            with shard.open() as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    yield f"{shard} is damaged: its SHA-256 is not the manifest's"
    yield from (f"{place / name} is not in the manifest" for name in sizes)


def _copy(place: Place, manifest: Manifest) -> Path:
    """Where the copy of a folder is kept: by its content, so that another content there is another copy."""
    copy = files.home() / "cache" / f"{place.name}-{manifest.digest}"
    if copy.is_symlink() and not copy.exists():
        copy.unlink(missing_ok=True)  # somebody removed what it stood for
    return copy


def _fetch(source: Place, target: Path, sha256: str) -> None:
    with (
        _telling(f"cannot fetch {source}", "The same command goes on from there."),
        files.atomic(target) as temporary,
    ):
        try:
            with source.open() as incoming, open(temporary, "wb") as out:
                shutil.copyfileobj(incoming, out, 1 << 20)
        except FileNotFoundError:
            raise InputError(
                f"{source} is missing, though the manifest beside it names it. Prepare or publish it again."
            ) from None
        if files.sha256(temporary) != sha256:
            raise InputError(
                f"{source} is damaged: its SHA-256 is not the manifest's. Prepare it again with overwrite."
            )


@contextmanager
def _telling(what: str, remedy: str) -> Iterator[None]:
    """Faults of a network, or of the rights there, are the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error}. {remedy}") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that fetch into the same folder; it is made when it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks on its file system, each process fetches for itself
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
