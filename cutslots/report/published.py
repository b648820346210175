"""Published figures: the one place where they are typed in, each with its source and how it was made.

Scores are by our names and in our units: ARI-FG, ARI and mIoU as fractions where the publications have per cent, MSE summed over an
image in [0, 1] of 128 x 128.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cutslots.tracking import Record

SIZE = 128  # of the images in all tables, in pixels
# CLEVR's and ClevrTex's own test sets have 15,000 and 5,000 images; the other two sets have thousands.
NUM_IMAGES = {"clevr": 15_000, "clevrtex": 5_000, "clevrtex_outd": 1_000, "clevrtex_camo": 1_000}

BENCHMARK = "the ClevrTex benchmark's preparation and definitions, test split, 128 x 128"
TABLE_1, TABLE_2 = "Pervez et al. 2023, Table 1", "Pervez et al. 2023, Table 2"
WILDER = "Wilder et al. 2018, Table 1"
PAPER = "min-cut slots (the paper)"
LABELS = {
    PAPER: "Ours",
    "GENESIS-V2": "Gen. V2",
}  # where the tables' first column says it otherwise


@dataclass(frozen=True)
class Row:
    """What was published of one method on one set.

    Attributes:
        model: the model's name in `cutslots.models` where it has one, else a short form of `method`.
        dataset: the set, by the names of `cutslots evaluate`.
        trained_on: the set of the training data, by the same names.
        scores: by our names and in our units.
        spread: the published +-, by score; what it is says `protocol`.
        source: publication and table.
        protocol: how the figures were made.
        split: None where it is not said.
        num_images: how many images they are a mean over, at least; 0 where it was not found.
        differs: in what these figures never are like those of `cutslots evaluate`; empty where they can be.
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
        """The source without the row's own label."""
        return self.source.partition(", row ")[0]


# mIoU, ARI-FG (per cent) and MSE on CLEVR, ClevrTex, its out-of-distribution and its camouflaged set; the models of the last two
# were trained on ClevrTex.
_TABLE_1_SETS = ("clevr", "clevrtex", "clevrtex_outd", "clevrtex_camo")
_TABLE_1: dict[str, tuple[str, tuple[float, ...]]] = {
    "SPAIR": ("spair", (65.95, 77.13, 55, 0.0, 0.00, 1101, 0.0, 0.00, 1166, 0.0, 0.0, 668)),
    "SPACE": ("space", (26.31, 22.75, 63, 9.14, 17.53, 298, 6.87, 12.71, 387, 8.67, 10.55, 251)),
    "GNM": ("gnm", (59.92, 65.05, 43, 42.25, 53.37, 383, 40.84, 48.43, 626, 17.56, 15.73, 353)),
    "MN": ("mn", (56.81, 72.12, 75, 10.46, 38.31, 335, 12.13, 37.29, 409, 8.79, 31.52, 265)),
    "DTI": ("dti", (48.74, 89.54, 77, 33.79, 79.90, 438, 32.55, 73.67, 590, 27.54, 72.90, 377)),
    "GENESIS-V2": (
        "genesis_v2",
        (9.48, 57.90, 158, 7.93, 31.19, 315, 8.74, 29.04, 539, 7.49, 29.60, 278),
    ),
    "eMORL": ("emorl", (21.98, 93.25, 26, 30.17, 45.00, 347, 25.03, 43.13, 546, 19.53, 42.34, 315)),
    "MONet": ("monet", (30.66, 54.47, 58, 19.78, 36.66, 146, 19.30, 32.97, 231, 10.52, 12.44, 112)),
    "IODINE": (
        "iodine",
        (45.14, 93.81, 44, 29.16, 59.52, 340, 26.28, 53.20, 504, 17.52, 36.31, 315),
    ),
    "Slot Attention": (
        "slot_attention",
        (36.61, 95.89, 23, 22.58, 62.40, 254, 20.98, 58.45, 487, 19.83, 57.54, 215),
    ),
    PAPER: ("min_cut_slots", (49.04, 95.40, 14, 42.4, 80.2, 207, 38.0, 72.6, 577, 38.9, 75.5, 189)),
}

