"""The interface of a dataset source, and the ranges of records that make its splits."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

from cutslots.data.images import Preprocessing
from cutslots.data.locate import Location
from cutslots.data.record import Ranges, Scene
from cutslots.errors import InputError


class Source(ABC):
    """How one dataset gets from its raw files to scenes.

    To add a dataset, write one file in `cutslots/data/sources` with one subclass of `Source`. The
    name of the file is the name of the dataset in `cutslots prepare NAME RAW OUT`; the first line
    of the class's docstring is its help.

    1. `Options`: a frozen dataclass of `cutslots.options.option` fields, by default crop and size.
       Every field becomes an option of the command line and is stored in the manifest. Its method
       `check`, if any, refuses options that conflict.
    2. `find`: look at `self.raw` once, set `self.num_records`, and refuse incomplete data.
    3. `records`: yield (split, item). An item goes to another process: keep it small, or let it be
       the record's bytes. It contains all that `decode` needs besides the options.
    4. `decode`: turn an item into a `Scene`.

    Override `splits` if the dataset has published splits, `describe` so that the manifest
    identifies the raw files, and `limit` if a split does not take all scenes of its range.
    For messages about one file use `naming`, for image files `images`, for TFRecords `tfrecord`.

    Attributes:
        raw: the raw file or folder; None if `NEEDS_RAW` is False.
        options: an instance of `Options`.
        num_records: number of records. A source that must read the data to know it counts in
            `records`, up to the last record that the splits ask for.
    """

    NEEDS_RAW: ClassVar[bool] = True
    Options: ClassVar[type] = Preprocessing

    def __init__(self, raw: Location | None, options: Any):
        self.raw: Any = raw
        self.options, self.num_records = options, 0

    @abstractmethod
    def find(self) -> None:
        """Find the raw files; raises InputError if they are incomplete."""

    def records(self, splits: Ranges, done: dict[str, int]) -> Iterator[tuple[str, Any]]:
        """Yield (split, item) split by split in record order, from item `done[split]` on.

        By default an item is the number of a record.
        """
        for name, (start, stop) in splits.items():
            end = self.num_records if stop is None else min(stop, self.num_records)
            yield from ((name, number) for number in range(start + done[name], end))

    @staticmethod
    @abstractmethod
    def decode(item: Any, options: Any) -> Scene:
        """The preprocessed scene of an item; runs in any process."""

    def splits(self) -> Ranges:
        """The default ranges: the first tenth is test, the second val, the rest train."""
        tenth, fifth = self.num_records // 10, self.num_records // 5
        return {"test": (0, tenth), "val": (tenth, fifth), "train": (fifth, self.num_records)}

    def describe(self, splits: Ranges) -> dict[str, Any]:
        """The raw data for the manifest, as JSON values without machine paths.

        `files` are names and sizes. `fingerprint` distinguishes datasets with equal names, and
        stays the same when a damaged file is replaced.

        Raises:
            InputError: files that `splits` need are missing.
        """
        return {}

    def limit(self, split: str) -> int | None:
        """The largest number of scenes of a split; None for all of its range."""
        return None


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Prefix the message of an InputError with the name of the file or record."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def parse_splits(text: str) -> Ranges:
    """Parse a text such as `train=0:320,val=320:360,test=360:`; an open end is the last record."""
    ranges: Ranges = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*:\s*(\d*)\s*", part, re.ASCII)
        if not match:
            example = "Write for example train=0:320,val=320:360."
            raise InputError(f"splits {text!r}: cannot read {part!r}. {example}")
        name, start, stop = match.groups()
        if name in ranges:
            raise InputError(f"splits {text!r} names {name} twice. Give every split one range.")
        ranges[name] = (int(start), int(stop) if stop else None)
    return check_splits(ranges)


def check_splits(ranges: Ranges) -> Ranges:
    """Return the ranges; InputError for none, an overlap, an empty one, or an unusable name."""
    if not ranges:
        raise InputError("splits is empty. Give at least one range, for example train=0:320.")
    for name, (start, stop) in ranges.items():
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise InputError(f"split {name!r}: a name must consist of letters, digits and _.")
        if start < 0 or (stop is not None and stop <= start):
            raise InputError(f"split {name} must end after its start, got {start}:{stop}.")
    ordered = sorted(ranges.items(), key=lambda item: item[1][0])
    for (name, (_, stop)), (other, (start, _)) in pairwise(ordered):
        if stop is None or start < stop:
            remedy = "Give ranges that do not."
            raise InputError(f"splits {name} and {other} overlap at record {start}. {remedy}")
    return ranges
