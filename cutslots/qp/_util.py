"""Input checks of the layers, and their constants on each device."""

import math

import numpy as np
import torch
from torch import Tensor

from cutslots.errors import InputError


def positive(name: str, value: float) -> float:
    """Return `value`; raise InputError unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def finite(name: str, value: float) -> float:
    """Return `value`; raise InputError unless it is finite."""
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value}.")
    return float(value)


def floating(name: str, values: Tensor) -> Tensor:
    """Return float32 and float64 unchanged, half precisions as float32.

    Raises:
        InputError: integers; or, under `torch.autograd.detect_anomaly()`, a number that is not
            finite. Otherwise such a number only spoils its own program: a check at every step would
            wait for the GPU.
    """
    if not values.is_floating_point():
        raise InputError(f"{name} must be float32 or float64, got {values.dtype}.")
    if torch.is_anomaly_enabled() and not values.isfinite().all():
        first = (~values.isfinite()).nonzero()[0].tolist()
        raise InputError(f"{name}{first} must be finite, got {values[tuple(first)].item()}.")
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


class Tables:
    """float64 arrays, copied once to each device and precision: no step waits for a copy."""

    def __init__(self, *arrays: np.ndarray | Tensor) -> None:
        self._arrays = tuple(torch.as_tensor(array) for array in arrays)
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def on(self, like: Tensor) -> tuple[Tensor, ...]:
        """The arrays on `like`'s device; floating-point ones in its precision."""
        key = like.device, like.dtype
        if key not in self._copies:
            # The copies outlive an inference mode in which the first step may run.
            with torch.inference_mode(False):
                self._copies[key] = tuple(
                    array.to(like.device, like.dtype if array.is_floating_point() else None)
                    for array in self._arrays
                )
        return self._copies[key]
