"""Batch normalisation over the global batch, on any device."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutslots.nn import shares


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with its state; where ranks share a batch, mean and variance are those of all of it, as on one rank.

    `torch.nn.SyncBatchNorm` does the same on GPUs only, and a checkpoint shall mean the same everywhere.
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        share = shares.current()
        if not self.training or share.size == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = _Mean.apply(x.mean((0, 2, 3)), share)
        x = x - mean[:, None, None]
        variance = _Mean.apply(x.square().mean((0, 2, 3)), share)
        self._follow(mean.detach(), variance.detach(), share.size * x[:, 0].numel())
        scaled = x * (self.weight * torch.rsqrt(variance + self.eps))[:, None, None]
        return (scaled + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as torch does, the variance without its bias."""
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        )  # noqa: PT018
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _Mean(torch.autograd.Function):
    """The mean over shares. Its gradient is the mean too, as what training minimises is the mean of the shares' losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, share: shares.Share) -> Tensor:
        ctx.share = share
        return share.mean(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.share.mean(gradients[0]), None
