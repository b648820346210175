"""The table of a model's scores on one or several datasets, beside published results."""

from collections.abc import Mapping, Sequence
from typing import Any

from cutslots.data import Manifest
from cutslots.data.sources import changed_options, dataset_name
from cutslots.metrics.registry import METRICS, title
from cutslots.report.published import PAPER, differences, rows
from cutslots.report.tables import Table, score_text

SCORES = tuple(name for name in METRICS if name != "mse_mean")  # the columns of tables, in order


def published(
    manifest: Manifest, split: str, num_images: int, image_size: int, trained_on: str | None
) -> dict[str, Any] | None:
    """The paper's row for a dataset, None if there is none.

    Args:
        num_images: number of images in our mean.
        image_size: side at which they were scored.
        trained_on: dataset of the model's training data if known; the published models were
            trained on the source's default dataset.

    Returns:
        `scores`, `split` (empty if not stated), `source`, and `not_comparable`, the known
        differences in protocol.
    """
    row = next((row for row in rows(dataset_name(manifest)) if row.method == PAPER), None)
    if row is None:
        return None
    changed = (o for o in changed_options(manifest).values() if "|" not in o.range)
    reasons = differences(
        row,
        image_size=image_size,
        split=split,
        num_images=num_images,
        trained_on=trained_on,
        first=manifest.ranges.get(split, (0, None))[0],
        prepared=[f"{option.path} {option.value}" for option in changed],
    )
    return {
        "scores": dict(row.scores),
        "split": row.split or "",
        "source": row.source,
        "not_comparable": [*reasons, *row.differs],
    }


def scores_table(result: Mapping[str, Any]) -> str:
    """The JSON of `cutslots evaluate` as Markdown: scores, how they were made, object groups."""
    datasets = result["sets"]
    names = [name for name in SCORES if any(name in d["scores"] for d in datasets)]

    def line(name: str, split: str, images: str, scores: Mapping[str, float]) -> list[str]:
        return [name, split, images, *(score_text(n, scores.get(n)) for n in names)]

    lines, origins = [], []
    side = result["image_size"]
    for dataset in datasets:
        name, split, scores = dataset["name"], dataset["split"], dataset["scores"]
        images = f"{scores['num_images']:,.0f}"
        lines.append(line(name, split, images, scores))
        if tiles := dataset.get("tiles"):  # missing in older files
            lines.append(line(f"fixed tiles: {name}", split, images, tiles))
        height, width = dataset["stored_size"]
        origin = f"- {name}: digest {dataset['digest']}, {height} x {width}"
        origin += f", scored at {side} x {side}." if side != height else "."
        origin += "".join(f" {note}." for note in dataset["notes"])
        if paper := dataset["published"]:
            texts = (f"{paper['scores'][n]:g}" if n in paper["scores"] else "" for n in names)
            lines.append([f"published: {name}", paper["split"], "", *texts])
            reasons = "; ".join(paper["not_comparable"])
            origin += f" Published: {paper['source']}"
            origin += f"; not comparable: {reasons}." if reasons else "."
        origins.append(origin)

    facts = ["an exported model"]
    if "signature" in result:
        facts = [f"run hash {result['signature']}", f"step {result['step']:,}"]
    if result["trained_on"]:
        facts.append(f"trained on {result['trained_on']}")
    facts.append(f"cutslots commit {result['commit'] or 'unknown'}")
    about = (
        "ARI-FG, ARI and mIoU are of the alpha masks; mIoU_fg leaves out the background"
        f"{'; cut scores are of the cut masks' if 'cut_ari_fg' in names else ''}. MSE is summed"
        f" over an image in [0, 1] of {side} x {side}. Means over images."
    )
    if "video_ari_fg" in names:
        about += (
            " Frames of clips are images; video scores treat all frames of a clip as one image and"
            " are means over clips."
        )
    if any(dataset.get("tiles") for dataset in datasets):
        about += (
            " Fixed tiles: one square grid for every image, with at most as many tiles as the"
            " model has slots. A model that scores no better has not found objects."
        )
    numeric = ["images", *map(title, names)]
    table = Table(["dataset", "split", *numeric], lines, right=numeric).markdown()
    text = "\n".join([f"Model {result['model']}: {', '.join(facts)}.", about, "", *origins])
    return "\n".join([table, f"{text}\n", *_object_groups(datasets)])


def _object_groups(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table per dataset and metadata key, the worst group first."""
    parts = []
    for dataset in datasets:
        total = dataset["objects"]
        for key, groups in dataset["by"].items():
            titles = {"iou": "IoU", "cut_iou": "cut IoU"}
            columns = {name: text for name, text in titles.items() if name in total}
            ordered = sorted(groups.items(), key=lambda group: group[1]["iou"])
            rows = [
                [name, f"{m['num_objects']:,.0f}", *(score_text(c, m.get(c)) for c in columns)]
                for name, m in [*ordered, ("all objects", total)]
            ]
            numeric = ["objects", *columns.values()]
            parts.append(f"{dataset['name']} {dataset['split']}, objects by {key}\n")
            parts.append(Table([key, *numeric], rows, right=numeric).markdown())
    if parts:
        parts.append(
            "IoU of an object: with the mask that mIoU assigns to it; means over objects.\n"
        )
    return parts
