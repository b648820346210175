"""The table of results/ that the README shows: a row for every set that a kept model, or several with other seeds, were scored on.

python -m cutslots.report.results README.md     # draws the table anew between its two marks
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutslots.errors import InputError
from cutslots.exit_status import exit_status
from cutslots.files import write_text
from cutslots.report.evaluation import markdown_table, number

BEGIN, END = "<!-- results -->", "<!-- /results -->"
SCORES = {
    "ari_fg": "ARI-FG",
    "tiles_ari_fg": "tiles' ARI-FG",
    "cut_ari_fg": "cut ARI-FG",
    "ari": "ARI",
    "miou": "mIoU",
    "mse": "MSE",
}


def results_table(folder: Path) -> str:
    """The scores that `cutslots evaluate --json` wrote below a folder, as markdown, in the order of the files' names.

    A row a model and set; of several files in one folder, runs with other seeds, the mean and the sample standard deviation.
    """
    rows: dict[tuple[str, ...], list[_Scored]] = {}
    for path in sorted(folder.glob("*/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "trained_on" in found:
            for each in found["sets"]:
                scores = each["scores"] | {
                    f"tiles_{name}": value for name, value in each.get("tiles", {}).items()
                }
                model = found.get("architecture") or path.stem
                key = (
                    path.parent.name,
                    model,
                    found["trained_on"],
                    each["name"],
                    each["split"],
                    each["digest"],
                )
                rows.setdefault(key, []).append(
                    _Scored(path.relative_to(folder.parent), found, scores)
                )
    header = ["trained on", "scored on", "model", "runs", "images", "size", *SCORES.values()]
    return markdown_table(header, [_row(key, runs) for key, runs in rows.items()], left=3) + "\n"


@dataclass(frozen=True)
class _Scored:
    """A file's scores on one of its sets."""

    path: Path
    found: Mapping[str, Any]
    scores: Mapping[str, float]


def _row(key: tuple[str, ...], runs: Sequence[_Scored]) -> list[str]:
    _, model, trained_on, name, split, _ = key
    link = (runs[0].path if len(runs) == 1 else runs[0].path.parent).as_posix()
    images, size = runs[0].scores["num_images"], runs[0].found["image_size"]
    cells = [
        _mean(score, [run.scores[score] for run in runs if score in run.scores]) for score in SCORES
    ]
    return [
        trained_on,
        f"{name}, {split}",
        f"[{model}]({link})",
        f"{len(runs)}",
        f"{images:,.0f}",
        f"{size}",
        *cells,
    ]


def _mean(score: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    text = number(score, {score: statistics.fmean(values)})
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{text} ± {number(score, {score: spread})}" if spread else text


def put_table(text: str, table: str) -> str:
    """A text with the table between its marks.

    Raises:
        InputError: the marks are not there, once and in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after:
        raise InputError(
            f"the text needs one line {BEGIN} and one line {END} after it, for the table to stand between."
        )
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the table of a README anew; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cutslots.report.results", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "readme", type=Path, help="a text with the two marks; results/ lies beside it"
    )
    readme = parser.parse_args(arguments).readme
    return exit_status(
        lambda: write_text(
            readme,
            put_table(readme.read_text(encoding="utf-8"), results_table(readme.parent / "results")),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
