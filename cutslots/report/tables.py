"""One table class for Markdown, the terminal and CSV, and how numbers are written in tables."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Rows of text under column titles; `right` names the columns that are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()

    def markdown(self) -> str:
        """Markdown with aligned columns; `|` and line breaks in cells are replaced."""
        rows = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in self.rows]
        cells = [list(self.columns), *rows]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.columns))]
        right = [name in self.right for name in self.columns]
        rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
        cells.insert(1, rule)
        lines = (
            " | ".join(
                cell.rjust(w) if r else cell.ljust(w)
                for cell, w, r in zip(row, widths, right, strict=True)
            )
            for row in cells
        )
        return "".join(f"| {line} |\n" for line in lines)

    def csv(self) -> str:
        """Comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()

    def rich(self) -> RichTable:
        """A rich table for a terminal; cells are plain text, never markup."""
        table = RichTable(box=None, header_style="bold", pad_edge=False)
        for name in self.columns:
            table.add_column(name, justify="right" if name in self.right else "left")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def score_text(name: str, value: float | None) -> str:
    """A score with the digits that tables show; empty for None."""
    return "" if value is None else f"{value:.2f}" if name.endswith("mse") else f"{value:.4f}"


def mean_and_deviation(name: str, values: Sequence[float]) -> str:
    """`0.8123 ± 0.0101`: the mean and the sample standard deviation (n - 1); empty without values.

    A single value has no deviation.
    """
    if not values:
        return ""
    mean = score_text(name, statistics.fmean(values))
    return f"{mean} ± {score_text(name, statistics.stdev(values))}" if len(values) > 1 else mean


def setting_text(value: str) -> str:
    """A setting's value with at most four digits; samplers draw seventeen."""
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
