"""One table class for Markdown, the terminal and CSV."""

import csv
import io
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
