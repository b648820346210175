"""The content of a prepared folder: `manifest.json`, or `progress.json` until it is finished."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutslots import files
from cutslots.data.record import SCHEMA_VERSION, Ranges
from cutslots.errors import InputError, nearest

MANIFEST, PROGRESS = "manifest.json", "progress.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-\d{5}\.arrow")


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
    """The content of a prepared folder; `source`, `raw`, `options`, `ranges` determine its scenes.

    Without the other attributes it describes a folder that is still to be written.
    """

    source: str
    raw: dict[str, Any]  # description of the raw files, see `Source.describe`
    options: dict[str, Any]
    ranges: Ranges
    frame_shape: tuple[int, ...] = ()  # of one mask: (H, W), or (T, H, W) for clips
    max_objects: int = 0  # the largest instance id in any mask
    splits: dict[str, Split] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    version: str = ""  # the version of cutslots that wrote it

    @classmethod
    def load(cls, directory: Path | str) -> "Manifest":
        """The manifest of a finished folder.

        Raises:
            InputError: not a prepared or not a finished folder, a damaged manifest, or another
                schema version.
        """
        path = Path(directory) / MANIFEST
        if path.exists():
            return cls.parse(path.read_bytes(), path)
        if not path.parent.exists():
            problem = f"does not exist. Prepare it: cutslots prepare SOURCE [RAW] {directory}"
        elif path.with_name(PROGRESS).exists():
            problem = "is half prepared. Run the same prepare command again to continue."
        else:
            problem = f"has no {MANIFEST}. Give a folder that cutslots prepare wrote."
        raise InputError(f"data folder {directory} {problem}")

    @classmethod
    def parse(cls, text: bytes, name: object) -> "Manifest":
        """The manifest in the JSON text of the file `name`.

        Raises:
            InputError: damaged, or another schema version.
        """
        try:
            values = json.loads(text)
            version = values["schema_version"]
            if version == SCHEMA_VERSION:
                values["ranges"] = {name: tuple(ends) for name, ends in values["ranges"].items()}
                values["frame_shape"] = tuple(values["frame_shape"])
                values["splits"] = {
                    name: Split(tuple(ShardEntry(**shard) for shard in split["shards"]))
                    for name, split in values["splits"].items()
                }
                return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "Prepare it with --overwrite."
            raise InputError(f"{name} is damaged ({error!r}). {remedy}") from None
        problem = f"has schema version {version}, this cutslots reads version {SCHEMA_VERSION}"
        raise InputError(f"{name} {problem}. Prepare the data again.")

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = dataclasses.asdict(self)
        for name, split in self.splits.items():
            values["splits"][name]["count"] = split.count
        return json.loads(json.dumps(values))

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
        """12 hexadecimal digits of the content, equal on every machine and at any time."""
        content = self.to_json()
        del content["version"]
        # The raw files' fingerprint adds nothing to the checksums of the shards.
        content["raw"].pop("fingerprint", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def shards(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [entry for split in self.splits.values() for entry in split.shards]

    @property
    def counts(self) -> str:
        """The number of scenes of every split, as text."""
        return ", ".join(f"{name} {split.count} scenes" for name, split in self.splits.items())

    def split(self, name: str) -> Split:
        """The shards of one split.

        Raises:
            InputError: unknown split.
        """
        if name not in self.splits:
            raise InputError(f"unknown split {name!r}. {nearest(name, list(self.splits))}")
        return self.splits[name]

    def differences(self, asked: "Manifest", defaults: dict[str, Any]) -> list[str]:
        """In what the source, raw data, options and ranges differ from `asked`, one clause each.

        What an older version did not store counts as equal; `defaults` are those of the options.
        """
        stored = (self.source, asked.raw | self.raw, defaults | self.options, self.ranges)
        names = ("source", "raw", "options", "ranges")
        pair = (dict(zip(names, stored, strict=True)), {n: getattr(asked, n) for n in names})
        return list(_differences(*(json.loads(json.dumps(values)) for values in pair)))


def _differences(stored: Any, asked: Any, path: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in sorted(stored.keys() | asked.keys()):
            name = f"{path}.{key}" if path else key
            yield from _differences(stored.get(key), asked.get(key), name)
    elif stored != asked:
        yield f"{path} is {stored} in the folder, but {asked} was requested"
