"""Parameters for the published model, by a formula, and what the published code computes with them.

`published.npz`: names and shapes of its tensors in their order; slots, alpha and images of two
images in evaluation mode (every 32nd pixel of alpha and of the slots' images, every 16th of the
reconstruction); the losses in both modes, and the norms of the gradients in training mode. The
published code (alpz/graph-ocl, commit d5d533c) computed them in float64, with an exact solution of
its quadratic program.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = dict(np.load(Path(__file__).with_name("published.npz")))
TENSORS: list[tuple[str, list[int]]] = json.loads(str(REFERENCE["tensors"]))


def published_state() -> dict[str, Tensor]:
    """The state_dict in float64, without position grids and `num_batches_tracked`."""
    return {name: _tensor(name, shape, i) for i, (name, shape) in enumerate(TENSORS)}


def _tensor(name: str, shape: list[int], index: int) -> Tensor:
    x = torch.from_numpy(np.random.default_rng([20230501, index]).standard_normal(shape))
    if name.endswith("running_var"):
        return 1 + 0.1 * x.abs()
    if len(shape) == 1:  # scales of normalisations, means, biases
        return 0.1 * x + name.endswith("weight")
    return x * (2 / x[0].numel()) ** 0.5


def published_images() -> Tensor:
    """The two images, `(2, 3, 128, 128)` in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(20230502).uniform(-1, 1, (2, 3, 128, 128)))
