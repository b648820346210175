"""The adjusted Rand index of label maps, from one batched contingency table."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor


def contingency(
    true: Integer[Tensor, "batch height width"],
    pred: Integer[Tensor, "batch height width"],
    num_pred: int | None = None,
) -> Integer[Tensor, "batch true pred"]:
    """Number of pixels with each pair of labels (>= 0), up to the largest label of the batch.

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


def ari(
    true: Integer[Tensor, "batch height width"], pred: Integer[Tensor, "batch height width"]
) -> Float[Tensor, " batch"]:
    """Adjusted Rand index over all pixels: 1 for the same partition, about 0 for a random one.

    Args:
        true, pred: label maps, integers >= 0 whose values are names only.

    Returns:
        float64 in [-1, 1]; 1 if neither map splits anything.

    Source: Hubert and Arabie, Comparing partitions (1985), in the pair-counting form; equals
    scikit-learn's `adjusted_rand_score`.
    """
    return adjusted_rand(contingency(true, pred))


def ari_fg(
    true: Integer[Tensor, "batch height width"], pred: Integer[Tensor, "batch height width"]
) -> Float[Tensor, " batch"]:
    """Adjusted Rand index over the pixels whose true label is > 0 (ARI-FG).

    Returns:
        float64 in [-1, 1]. With one true object: 1 if the prediction keeps it whole, 0 if it is
        split; without objects: 1.

    Source: the ClevrTex benchmark's definition, which the paper's Table 1 uses.
    """
    return adjusted_rand(contingency(true, pred)[:, 1:])


def adjusted_rand(table: Integer[Tensor, "batch true pred"]) -> Float[Tensor, " batch"]:
    """Adjusted Rand index of contingency tables; see `ari`."""
    table = table.double()
    total = table.sum((1, 2))
    together = table.square().sum((1, 2))
    same_true, same_pred = table.sum(2).square().sum(1), table.sum(1).square().sum(1)
    both = together - total
    only_pred, only_true = same_pred - together, same_true - together
    neither = total.square() - same_true - same_pred + together
    denominator = (both + only_true) * (only_true + neither) + (both + only_pred) * (
        only_pred + neither
    )
    score = 2 * (both * neither - only_true * only_pred) / denominator
    return torch.where((only_true == 0) & (only_pred == 0), torch.ones_like(score), score)
