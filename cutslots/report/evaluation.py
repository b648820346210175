"""The table of a model's scores on one or several sets, beside the published ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from cutslots import options
from cutslots.data import Manifest, sources
from cutslots.metrics.registry import METRICS, title
from cutslots.report.published import differences, paper_row

TILES = "fixed tiles"
TITLES = {name: title(name) for name in METRICS if name != "mse_mean"}


def set_name(manifest: Manifest) -> str:
    """The source and what was chosen in place of a default among its options of few words: clevrtex_outd, scenes_textured."""
    words = (
        str(manifest.options[option.path]) for option in _changed(manifest) if "|" in option.range
    )
    return "_".join([manifest.source, *words])


def published(
    manifest: Manifest, split: str, num_images: int, image_size: int, trained_on: str | None
) -> dict[str, Any] | None:
    """The paper's row for a set, None where there is none; `cutslots.report.published` has those of other methods.

    Args:
        num_images: how many images ours is a mean over.
        image_size: at which they were scored.
        trained_on: the set of the model's training data by `set_name`, as far as known; the published models were trained on the
            default set of the source.

    Returns:
        `scores`, `split` (empty where it is not said), `source`, and `not_comparable`, the ways in which ours was made otherwise.
    """
    row = paper_row(set_name(manifest))
    if row is None:
        return None
    reasons = differences(
        row,
        image_size=image_size,
        split=split,
        num_images=num_images,
        trained_on=trained_on,
        first=manifest.ranges.get(split, (0, None))[0],
        prepared=[
            f"{each.path} {manifest.options[each.path]}"
            for each in _changed(manifest)
            if "|" not in each.range
        ],
    )
    return {
        "scores": dict(row.scores),
        "split": row.split or "",
        "source": row.source,
        "not_comparable": reasons,
    }


def scores_table(found: Mapping[str, Any]) -> str:
    """What `cutslots evaluate --json` writes as markdown: a row a set and split, how it was made, and a table a breakdown."""
    return (
        "\n\n".join([_main_table(found["sets"]), _about(found), *_breakdowns(found["sets"])]) + "\n"
    )


def _changed(manifest: Manifest) -> list[options.Option]:
    """The options of the source that the set was not prepared with as they are by default."""
    if manifest.source not in sources.names():
        return []
    defaults = options.describe(sources.load(manifest.source).Options())
    return [
        option
        for option in defaults
        if manifest.options.get(option.path, option.value) != option.value
    ]


def _main_table(sets: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        name: title
        for name, title in TITLES.items()
        if any(name in each["scores"] for each in sets)
    }
    rows = []
    for each in sets:
        count = f"{each['scores']['num_images']:,.0f}"
        rows.append(
            [
                each["name"],
                each["split"],
                count,
                *(number(name, each["scores"]) for name in columns),
            ]
        )
        if each.get("tiles"):  # not in files of before
            rows.append(
                [
                    f"{TILES}: {each['name']}",
                    each["split"],
                    count,
                    *(number(name, each["tiles"]) for name in columns),
                ]
            )
        if each["published"]:
            theirs = each["published"]["scores"]
            numbers = (f"{theirs[name]:g}" if name in theirs else "" for name in columns)
            rows.append([f"published: {each['name']}", each["published"]["split"], "", *numbers])
    return markdown_table(["set", "split", "images", *columns.values()], rows, left=2)


def _about(found: Mapping[str, Any]) -> str:
    made = (
        [f"signature {found['signature']}", f"step {found['step']:,}"]
        if "signature" in found
        else ["an exported model"]
    )
    trained = [f"trained on {found['trained_on']}"] if found["trained_on"] else []
    about = ", ".join([*made, *trained, f"cutslots commit {found['commit'] or 'unknown'}"])
    side = found["image_size"]
    kinds = {name for each in found["sets"] for name in each["scores"]}
    scored = "ARI-FG, ARI and mIoU are those of the alpha masks" + (
        ", cut of the cut masks" if "cut_ari_fg" in kinds else ""
    )
    scored += f"; MSE is summed over an image in [0, 1] of {side} x {side}. Means over images."
    if "video_ari_fg" in kinds:
        scored += " Frames of clips are images; video is of all frames of a clip as one image, means over clips."
    if any(each.get("tiles") for each in found["sets"]):
        scored += " Fixed tiles: a square grid, the same on every image, of at most as many tiles as the model has slots; a model that"
        scored += " scores no more has found no objects."
    lines = [
        f"Model {found['model']}: {about}.",
        scored,
        "",
        *(_about_set(each, side) for each in found["sets"]),
    ]
    return "\n".join(lines)


def _about_set(each: Mapping[str, Any], side: int) -> str:
    height, width = each["stored_size"]
    size = f"{height} x {width}" + (f", scored at {side} x {side}" if side != height else "")
    line = f"- {each['name']}: digest {each['digest']}, {size}."
    line += "".join(f" {note}." for note in each["notes"])
    if each["published"]:
        reasons = each["published"]["not_comparable"]
        line += f" Published: {each['published']['source']}" + (
            f"; not comparable: {'; '.join(reasons)}." if reasons else "."
        )
    return line


def _breakdowns(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table a set and key, the worst value first."""
    found = []
    for each in sets:
        for key, groups in each["by"].items():
            rows = sorted(groups.items(), key=lambda group: group[1]["iou"])
            columns = (
                {"iou": "IoU", "cut_iou": "cut IoU"}
                if "cut_iou" in each["objects"]
                else {"iou": "IoU"}
            )
            table = [
                [
                    name,
                    f"{means['num_objects']:,.0f}",
                    *(number(column, means) for column in columns),
                ]
                for name, means in [*rows, ("all objects", each["objects"])]
            ]
            found += [
                f"{each['name']} {each['split']}, objects by {key}",
                markdown_table([key, "objects", *columns.values()], table, 1),
            ]
    if found:
        found.append(
            "IoU of an object: with the mask that mIoU's assignment gives it; means over objects."
        )
    return found


def number(name: str, scores: Mapping[str, float]) -> str:
    """A score as tables have it, empty where it is not there."""
    if name not in scores:
        return ""
    return f"{scores[name]:.2f}" if name.endswith("mse") else f"{scores[name]:.4f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A markdown table that is aligned as it stands: the first `left` columns to the left, the others to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [
        max(2, *map(len, column)) for column in zip(*cells, strict=True)
    ]  # a rule to the right needs two signs
    lines = [
        [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    lines.insert(
        1,
        ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)],
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
