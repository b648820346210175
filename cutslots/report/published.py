"""Published results, from `published.csv`.

Scores have our names and units: ARI-FG, ARI and mIoU are fractions where publications print per
cent, mIoU without the background is mIoU_fg, MSE is summed over an image in [0, 1] of 128 x 128. A
`_spread` column has the published +- of a score; `num_images` is the least number of images that a
row is a mean over.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from cutslots.report.scored_run import ScoredRun, Split, trained_on
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
    """How results of ours differ in protocol from a row, besides `row.differs`; None is unknown.

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
    return [reason for reason, holds in reasons.items() if holds]


def known_differences(
    published: Sequence[Row], runs: Sequence[ScoredRun], split: Split
) -> list[str]:
    """Known differences of our runs from published rows; with a count if not all runs differ."""
    differing: dict[str, set[str]] = {}
    for row in published:
        for run in runs:
            side = run.params.get("model.image_size", "")
            reasons = differences(
                row,
                image_size=int(side) if side.isdigit() else None,
                split=split[1],
                num_images=run.scores[split].get("num_images"),
                trained_on=trained_on(run),
            )
            for reason in reasons:
                differing.setdefault(reason, set()).add(run.run_id)
    return [
        reason if len(ids) == len(runs) else f"{reason} ({len(ids)} of {len(runs)} runs)"
        for reason, ids in differing.items()
    ]


def labels(published: Sequence[Row]) -> list[str]:
    """Names of published rows in tables: `published: METHOD [a]`, with a letter per publication."""
    marks = _marks(published)
    return [f"published: {row.method} [{marks[row.publication]}]" for row in published]


def notes(published: Sequence[Row], differs: Sequence[str]) -> list[str]:
    """Sources and protocols of published rows, and what is known to differ in our runs."""
    lines = []
    for publication, mark in _marks(published).items():
        group = [row for row in published if row.publication == publication]
        protocols = [row.protocol for row in group]
        texts = dict.fromkeys(protocols + [text for row in group for text in row.differs])
        lines.append(f"[{mark}] {publication}. Protocol: {'; '.join(texts)}.")
    if published:
        listed = "; ".join(differs) or "none, except possibly how the dataset was prepared"
        lines.append(f"Published rows are not ranked. Known differences of our runs: {listed}.")
    return lines


def _marks(published: Sequence[Row]) -> dict[str, str]:
    """A letter per publication, in the order of the rows."""
    return {name: chr(ord("a") + i) for i, name in enumerate({r.publication: 0 for r in published})}


def records() -> list[Record]:
    """The rows as MLflow runs: one per method and training dataset, scores as DATASET/SPLIT/SCORE.

    Our runs are logged under the same names, so MLflow compares both line by line. Cora's scores
    have the names of Cora runs.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in ROWS:
        runs.setdefault((row.method, row.trained_on), []).append(row)
    records = []
    for (method, dataset), group in runs.items():
        metrics: dict[str, float] = {}
        for row in group:
            # An unstated split of clips is logged as val, where SAVi and followers evaluate.
            prefix = "" if row.dataset == "cora" else f"{row.dataset}/{row.split or 'val'}/"
            metrics |= {f"{prefix}{score}": value for score, value in row.scores.items()}
            for score, half in row.spread.items():
                if row.dataset == "cora":
                    metrics["interval_low"] = round(row.scores[score] - half, 6)
                    metrics["interval_high"] = round(row.scores[score] + half, 6)
                else:
                    metrics[f"{prefix}{score}{SPREAD}"] = half
        sources = "; ".join(dict.fromkeys(row.source for row in group))
        protocols = "; ".join(dict.fromkeys(row.protocol for row in group))
        differs = "; ".join(dict.fromkeys(reason for row in group for reason in row.differs))
        tags = {
            "published": "true",
            "method": method,
            "model": group[0].model,
            "dataset": dataset,
            "set": dataset,
            "source": sources,
            "protocol": protocols,
            "not_comparable": differs or "as far as the protocol says, comparable",
            "mlflow.note.content": "Published results, not a run."
            f" Source: {sources}. Protocol: {protocols}.",
        }
        slug = "_".join("".join(c if c.isalnum() else " " for c in method.lower()).split())
        key, name = f"published-{slug}-{dataset}", f"published: {method}, {dataset}"
        records.append(Record(key, name, tags, metrics))
    return records
