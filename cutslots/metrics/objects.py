"""Scores of single objects: how well the predicted mask fits that was matched to each of them."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cutslots.metrics.clustering import contingency
from cutslots.metrics.iou import matching


def object_iou(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_slots: int | None = None,
) -> Float[Tensor, "batch objects"]:
    """IoU of every true object with the mask that `miou`'s assignment gives it.

    The assignment maximises the sum of IoUs over ALL masks, background included, so an object's partner need not be the mask that
    overlaps it best.

    Args:
        true, pred, num_slots: see `miou`.

    Returns:
        float64 in [0, 1]; column k - 1 is the object of id k, as many as the largest id of the batch. 0 for an object whose
        partner does not touch it or has no pixel, NaN where no pixel shows the object.

    Source: the ClevrTex benchmark's evaluator, its `obj_iou`.
    """
    table = contingency(true, pred, num_slots)
    iou, _ = matching(table)
    objects = torch.from_numpy(iou).to(table.device)[:, 1 : table.shape[1]]
    return objects.masked_fill(table[:, 1:].sum(2) == 0, torch.nan)
