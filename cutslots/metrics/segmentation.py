"""The scores of label maps together, from one contingency table."""

from jaxtyping import Float, Integer
from torch import Tensor

from cutslots.metrics.clustering import adjusted_rand, contingency
from cutslots.metrics.iou import matched_iou


def segmentation(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_slots: int | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """`ari_fg`, `ari` and `miou` of each image, the same numbers as those functions give, for a third of the counting.

    Args:
        true, pred, num_slots: see `miou`.
    """
    table = contingency(true, pred, num_slots)
    return {
        "ari_fg": adjusted_rand(table[:, 1:]),
        "ari": adjusted_rand(table),
        "miou": matched_iou(table),
    }
