"""Constants of a layer where its data is."""

import numpy as np
import torch
from torch import Tensor


class Tables:
    """Arrays made once in float64 and moved once to each device and precision that asks: no step waits for a copy."""

    def __init__(self, *arrays: np.ndarray | Tensor) -> None:
        self._arrays = tuple(torch.as_tensor(array) for array in arrays)
        self._made: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def on(self, like: Tensor) -> tuple[Tensor, ...]:
        """The arrays on `like`'s device, real numbers in its precision."""
        key = like.device, like.dtype
        if key not in self._made:
            # Made for all later steps, also when the first one runs in inference mode.
            with torch.inference_mode(False):
                self._made[key] = tuple(
                    array.to(like.device, like.dtype if array.is_floating_point() else array.dtype)
                    for array in self._arrays
                )
        return self._made[key]
