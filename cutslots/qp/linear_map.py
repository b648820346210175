"""The autograd function of every linear solve."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