_MOVI_PROTOCOL = (
    "all frames of a clip jointly; 24 frames, crop 0.8, 128 x 128; the split is not said"
)
_MOVI_DIFFERS = ("the split of the published figures is not said",)
# ARI-FG and ARI, per cent. The paper has them of whole clips, which are our video scores.
_TABLE_2 = {"Slot Attention": ("slot_attention", 4.2, 0.3), PAPER: ("min_cut_video", 65.6, 77.7)}

_CORA_PROTOCOL = "true edges matched: 27 instances of 50 x 50, 80/20, 30 random splits, +- is a bootstrapped 95 % interval"
_CORA_DIFFERS = ("the published instances are not available, ours were made anew",)
# The mean and half of the interval.
_CORA = {
    "equality program (the paper)": (7.01, 1.15, "Pervez et al. 2023, section 6.2"),
    "NN2-Decision": (6.15, 0.38, WILDER),
    "RF-2Stage": (3.66, 0.26, WILDER),
    "NN2-2Stage": (3.49, 0.32, WILDER),
    "NN1-2Stage": (2.99, 0.76, WILDER),
    "NN1-Decision": (2.50, 0.56, WILDER),
    "random": (2.45, 0.64, WILDER),
}


def _fraction(per_cent: float) -> float:
    return round(per_cent / 100, 6)


def _table_1() -> Iterator[Row]:
    for method, (model, figures) in _TABLE_1.items():
        for at, dataset in enumerate(_TABLE_1_SETS):
            miou, ari_fg, mse = figures[3 * at : 3 * at + 3]
            yield Row(
                method=method,
                model=model,
                dataset=dataset,
                trained_on=dataset.partition("_")[0],
                scores={"ari_fg": _fraction(ari_fg), "miou": _fraction(miou), "mse": mse},
                source=f'{TABLE_1}, row "{LABELS.get(method, method)}"',
                protocol=BENCHMARK,
                num_images=NUM_IMAGES[dataset],
            )


def _table_2() -> Iterator[Row]:
    for method, (model, ari_fg, ari) in _TABLE_2.items():
        yield Row(
            method=method,
            model=model,
            dataset="movi_a",
            trained_on="movi_a",
            scores={"video_ari_fg": _fraction(ari_fg), "video_ari": _fraction(ari)},
            source=f'{TABLE_2}, row "{LABELS.get(method, method)}"',
            protocol=_MOVI_PROTOCOL,
            split=None,
            differs=_MOVI_DIFFERS,
        )


def _cora() -> Iterator[Row]:
    for method, (mean, half, source) in _CORA.items():
        yield Row(
            method=method,
            model="matching" if method.startswith("equality") else _slug(method),
            dataset="cora",
            trained_on="cora",
            scores={"mean": mean},
            source=source,
            protocol=_CORA_PROTOCOL,
            spread={"mean": half},
            differs=_CORA_DIFFERS,
        )


