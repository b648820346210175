"""Scores of label maps, all from one batched contingency table, and of reconstructions.

Label maps are integers >= 0, `(batch, height, width)`; scores are float64, one per image.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Labels = Integer[Tensor, "batch height width"]
Scores = Float[Tensor, " batch"]
Table = Integer[Tensor, "batch true pred"]
Images = Float[Tensor, "batch 3 height width"]


def segmentation(true: Labels, pred: Labels, num_slots: int | None = None) -> dict[str, Scores]:
    """`ari_fg`, `ari`, `miou` and `miou_fg` of each image, as those functions return them.

    All come from one contingency table and one assignment.

    Args:
        true, pred, num_slots: see `miou`.
    """
    table = contingency(true, pred, num_slots)
    iou, occupied = _matched_iou(table)
    return {
        "ari_fg": _adjusted_rand(table[:, 1:]),
        "ari": _adjusted_rand(table),
        "miou": _mean_iou(iou, occupied, table.device),
        "miou_fg": _mean_iou(iou[:, 1:], occupied[:, 1:], table.device),
    }


def ari(true: Labels, pred: Labels) -> Scores:
    """Adjusted Rand index over all pixels: 1 for the same partition, about 0 for a random one.

    Returns:
        In [-1, 1]; 1 if neither map splits anything.

    Source: Hubert and Arabie, Comparing partitions (1985), in the pair-counting form; equals
    scikit-learn's `adjusted_rand_score`.
    """
    return _adjusted_rand(contingency(true, pred))


def ari_fg(true: Labels, pred: Labels) -> Scores:
    """Adjusted Rand index over the pixels whose true label is > 0 (ARI-FG).

    Returns:
        In [-1, 1]. With one true object: 1 if the prediction keeps it whole, 0 if it is split;
        without objects: 1.

    Source: the ClevrTex benchmark's definition, which the paper's Table 1 uses.
    """
    return _adjusted_rand(contingency(true, pred)[:, 1:])


def miou(true: Labels, pred: Labels, num_slots: int | None = None) -> Scores:
    """Mean IoU over ALL masks, background included, under the one-to-one assignment of true and
    predicted masks with the largest sum.

    Args:
        num_slots: number of masks of the model, empty ones included (default: the largest label
            + 1). It matters only if several assignments are equally good.

    Returns:
        In [0, 1]: the sum of matched IoUs over the number of matched pairs in which either mask is
        non-empty, so a spare non-empty slot counts as 0.

    Source: the ClevrTex benchmark's evaluator (its `mIoU`); the definition of the paper's own row
    of Table 1, by the code published with it.
    """
    return _mean_iou(*_matched_iou(contingency(true, pred, num_slots)), true.device)


def miou_fg(true: Labels, pred: Labels, num_slots: int | None = None) -> Scores:
    """Mean IoU without the background: the assignment of `miou`, less the pair of true mask 0.

    Args:
        true, pred, num_slots: see `miou`.

    Returns:
        In [0, 1]: the sum of the other pairs' IoUs over the number of them in which either mask is
        non-empty; 1 if there is none, in an image without objects and spare slots.

    Source: the ClevrTex benchmark's evaluator (its `mIoU_fg`, which divides by the number of all
    non-empty pairs less 1: the same wherever the background has a pixel). Very probably the
    definition of the baselines' rows in the paper's Table 1.
    """
    iou, occupied = _matched_iou(contingency(true, pred, num_slots))
    return _mean_iou(iou[:, 1:], occupied[:, 1:], true.device)


def object_iou(
    true: Labels, pred: Labels, num_slots: int | None = None
) -> Float[Tensor, "batch objects"]:
    """IoU of every true object with its partner in `miou`'s assignment, which need not be the mask
    that overlaps the object best.

    Returns:
        In [0, 1]; column k - 1 is the object of id k, up to the largest id of the batch. 0 if the
        partner does not touch the object, NaN if the object has no pixel.

    Source: the ClevrTex benchmark's evaluator, its `obj_iou`.
    """
    table = contingency(true, pred, num_slots)
    iou = torch.from_numpy(_matched_iou(table)[0]).to(table.device)[:, 1 : table.shape[1]]
    return iou.masked_fill(table[:, 1:].sum(2) == 0, torch.nan)


def mse(image: Images, reconstruction: Images) -> Scores:
    """Squared error SUMMED over channels and pixels of each image; values in [0, 1], not clamped.

    At 128 x 128 this is the number of the published tables; divide by 3 H W for the mean.

    Source: the ClevrTex benchmark's evaluator.
    """
    return (image.double() - reconstruction.double()).square().sum((1, 2, 3))


def contingency(true: Labels, pred: Labels, num_pred: int | None = None) -> Table:
    """Number of pixels with each pair of labels, up to the largest label of the batch.

    Args:
        num_pred: minimum width of the table's last axis.
    """
    if not true.numel():
        return true.new_zeros(true.shape[0], 1, num_pred or 1, dtype=torch.int64)
    library: Any = torch
    arrays: Any = (torch.arange(len(true), device=true.device)[:, None, None], true, pred)
    if true.device.type == "cpu":
        # numpy stays in this thread; torch would split each line over threads, and on a busy
        # machine waiting for the last one takes longer than the whole count.
        library, arrays = np, [array.numpy() for array in arrays]
    image, row, column = arrays
    num_true = int(row.max()) + 1
    num_pred = max(num_pred or 1, int(column.max()) + 1)
    cell = image * num_true + row
    cell *= num_pred
    cell += column
    counts = library.bincount(cell.reshape(-1), minlength=len(true) * num_true * num_pred)
    return torch.as_tensor(counts).view(-1, num_true, num_pred)


def _adjusted_rand(table: Table) -> Scores:
    table = table.double()
    total = table.sum((1, 2))
    together = table.square().sum((1, 2))
    same_true, same_pred = table.sum(2).square().sum(1), table.sum(1).square().sum(1)
    both = together - total
    only_pred, only_true = same_pred - together, same_true - together
    neither = total.square() - same_true - same_pred + together
    true_margin = (both + only_true) * (only_true + neither)
    pred_margin = (both + only_pred) * (only_pred + neither)
    score = 2 * (both * neither - only_true * only_pred) / (true_margin + pred_margin)
    return torch.where((only_true == 0) & (only_pred == 0), torch.ones_like(score), score)


def _mean_iou(iou: np.ndarray, occupied: np.ndarray, device: torch.device) -> Scores:
    pairs = occupied.sum(1)
    return torch.from_numpy(np.where(pairs > 0, iou.sum(1) / np.maximum(pairs, 1), 1)).to(device)


def _matched_iou(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each true mask with its partner, and whether either has a pixel: `(batch, masks)`."""
    # Padded to a square, as in the benchmark: every mask gets a partner, possibly an empty one.
    size = max(table.shape[1:])
    padding = (0, size - table.shape[2], 0, size - table.shape[1])
    table = torch.nn.functional.pad(table, padding).double()
    true_area, pred_area = table.sum(2), table.sum(1)
    union = true_area[:, :, None] + pred_area[:, None, :] - table
    iou = torch.where(union > 0, table / union, torch.zeros_like(table)).cpu().numpy()
    partner = np.array([linear_sum_assignment(image, maximize=True)[1] for image in iou], int)
    partner = partner.reshape(len(iou), size)
    matched = np.take_along_axis(iou, partner[:, :, None], axis=2)[:, :, 0]
    partner_area = np.take_along_axis(pred_area.cpu().numpy(), partner, axis=1)
    return matched, (true_area.cpu().numpy() > 0) | (partner_area > 0)
