"""Mean intersection over union of label maps under the best one-to-one assignment."""

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
    """Mean IoU over ALL masks, background included, matched by the assignment that maximises the sum of IoUs.

    Args:
        true, pred: label maps, integers >= 0.
        num_slots: how many masks the model has, empty ones included (default: the largest label that occurs + 1). It matters
            only where several assignments are equally good.

    Returns:
        float64 in [0, 1]: the sum of matched IoUs over the number of matched pairs in which either mask is non-empty, so a spare
        non-empty slot counts as 0.

    Source: the ClevrTex benchmark's evaluator, which the paper's Table 1 uses.
    """
    return matched_iou(contingency(true, pred, num_slots))


def matched_iou(table: Integer[Tensor, "batch true pred"]) -> Float[Tensor, " batch"]:
    """Mean IoU of contingency tables; see `miou`."""
    iou, occupied = matching(table)
    return torch.from_numpy(iou.sum(1) / np.maximum(occupied.sum(1), 1)).to(table.device)


def matching(table: Integer[Tensor, "batch true pred"]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of `miou`'s assignment in contingency tables.

    Returns:
        For every true mask, and as many empty ones as it takes to give every predicted mask a partner: the IoU with its partner,
        float64 `(batch, masks)`, and whether one of the two has a pixel, bool `(batch, masks)`.
    """
    size = max(table.shape[1:])
    # Padded to a square, as the benchmark does: every mask gets a partner, if need be an empty one.
    table = torch.nn.functional.pad(
        table, (0, size - table.shape[2], 0, size - table.shape[1])
    ).double()
    true_area, pred_area = table.sum(2), table.sum(1)
    union = true_area[:, :, None] + pred_area[:, None, :] - table
    iou = torch.where(union > 0, table / union, torch.zeros_like(table)).cpu().numpy()
    partner = (
        np.stack([linear_sum_assignment(image, maximize=True)[1] for image in iou])
        if len(iou)
        else np.zeros((0, size), int)
    )
    matched = np.take_along_axis(iou, partner[:, :, None], axis=2)[:, :, 0]
    partner_area = np.take_along_axis(pred_area.cpu().numpy(), partner, axis=1)
    return matched, (true_area.cpu().numpy() > 0) | (partner_area > 0)
