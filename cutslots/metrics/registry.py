"""The scores of an evaluation: names in logs and JSON, titles, and which direction is better."""

from typing import NamedTuple


class Metric(NamedTuple):
    title: str
    higher_is_better: bool = True


# Masks by alpha, by the cut, over clips; each has the scores of SCORES. MSE is summed over a
# reconstruction of values in [0, 1], `mse_mean` is its mean over pixels and channels.
SCORES = {
    "ari_fg": "ARI-FG",
    "ari": "ARI",
    "miou": "mIoU",
    "miou_fg": "mIoU_fg",
    "mse": "MSE",
}
MASKS = {"": "", "cut_": "cut ", "video_": "video ", "video_cut_": "video cut "}
METRICS = {
    f"{mask}{score}": Metric(f"{mask_title}{score_title}", score != "mse")
    for mask, mask_title in MASKS.items()
    for score, score_title in SCORES.items()
} | {"mse_mean": Metric("MSE (mean)", higher_is_better=False)}


def title(name: str) -> str:
    """A score's title in tables and figures; an unknown name is its own title."""
    return METRICS[name].title if name in METRICS else name


def higher_is_better(name: str) -> bool:
    """Whether larger values of a score are better, with or without a prefix such as "val/"."""
    name = name.rpartition("/")[2]
    return METRICS[name].higher_is_better if name in METRICS else True


def better(name: str, value: float, than: float) -> bool:
    """Whether `value` is strictly better than `than`; NaN is never better."""
    return value > than if higher_is_better(name) else value < than
