"""The data sources: every module of this folder is one, and what `Source` lists is all that it needs."""

import importlib
import pkgutil
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol, cast

from cutslots.data.places import Place
from cutslots.data.scene import Ranges, Scene
from cutslots.errors import InputError, nearest


class Source(Protocol):
    """What a source module holds; the first line of its docstring is its help.

    `found` is what `find` returned; an item is one record before it is decoded. Both are the module's own business, but an
    item is sent to other processes: it is small, or it is the record's bytes.
    """

    __doc__: str | None
    NEEDS_RAW: bool
    Options: type

    def find(self, raw: Place | None, options: Any) -> Any:
        """What there is at `raw`, looked at once."""
        ...

    def splits(self, found: Any, options: Any) -> Ranges:
        """The default half-open range of records of every split; None = to the end."""
        ...

    def describe(self, found: Any, options: Any, splits: Ranges) -> dict[str, Any]:
        """The raw data for the manifest, as JSON values without machine paths; refuses what lacks files that `splits` need.

        `files` has names and sizes. `fingerprint` tells sets of equal names apart, and stays when a damaged file is mended.
        """
        ...

    def records(
        self, found: Any, options: Any, splits: Ranges, done: dict[str, int]
    ) -> Generator[tuple[str, Any], None, int]:
        """Yield (split, item) in record order within every split, without the first `done[split]` items of it.

        Returns the number of records that there are; it need not look for those behind the last one that `splits` asks for.
        """
        ...

    def decode(self, item: Any, options: Any) -> Scene:
        """The prepared scene of an item; runs in any process."""
        ...


def indices(splits: Ranges, done: dict[str, int], total: int) -> Iterator[tuple[str, int]]:
    """(split, number of the record) for everything still wanted of `total` records."""
    for name, (start, stop) in splits.items():
        for index in range(start + done[name], total if stop is None else min(stop, total)):
            yield name, index


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the name of a file or record in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def names() -> list[str]:
    """The names of all sources."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Source:
    """The source module of this name.

    Raises:
        InputError: there is none.
    """
    if name not in names():
        raise InputError(f"unknown source {name!r}. {nearest(name, names())}")
    return cast(Source, importlib.import_module(f"{__name__}.{name}"))


def parse_splits(text: str) -> Ranges:
    """The ranges that a text such as `train=0:320,val=320:360,test=360:` gives; an open end means to the last record.

    Raises:
        InputError: the text does not read so, or see `check_splits`.
    """
    ranges: Ranges = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*:\s*(\d*)\s*", part, re.ASCII)
        if not match:
            raise InputError(
                f"splits {text!r}: cannot read {part!r}. Write for example train=0:320,val=320:360,test=360:400."
            )
        name, start, stop = match.groups()
        if name in ranges:
            raise InputError(f"splits {text!r} names {name} twice. Give every split one range.")
        ranges[name] = (int(start), int(stop) if stop else None)
    return check_splits(ranges)


def check_splits(ranges: Ranges) -> Ranges:
    """The same ranges, checked.

    Raises:
        InputError: no range at all, a name that cannot be a file name, a range that is empty or backwards, or an
            overlap.
    """
    if not ranges:
        raise InputError("splits is empty. Give at least one range, for example train=0:320.")
    for name, (start, stop) in ranges.items():
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise InputError(f"split {name!r}: a name has letters, digits and _ only.")
        if start < 0 or (stop is not None and stop <= start):
            raise InputError(
                f"split {name} is {start}:{stop}; the end must be greater than the start. Write {name}=START:END."
            )
    ordered = sorted(ranges.items(), key=lambda item: item[1][0])
    for (name, (_, stop)), (other, (start, _)) in pairwise(ordered):
        if stop is None or start < stop:
            raise InputError(
                f"splits {name} and {other} overlap at record {start}. Give ranges that do not share a record."
            )
    return ranges