def _later() -> Iterator[Row]:
    """What was published, or measured by others, after the paper."""
    yield Row(
        method="min-cut slots, the authors' checkpoint",
        model="min_cut_slots",
        dataset="clevrtex",
        trained_on="clevrtex",
        scores={"ari_fg": 0.8025, "miou": 0.4242, "ari": 0.5153, "mse": 207.43},
        source="the checkpoint that Pervez et al. published, evaluated by them",
        protocol=BENCHMARK,
        num_images=NUM_IMAGES["clevrtex"],
    )
    yield Row(
        method="AST-Seg-B3-CT",
        model="ast_seg",
        dataset="clevr",
        trained_on="clevr",
        scores={"ari_fg": 0.983, "miou": 0.903},
        spread={"ari_fg": 0.001, "miou": 0.002},
        source="Sauvalle and de La Fortelle 2023, arXiv:2205.13271",
        protocol="their own, +- as they give it",
        differs=("their protocol was not compared with ours",),
    )
    akorn = {
        "clevrtex": (0.885, 0.009),
        "clevrtex_outd": (0.877, 0.005),
        "clevrtex_camo": (0.770, 0.005),
    }
    for dataset, (ari_fg, spread) in akorn.items():
        yield Row(
            method="Large AKOrN",
            model="akorn",
            dataset=dataset,
            trained_on="clevrtex",
            scores={"ari_fg": ari_fg},
            spread={"ari_fg": spread},
            source="Miyato et al. 2025, README of github.com/autonomousvision/akorn",
            protocol="clustered features, MBO in place of mIoU, +- as they give it",
            differs=("clusters of features are scored, not masks of a decoder",),
        )
    yield Row(
        method="SAVi, unconditional",
        model="savi",
        dataset="movi_a",
        trained_on="movi_a",
        scores={"video_ari_fg": 0.703},
        source="re-run by a user: github.com/google-research/slot-attention-video, issue 12",
        protocol="SAVi's: all frames of a clip jointly, background left away; no conditioning",
        split=None,
        differs=(
            "re-run by a user with settings of their own, in SAVi's preparation of the frames",
        ),
    )


def _slug(method: str) -> str:
    return "_".join("".join(sign if sign.isalnum() else " " for sign in method.lower()).split())


ROWS: tuple[Row, ...] = (*_table_1(), *_table_2(), *_cora(), *_later())


def rows(dataset: str | None = None) -> list[Row]:
    """The rows of a set, of all sets without one."""
    return [row for row in ROWS if dataset in (None, row.dataset)]


def paper_row(dataset: str) -> Row | None:
    """The paper's own row for a set; None where it has none."""
    return next((row for row in ROWS if row.dataset == dataset and row.method == PAPER), None)


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
    """The ways in which figures of ours were made otherwise than a row; None stands for what is not known.

    Args:
        image_size: the side at which ours were scored.
        num_images: how many images ours are a mean over.
        trained_on: the set of our model's training data.
        first: the number of our split's first record.
        prepared: what our set was prepared with in place of a default.
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
    """The rows as runs of a tracking store: one a method and training set, its figures on all sets under `SET/SPLIT/SCORE`.

    That is how our own runs are made and named, so that a comparison of runs has the same figures in the same lines. Cora's figures
    are named as those of its own runs.
    """
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in ROWS:
        runs.setdefault((row.method, row.trained_on), []).append(row)
    return [_record(found) for found in runs.values()]


def _record(found: Sequence[Row]) -> Record:
    head = found[0]
    metrics: dict[str, float] = {}
    for row in found:
        # A clip's split that is not said stands beside ours on val, which is where SAVi and its followers evaluate.
        front = "" if row.dataset == "cora" else f"{row.dataset}/{row.split or 'val'}/"
        for score, value in row.scores.items():
            metrics[f"{front}{score}"] = value
            if score not in row.spread:
                continue
            half = row.spread[score]
            low_high = {
                "interval_low": round(value - half, 6),
                "interval_high": round(value + half, 6),
            }
            metrics |= low_high if row.dataset == "cora" else {f"{front}{score}_spread": half}
    sources = "; ".join(dict.fromkeys(row.source for row in found))
    protocols = "; ".join(dict.fromkeys(row.protocol for row in found))
    differs = "; ".join(dict.fromkeys(reason for row in found for reason in row.differs))
    return Record(
        key=f"published-{_slug(head.method)}-{head.trained_on}",
        name=f"published: {head.method}, {head.trained_on}",
        tags={
            "published": "true",
            "method": head.method,
            "model": head.model,
            "dataset": head.trained_on,
            "set": head.trained_on,
            "source": sources,
            "protocol": protocols,
            "not_comparable": differs or "as far as the protocol says, comparable",
            "mlflow.note.content": f"Published figures, not a run. Source: {sources}. Protocol: {protocols}.",
        },
        metrics=metrics,
    )
