"""Shared by tests of tables."""

from collections.abc import Callable

import pytest


@pytest.fixture
def cells() -> Callable[[str], list[list[str]]]:
    """A function from Markdown to the rows of its tables, without the lines below headers."""

    def read(markdown: str) -> list[list[str]]:
        lines = [line for line in markdown.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [row for row in rows if not set("".join(row)) <= set("-:")]

    return read
