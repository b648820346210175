"""The table of results/ that the README shows: a row for every set that a kept model was scored on.

python -m cutslots.report.results README.md     # draws the table anew between its two marks
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutslots.errors import InputError
from cutslots.exit_status import exit_status
from cutslots.files import write_text
from cutslots.report.scores import markdown_table, number

BEGIN, END = "<!-- results -->", "<!-- /results -->"
SCORES = {"ari_fg": "ARI-FG", "cut_ari_fg": "cut ARI-FG", "tiles_ari_fg": "tiles' ARI-FG", "miou": "mIoU", "mse": "MSE"}


def results_table(folder: Path) -> str:
    """The scores that `cutslots evaluate --json` wrote below a folder, as markdown, in the order of the files' names."""
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "trained_on" in found:
            rows += _rows(found, path.relative_to(folder.parent))
    return markdown_table(["set, split", "model", "images", "size", *SCORES.values(), "signature"], rows, left=2) + "\n"


def _rows(found: Mapping[str, Any], path: Path) -> Iterator[list[str]]:
    model = found.get("architecture") or path.stem
    for each in found["sets"]:
        scores = each["scores"] | {f"tiles_{name}": value for name, value in each.get("tiles", {}).items()}
        yield [
            f"{each['name']}, {each['split']}",
            f"[{model}]({path.as_posix()})",
            f"{scores['num_images']:,.0f}",
            f"{found['image_size']}",
            *(number(score, scores) for score in SCORES),
            f"`{found['signature']}`",
        ]


def put_table(text: str, table: str) -> str:
    """A text with the table between its marks.

    Raises:
        InputError: the marks are not there, once and in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after:
        raise InputError(f"the text needs one line {BEGIN} and one line {END} after it, for the table to stand between.")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the table of a README anew; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cutslots.report.results", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("readme", type=Path, help="a text with the two marks; results/ lies beside it")
    readme = parser.parse_args(arguments).readme
    return exit_status(
        lambda: write_text(readme, put_table(readme.read_text(encoding="utf-8"), results_table(readme.parent / "results")))
    )


if __name__ == "__main__":
    sys.exit(main())
