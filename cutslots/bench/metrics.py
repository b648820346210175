"""Scores of a batch of label maps at once, against a loop over its images with scikit-learn."""

import argparse
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cutslots.bench._timing import machine, median_seconds
from cutslots.errors import InputError
from cutslots.metrics import ari, ari_fg, miou, segmentation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=64, help="images in the batch (default 64)")
    parser.add_argument("--size", type=int, default=128, help="side of the images (default 128)")
    parser.add_argument(
        "--masks", type=int, default=12, help="true masks and slots of an image (default 12)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures."""
    try:
        from sklearn.metrics import adjusted_rand_score
        from sklearn.metrics.cluster import contingency_matrix
    except ImportError:
        raise InputError(
            "the loop to compare with needs scikit-learn. Run: pip install scikit-learn"
        ) from None

    def loop_miou(true: np.ndarray, pred: np.ndarray) -> float:
        table = np.asarray(contingency_matrix(true, pred)).astype(
            float
        )  # of the labels that occur, so every pair counts
        union = table.sum(1, keepdims=True) + table.sum(0) - table
        return float(
            (table / union)[linear_sum_assignment(table / union, maximize=True)].sum()
            / max(table.shape)
        )

    def loop_ari_fg(true: np.ndarray, pred: np.ndarray) -> float:
        return adjusted_rand_score(true[true > 0], pred[true > 0])

    true, pred = _label_maps(arguments.images, arguments.size, arguments.masks)
    pairs = [(t.ravel(), p.ravel()) for t, p in zip(true.numpy(), pred.numpy(), strict=True)]
    figures: dict[str, Any] = {"machine": machine(), "scores": {}}
    print(
        f"{arguments.images} images of {arguments.size} x {arguments.size}, {arguments.masks} masks",
        end=", ",
    )
    print(f"{figures['machine']['threads']} threads")
    print(f"{'':<8}{'batch ms':>10}{'loop ms':>10}{'ratio':>8}{'largest difference':>21}")
    apart = 0.0
    for name, batched, one in (
        ("ARI", ari, adjusted_rand_score),
        ("ARI-FG", ari_fg, loop_ari_fg),
        ("mIoU", miou, loop_miou),
    ):
        difference = max(
            abs(float(score) - one(*pair))
            for score, pair in zip(batched(true, pred), pairs, strict=True)
        )
        fast = median_seconds(lambda batched=batched: batched(true, pred), 21)
        slow = median_seconds(lambda one=one: [one(*pair) for pair in pairs], 3, 1)
        figures["scores"][name] = {
            "batch_seconds": fast,
            "loop_seconds": slow,
            "ratio": slow / fast,
            "difference": difference,
        }
        print(
            f"{name:<8}{1e3 * fast:>10.2f}{1e3 * slow:>10.1f}{slow / fast:>8.0f}{difference:>21.1e}"
        )
        apart += slow
    together = median_seconds(lambda: segmentation(true, pred), 21)
    print(f"{'all':<8}{1e3 * together:>10.2f}{1e3 * apart:>10.1f}{apart / together:>8.0f}")
    return {**figures, "batch_seconds": together, "loop_seconds": apart, "ratio": apart / together}


def _label_maps(images: int, size: int, masks: int) -> tuple[Tensor, Tensor]:
    """True blocks and a prediction that agrees with them on four pixels of five, in the types that evaluation has."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(masks, (images, -(-size // 8), -(-size // 8)), generator=generator)
    true = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :size, :size].contiguous()
    noise = torch.randint(masks, true.shape, generator=generator)
    agree = torch.rand(true.shape, generator=generator) < 0.8
    return true.to(torch.uint8), torch.where(agree, (true + 1) % masks, noise)
