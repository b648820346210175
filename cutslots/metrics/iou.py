"""Intersection over union of label maps under the best one-to-one assignment."""

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cutslots.metrics.clustering import contingency


def miou(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_slots: int | None = None,
) -> Float[Tensor, " batch"]:
    """Mean IoU over ALL masks, background included, under the assignment with the largest sum.

    Args:
        true, pred: label maps, integers >= 0.
        num_slots: number of masks of the model, empty ones included (default: the largest label
            + 1). It matters only if several assignments are equally good.

    Returns:
        float64 in [0, 1]: the sum of matched IoUs over the number of matched pairs in which either
        mask is non-empty, so a spare non-empty slot counts as 0.

    Source: the ClevrTex benchmark's evaluator, which the paper's Table 1 uses.
    """
    return matched_iou(contingency(true, pred, num_slots))


def object_iou(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_slots: int | None = None,
) -> Float[Tensor, "batch objects"]:
    """IoU of every true object with its partner in `miou`'s assignment.

    The partner need not be the mask that overlaps the object best, as the assignment maximises the
    sum over all masks.

    Args:
        true, pred, num_slots: see `miou`.

    Returns:
        float64 in [0, 1]; column k - 1 is the object of id k, up to the largest id of the batch.
        0 if the partner does not touch the object, NaN if the object has no pixel.

    Source: the ClevrTex benchmark's evaluator, its `obj_iou`.
    """
    table = contingency(true, pred, num_slots)
    iou = torch.from_numpy(_matching(table)[0]).to(table.device)[:, 1 : table.shape[1]]
    return iou.masked_fill(table[:, 1:].sum(2) == 0, torch.nan)


def matched_iou(table: Integer[Tensor, "batch true pred"]) -> Float[Tensor, " batch"]:
    """Mean IoU of contingency tables; see `miou`."""
    iou, occupied = _matching(table)
    return torch.from_numpy(iou.sum(1) / np.maximum(occupied.sum(1), 1)).to(table.device)


def _matching(table: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each true mask with its partner, and whether either has a pixel: `(batch, masks)`."""
    # Padded to a square, as in the benchmark: every mask gets a partner, possibly an empty one.
    size = max(table.shape[1:])
    padding = (0, size - table.shape[2], 0, size - table.shape[1])
    table = torch.nn.functional.pad(table, padding).double()
    true_area, pred_area = table.sum(2), table.sum(1)
    union = true_area[:, :, None] + pred_area[:, None, :] - table
    iou = torch.where(union > 0, table / union, torch.zeros_like(table)).cpu().numpy()
    partner = np.zeros((len(iou), size), int)
    for image, row in zip(iou, partner, strict=True):
        row[:] = linear_sum_assignment(image, maximize=True)[1]
    matched = np.take_along_axis(iou, partner[:, :, None], axis=2)[:, :, 0]
    partner_area = np.take_along_axis(pred_area.cpu().numpy(), partner, axis=1)
    return matched, (true_area.cpu().numpy() > 0) | (partner_area > 0)
