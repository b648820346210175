"""Published results, from `published.csv`.

Scores have our names and units: ARI-FG, ARI and mIoU are fractions where publications print per
cent, MSE is summed over an image in [0, 1] of 128 x 128. A `_spread` column has the published +-
of a score; `num_images` is the least number of images that a row is a mean over.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from cutslots.tracking import Record

SIZE = 128  # pixels; image side in all tables
PAPER = "min-cut slots (the paper)"
SPREAD = "_spread"
TEXTS = ("method", "model", "dataset", "trained_on", "split", "source", "protocol", "differs")


@dataclass(frozen=True)
class Row:
    """A published result of one method on one dataset.

    Attributes:
        model: the name in `cutslots.models` if it has one, else a short form of `method`.
        dataset, trained_on: names as in `cutslots evaluate`.
        scores: by our names and in our units.
        spread: the published +- by score; `protocol` explains it.
        source: publication and table.
        split: None if the publication does not state it.
        num_images: the mean is over at least this many images; 0 if unknown.
        differs: why these results are never comparable with `cutslots evaluate`.
    """

    method: str
    model: str
    dataset: str
    trained_on: str
    scores: Mapping[str, float]
    source: str
    protocol: str
    spread: Mapping[str, float] = field(default_factory=dict)
    split: str | None = "test"
    num_images: int = 0
    differs: Sequence[str] = ()

    @property
    def publication(self) -> str:
        """The source without the row's label."""
        return self.source.partition(", row ")[0]


def _read() -> tuple[Row, ...]:
    with (resources.files("cutslots.report") / "published.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for line in lines:
        texts = {name: line.pop(name) for name in TEXTS}
        num_images = int(line.pop("num_images") or 0)
        numbers = {name: float(text) for name, text in line.items() if text}
        spread = {n.removesuffix(SPREAD): v for n, v in numbers.items() if n.endswith(SPREAD)}
        scores = {name: value for name, value in numbers.items() if not name.endswith(SPREAD)}
        texts |= {"split": texts["split"] or None}
        differs = tuple(filter(None, [texts.pop("differs")]))
        row = Row(**texts, scores=scores, spread=spread, num_images=num_images, differs=differs)
        rows.append(row)
    return tuple(rows)


ROWS = _read()


def rows(dataset: str | None = None) -> list[Row]:
    """The rows of a dataset, or all rows."""
    return [row for row in ROWS if dataset in (None, row.dataset)]


def paper_row(dataset: str) -> Row | None:
    """The paper's row for a dataset; None if it has none."""
    return next((row for row in rows(dataset) if row.method == PAPER), None)


def differences(
    row: Row,
    *,
    image_size: int | None,
    split: str,
    num_images: float | None,
    trained_on: str | None,
    first: int = 0,
    prepared: Sequence[str] = (),
) -> list[str]:
    """How results of ours differ in protocol from a row; None means unknown.

    Args:
        image_size: side at which ours were scored.
        num_images: number of images in our mean.
        trained_on: dataset of our model's training data.
        first: index of our split's first record.
        prepared: options of our dataset that differ from the defaults.
    """
    few = num_images is not None and num_images < row.num_images
    reasons = {
        f"scored at {image_size} x {image_size}, published at {SIZE} x {SIZE}": image_size
        not in (None, SIZE),
        **{f"prepared with {change}": True for change in prepared},
        f"split {split}, published on {row.split}": row.split not in (None, split),
        f"records from {first:,} on, published from the first on": split == row.split and first > 0,
        f"{num_images or 0:,.0f} images, published on at least {row.num_images:,}": few,
        f"the model was trained on {trained_on}": trained_on not in (None, row.trained_on),
    }
    return [*(reason for reason, holds in reasons.items() if holds), *row.differs]


def records() -> list[Record]:
    """The rows as MLflow runs: one per method and training dataset, scores as DATASET/SPLIT/SCORE.

    Our runs are logged under the same names, so MLflow compares both line by line. Cora's scores
    have the names of Cora runs.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in ROWS:
        runs.setdefault((row.method, row.trained_on), []).append(row)
    return [_record(method, trained_on, group) for (method, trained_on), group in runs.items()]


def _record(method: str, trained_on: str, rows: Sequence[Row]) -> Record:
    metrics: dict[str, float] = {}
    for row in rows:
        # An unstated split of clips is logged as val, where SAVi and followers evaluate.
        prefix = "" if row.dataset == "cora" else f"{row.dataset}/{row.split or 'val'}/"
        metrics |= {f"{prefix}{score}": value for score, value in row.scores.items()}
        for score, half in row.spread.items():
            if row.dataset == "cora":
                metrics["interval_low"] = round(row.scores[score] - half, 6)
                metrics["interval_high"] = round(row.scores[score] + half, 6)
            else:
                metrics[f"{prefix}{score}{SPREAD}"] = half
    sources = "; ".join(dict.fromkeys(row.source for row in rows))
    protocols = "; ".join(dict.fromkeys(row.protocol for row in rows))
    differs = "; ".join(dict.fromkeys(reason for row in rows for reason in row.differs))
    slug = "_".join("".join(c if c.isalnum() else " " for c in method.lower()).split())
    note = f"Published results, not a run. Source: {sources}. Protocol: {protocols}."
    return Record(
        key=f"published-{slug}-{trained_on}",
        name=f"published: {method}, {trained_on}",
        tags={
            "published": "true",
            "method": method,
            "model": rows[0].model,
            "dataset": trained_on,
            "set": trained_on,
            "source": sources,
            "protocol": protocols,
            "not_comparable": differs or "as far as the protocol says, comparable",
            "mlflow.note.content": note,
        },
        metrics=metrics,
    )
