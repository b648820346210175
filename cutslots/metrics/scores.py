"""The scores of an evaluation: ARI-FG, ARI and mIoU from one contingency table, and MSE."""

from jaxtyping import Float, Integer
from torch import Tensor

from cutslots.metrics.clustering import adjusted_rand, contingency
from cutslots.metrics.iou import matched_iou


def segmentation(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_slots: int | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """`ari_fg`, `ari` and `miou` of each image, equal to those functions at a third of the cost.

    Args:
        true, pred, num_slots: see `miou`.
    """
    table = contingency(true, pred, num_slots)
    return {
        "ari_fg": adjusted_rand(table[:, 1:]),
        "ari": adjusted_rand(table),
        "miou": matched_iou(table),
    }


def mse(
    image: Float[Tensor, "batch 3 height width"],
    reconstruction: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, " batch"]:
    """Squared error SUMMED over channels and pixels of each image; values in [0, 1], not clamped.

    At 128 x 128 this is the number of the published tables; divide by 3 H W for the mean.

    Source: the ClevrTex benchmark's evaluator.
    """
    return (image.double() - reconstruction.double()).square().sum((1, 2, 3))
