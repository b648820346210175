"""The table of a model's scores on one or several datasets, beside published results."""

from collections.abc import Mapping, Sequence
from typing import Any

from cutslots.data import Manifest
from cutslots.data.sources import changed_options, dataset_name
from cutslots.metrics.registry import METRICS, title
from cutslots.report.published import differences, paper_row
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
    row = paper_row(dataset_name(manifest))
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
        "not_comparable": reasons,
    }


def scores_table(result: Mapping[str, Any]) -> str:
    """The JSON of `cutslots evaluate` as Markdown: scores, how they were made, object groups."""
    datasets = result["sets"]
    names = [name for name in SCORES if any(name in d["scores"] for d in datasets)]
    rows = []
    for dataset in datasets:
        name, split, scores = dataset["name"], dataset["split"], dataset["scores"]
        images = f"{scores['num_images']:,.0f}"
        rows.append([name, split, images, *(score_text(n, scores.get(n)) for n in names)])
        if tiles := dataset.get("tiles"):  # missing in older files
            texts = (score_text(n, tiles.get(n)) for n in names)
            rows.append([f"fixed tiles: {name}", split, images, *texts])
        if paper := dataset["published"]:
            numbers = (f"{paper['scores'][n]:g}" if n in paper["scores"] else "" for n in names)
            rows.append([f"published: {name}", paper["split"], "", *numbers])
    numeric = ["images", *map(title, names)]
    table = Table(["dataset", "split", *numeric], rows, right=numeric).markdown()
    groups = _object_groups(datasets)
    return "\n".join([table, _provenance(result, names), *groups])


def _provenance(result: Mapping[str, Any], names: Sequence[str]) -> str:
    facts = ["an exported model"]
    if "signature" in result:
        facts = [f"run hash {result['signature']}", f"step {result['step']:,}"]
    if result["trained_on"]:
        facts.append(f"trained on {result['trained_on']}")
    facts.append(f"cutslots commit {result['commit'] or 'unknown'}")
    side = result["image_size"]
    cut = "; cut scores are of the cut masks" if "cut_ari_fg" in names else ""
    about = [
        f"Model {result['model']}: {', '.join(facts)}.",
        f"ARI-FG, ARI and mIoU are of the alpha masks{cut}. MSE is summed over an image in [0, 1]"
        f" of {side} x {side}. Means over images.",
    ]
    if "video_ari_fg" in names:
        about[-1] += (
            " Frames of clips are images; video scores treat all frames of a clip as one image and"
            " are means over clips."
        )
    if any(dataset.get("tiles") for dataset in result["sets"]):
        about[-1] += (
            " Fixed tiles: one square grid for every image, with at most as many tiles as the"
            " model has slots. A model that scores no better has not found objects."
        )
    about.append("")
    for dataset in result["sets"]:
        height, width = dataset["stored_size"]
        line = f"- {dataset['name']}: digest {dataset['digest']}, {height} x {width}"
        line += f", scored at {side} x {side}." if side != height else "."
        line += "".join(f" {note}." for note in dataset["notes"])
        if paper := dataset["published"]:
            reasons = "; ".join(paper["not_comparable"])
            line += f" Published: {paper['source']}"
            line += f"; not comparable: {reasons}." if reasons else "."
        about.append(line)
    return "\n".join(about) + "\n"


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
