"""The README of an exported model: what it is, where it comes from, how good it is, how to use it."""

from collections.abc import Mapping
from typing import Any

from cutslots.report.evaluation import TITLES, number
from cutslots.train.config import RunConfig

FACTS = {
    "run": "run",
    "trained_on": "trained on",
    "step": "step",
    "signature": "signature of configuration and data",
    "data_digest": "digest of the data",
    "commit": "commit of the code that trained it",
    "weights": "digest of the weights",
    "version": "exported by cutslots",
}
PROGRAM = "model.pt2"


def model_card(
    name: str,
    config: RunConfig,
    num_parameters: int,
    known: Mapping[str, Any],
    program: bool | None = None,
) -> str:
    """The card as markdown.

    Args:
        known: what `cutslots.runs.provenance` says of the model, `weights` and `version`; what is missing is left out.
        program: whether a call of the program may have any number of images, or has one; None without a program.
    """
    size = config.model.image_size
    slots = getattr(config.model, "num_slots", None)
    into = f" into at most {slots} slots" if slots else ""
    lines = [
        f"# {name}",
        "",
        f"A `{config.model_name}` of cutslots that divides images of {size} x {size}{into}; {num_parameters:,} parameters.",
        "The options are in `config.json`, the weights in `weights.safetensors`; neither holds code.",
        "",
        *_table(
            ["what", "which"],
            [
                [title, str(known[key])]
                for key, title in FACTS.items()
                if known.get(key) is not None
            ],
        ),
        "",
        "## Scores",
        "",
        *_scores(known.get("scores", {})),
        "",
        "## Use",
        "",
        *_use(config, size),
        *([] if program is None else _program(size, "N" if program else "1")),
    ]
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not scores:
        return ["None are known."]
    names = [name for name in TITLES if any(name in each for each in scores.values())]
    rows = [
        [
            where,
            f"{each['num_images']:,.0f}" if "num_images" in each else "",
            *(number(name, each) for name in names),
        ]
        for where, each in scores.items()
    ]
    return [
        *_table(["on", "images", *(TITLES[name] for name in names)], rows),
        "",
        "ARI-FG, ARI and mIoU of the decoder's masks, cut of the cut masks; MSE summed over an image in [0, 1]. Means over images,",
        "video over clips. Validation is that of the training's own set.",
    ]


def _use(config: RunConfig, size: int) -> list[str]:
    video = getattr(config.model, "frames", 1) > 1
    what = f"(frames of a clip, {size}, {size}, 3)" if video else f"(N, {size}, {size}, 3)"
    return [
        "```sh",
        "cutslots predict THIS_FOLDER PICTURES --out OUT",
        "```",
        "",
        "```python",
        "from cutslots.train import load_model, predict",
        "",
        'model = load_model("THIS_FOLDER")',
        f"found = predict(model, images)  # uint8 {what}, or a whole multiple of that size",
        'found["masks"]  # uint8, the slot of every pixel',
        "```",
    ]


def _program(size: int, many: str) -> list[str]:
    return [
        "",
        f"`{PROGRAM}` needs torch alone. Load such a file only when you trust where it is from.",
        "",
        "```python",
        "import torch",
        "",
        f'program = torch.export.load("THIS_FOLDER/{PROGRAM}").module()',
        f"found = program(images)  # uint8 ({many}, {size}, {size}, 3), on the CPU",
        "```",
    ]
