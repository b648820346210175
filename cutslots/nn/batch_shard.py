"""The shard of the global batch that this process sees, and batch normalisation over all shards.

With several processes ("ranks"), each takes an equal part of a batch. Random numbers and means over
the batch must not depend on their number: `noise.drawn`, `BatchNorm2d` and GENESIS-V2's multiplier
use `current_shard()`, which `fit` sets around every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class BatchShard:
    """Shard `rank` of the `size` equal shards of a batch: here the only one."""

    rank: int = 0
    size: int = 1

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the shards, without gradient."""
        return tensor


_shard: ContextVar[BatchShard] = ContextVar("shard", default=BatchShard())  # noqa: B039 (frozen)


def current_shard() -> BatchShard:
    """This rank's shard of the current batch (default: the whole batch)."""
    return _shard.get()


@contextmanager
def use_shard(shard: BatchShard) -> Iterator[None]:
    """Set `current_shard()` for this thread."""
    token = _shard.set(shard)
    try:
        yield
    finally:
        _shard.reset(token)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with mean and variance over all shards of the batch.

    `torch.nn.SyncBatchNorm` runs on GPUs only; a checkpoint must mean the same on every device.
    """

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        shard = current_shard()
        if not self.training or shard.size == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = _Mean.apply(x.mean((0, 2, 3)), shard)
        x = x - mean[:, None, None]
        variance = _Mean.apply(x.square().mean((0, 2, 3)), shard)
        count = shard.size * x[:, 0].numel()
        state: Any = self
        with torch.no_grad():  # running statistics as in torch, with the unbiased variance
            state.num_batches_tracked.add_(1)
            state.running_mean.lerp_(mean, self.momentum)
            state.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scaled = x * (self.weight * torch.rsqrt(variance + self.eps))[:, None, None]
        return (scaled + self.bias[:, None, None]).to(input.dtype)


class _Mean(torch.autograd.Function):
    """The mean over shards; so is its gradient, because the loss is the mean over the shards."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shard: BatchShard) -> Tensor:
        ctx.shard = shard
        return shard.mean(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.mean(gradients[0]), None
