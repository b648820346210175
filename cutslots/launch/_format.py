"""Numbers and labels as the table of a sweep shows them."""

import re
from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from cutslots.train.terminal import clock as clock


def about(seconds: float) -> str:
    """An estimated time, which deserves two figures: 40s, 12m, 1h20m, 3d4h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"


def score(value: float | None) -> str:
    """An objective, five characters or little more."""
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def short(number: int) -> str:
    """A number of steps in four characters: 950, 1.2k, 20k, 1.5M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            # Never rounded up: a training is not over before it is.
            return (
                str(number // size)
                if number >= 10 * size
                else f"{number * 10 // size / 10:.1f}".removesuffix(".0")
            ) + letter
    return str(number)


def one_line(text: str) -> str:
    """Without the colours and line breaks that an error's text may bring."""
    return " ".join(Text.from_ansi(text).plain.split())


def squeeze(label: str, width: int) -> str:
    """A label in `width` characters: its words lose their ends first, for its numbers say more, then it loses its middle."""
    for longest in range(max(width, 4), 3, -1):
        shorter = re.sub(
            r"\b[^\W\d][\w.]*", lambda word, longest=longest: _cut(word[0], longest), label
        )
        if len(shorter) <= width:
            return shorter
    end = (width - 1) // 2
    return f"{label[: width - 1 - end]}…{label[len(label) - end :]}" if width > 2 else label[:width]


def _cut(word: str, width: int) -> str:
    return word if len(word) <= width else word[: width - 1] + "…" if width > 2 else word[:width]


class Labels:
    """The labels of all trials, to be shown in few characters.

    Those that give values to the same names, "gamma 0.31  depth 4" and "gamma 0.2  depth 8", become columns under those names.

    Attributes:
        needed: characters without which values are lost.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._values = [
            dict(part.split(" ") for part in parts) if _paired(parts := label.split("  ")) else {}
            for label in labels
        ]
        found = Counter(tuple(values) for values in self._values if values).most_common(1)
        self._names = found[0][0] if found and found[0][1] > 1 else ()
        columns = [
            [values[name] for values in self._values if tuple(values) == self._names]
            for name in self._names
        ]
        self._narrowest = [max(map(len, column)) for column in columns]
        self.needed = (
            _width(self._narrowest) if columns else min(30, max(map(len, labels), default=0))
        )

    def fit(self, width: int) -> tuple[str, list[str]]:
        """A heading, and each label, in `width` characters; what is not in columns is squeezed."""
        if not self._names or _width(self._narrowest) > width:
            return "trial", [squeeze(label, width) for label in self.labels]
        widths = self._narrowest
        for longest in range(
            1, max(map(len, self._names)) + 1
        ):  # names as whole as there is room for
            wider = [
                max(least, min(len(name), longest))
                for least, name in zip(self._narrowest, self._names, strict=True)
            ]
            widths = wider if _width(wider) <= width else widths
        heading = _padded(
            [_cut(name, room) for name, room in zip(self._names, widths, strict=True)], widths
        )
        return heading, [
            _padded(list(values.values()), widths)
            if tuple(values) == self._names
            else squeeze(label, width)
            for label, values in zip(self.labels, self._values, strict=True)
        ]


def _paired(parts: Sequence[str]) -> bool:
    return all(part.count(" ") == 1 for part in parts)


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
