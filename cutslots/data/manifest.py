"""What a prepared folder holds, written down: `manifest.json`, or `progress.json` while the folder is being written."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutslots import files
from cutslots.data.scene import SCHEMA_VERSION, Ranges
from cutslots.errors import InputError, nearest

MANIFEST, PROGRESS = "manifest.json", "progress.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-\d{5}\.arrow")


@dataclass(frozen=True)
class Info:
    """What decides the content of a prepared folder: two folders of one info hold the same scenes.

    Attributes:
        source: name of the source.
        raw: description of the raw files, see `sources.Source.describe`.
        options: the source's options.
        ranges: for every split the half-open range of records, None = to the end.
        defaults: of the options, for folders of a version that did not have some of them yet.
    """

    source: str
    raw: dict[str, Any]
    options: dict[str, Any]
    ranges: Ranges
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: its file name, number of scenes, size in bytes and SHA-256."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The finished shards of one split, in record order."""

    shards: tuple[ShardEntry, ...] = ()

    @property
    def count(self) -> int:
        """The number of scenes."""
        return sum(shard.count for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Attributes:
        source, raw, options, ranges: see `Info`.
        frame_shape: shape of one mask: (H, W), or (T, H, W) for clips.
        max_objects: the largest instance id in any mask.
        splits: the shards of every split.
        schema_version: version of the record format.
        version: the cutslots that wrote it.
    """

    source: str
    raw: dict[str, Any]
    options: dict[str, Any]
    ranges: Ranges
    frame_shape: tuple[int, ...] = ()
    max_objects: int = 0
    splits: dict[str, Split] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    version: str = ""

    @classmethod
    def load(cls, directory: Path | str) -> "Manifest":
        """The manifest of a finished folder.

        Raises:
            InputError: no such folder, no or only half prepared data in it, a damaged manifest or a foreign schema
                version.
        """
        directory = Path(directory)
        if not directory.is_dir():
            if directory.exists():
                raise InputError(
                    f"{directory} is a file. Give a folder that `cutslots prepare` wrote."
                )
            raise InputError(
                f"data folder {directory} does not exist. Make it with: cutslots prepare SOURCE ... {directory}"
            )
        if (directory / MANIFEST).exists():
            return cls.read(directory / MANIFEST)
        if (directory / PROGRESS).exists():
            raise InputError(
                f"data folder {directory} is half prepared. Run the same prepare command again to continue."
            )
        raise InputError(
            f"data folder {directory} has no {MANIFEST}, so it is not a prepared data set. "
            "Give the folder that cutslots prepare wrote, or prepare one."
        )

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The manifest in one JSON file."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, name: str) -> "Manifest":
        """The manifest in a JSON text; `name` is its file's, for messages.

        Raises:
            InputError: damaged, or of a foreign schema version.
        """
        try:
            found = json.loads(text)
            theirs = found["schema_version"]
            if theirs != SCHEMA_VERSION:
                raise InputError(
                    f"{name} has schema version {theirs}, this cutslots reads version {SCHEMA_VERSION}. "
                    "Prepare the data again with this version."
                )
            found["ranges"] = {name: tuple(bounds) for name, bounds in found["ranges"].items()}
            found["frame_shape"] = tuple(found["frame_shape"])
            found["splits"] = {
                name: Split(tuple(ShardEntry(**shard) for shard in split["shards"]))
                for name, split in found["splits"].items()
            }
            return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{name} is damaged ({error!r}). Prepare the data again with overwrite."
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        found = dataclasses.asdict(self)
        for name, split in self.splits.items():
            found["splits"][name]["count"] = split.count
        return json.loads(json.dumps(found))

    def save(self, path: Path) -> None:
        """Write the manifest atomically."""
        files.write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.frame_shape[-2:]
        return height, width

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that stand for the content: the same wherever and whenever it was prepared."""
        content = self.to_json()
        del content["version"]
        content["raw"].pop(
            "fingerprint", None
        )  # that of the prepared scenes is in the shards' checksums
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def shards(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [entry for split in self.splits.values() for entry in split.shards]

    def split(self, name: str) -> Split:
        """The shards of one split.

        Raises:
            InputError: there is no split of that name.
        """
        if name not in self.splits:
            raise InputError(f"unknown split {name!r}. {nearest(name, list(self.splits))}")
        return self.splits[name]

    def refuse_other(self, asked: Info, where: str, finished: bool = True) -> None:
        """Compare with what is to be prepared.

        Args:
            where: the folder, for the message.
            finished: False leaves the sizes of the raw files open: a damaged one may have been mended since.

        Raises:
            InputError: this is other data; the message says what differs.
        """
        # What an older version did not note counts as the same.
        raw, options = asked.raw | self.raw, asked.defaults | self.options
        if not finished and (now := asked.raw.get("files")) and raw["files"].keys() == now.keys():
            raw["files"] = now
        stored = Info(self.source, raw, options, self.ranges, asked.defaults)
        differences = "; ".join(_differences(_plain(stored), _plain(asked)))
        if differences:
            raise InputError(
                f"{where} already holds other data: {differences}. Name another folder, or give --overwrite."
            )


def _plain(info: Info) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(info)))


def _differences(there: Any, asked: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted(there.keys() | asked.keys()):
            yield from _differences(
                there.get(key), asked.get(key), f"{path}.{key}" if path else key
            )
    elif there != asked:
        yield f"{path} is {there} there, {asked} now"
