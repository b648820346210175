"""What the layers ask of the numbers they get."""

import math

import torch
from torch import Tensor

from cutslots.errors import InputError


def positive(name: str, value: float) -> float:
    """`value`, if it is a positive finite number.

    Raises:
        InputError: it is not.
    """
    if not 0 < value < math.inf:
        raise InputError(
            f"{name} is {value}; programs are strictly convex only for positive finite numbers here."
        )
    return float(value)


def finite(name: str, value: float) -> float:
    """`value`, if it is a finite number.

    Raises:
        InputError: it is not.
    """
    if not math.isfinite(value):
        raise InputError(f"{name} is {value}; give a finite number.")
    return float(value)


def floating(name: str, values: Tensor) -> Tensor:
    """float32 and float64 as they come, half precisions as float32.

    Raises:
        InputError: integers; or, under `torch.autograd.detect_anomaly()`, a number that is not finite, which is named. At other
            times that spoils its own program and no other; to look for it would wait for the GPU at every step.
    """
    if not values.is_floating_point():
        raise InputError(f"{name} are {values.dtype}; give float32 or float64.")
    if torch.is_anomaly_enabled() and not values.isfinite().all():
        first = (~values.isfinite()).nonzero()[0].tolist()
        raise InputError(f"{name}{first} is {values[tuple(first)].item()}; {name} must be finite.")
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
