"""What all layers use: input checks, constants on each device, and one autograd function."""

import math
from collections.abc import Callable
from typing import Any

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

    Raises InputError for integers; under `torch.autograd.detect_anomaly()` also for a number that
    is not finite. A check at every step would wait for the GPU, and such a number only spoils its
    own program.
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
        self._arrays = [torch.as_tensor(array) for array in arrays]
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def on(self, like: Tensor) -> tuple[Tensor, ...]:
        """The arrays on `like`'s device; floating-point ones in its precision."""
        key = like.device, like.dtype
        if key not in self._copies:
            # The copies outlive an inference mode in which the first step may run.
            with torch.inference_mode(False):
                dtypes = (like.dtype if x.is_floating_point() else x.dtype for x in self._arrays)
                copies = zip(self._arrays, dtypes, strict=True)
                self._copies[key] = tuple(x.to(like.device, dtype) for x, dtype in copies)
        return self._copies[key]


class LinearMap(torch.autograd.Function):
    """A linear map whose derivative is its transpose: `LinearMap.apply(map, transpose, *inputs)`.

    The derivative of the transpose is the map again, so one function is both, to any order. The
    maps get detached tensors.
    """

    @staticmethod
    def forward(ctx: Any, apply: Callable, transpose: Callable, *inputs: Tensor) -> Any:
        ctx.maps = apply, transpose
        # Here and not around the call: the backward pass may run in another autocast region.
        with torch.autocast(inputs[0].device.type, enabled=False):
            return apply(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        apply, transpose = ctx.maps
        result = LinearMap.apply(transpose, apply, *grads)
        return None, None, *(result if isinstance(result, tuple) else (result,))
