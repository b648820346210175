"""Random numbers inside a model: fresh in training, fixed in evaluation."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cutslots.nn import shares

SEED = 0


def drawn(
    draw: Callable[..., Tensor], batch: int, *shape: int, fresh: bool, device: torch.device
) -> Tensor:
    """`(batch, *shape)` random numbers of `draw`, which is `torch.randn` or `torch.rand`.

    With `fresh`, as in training, they come from torch's global generator, which `fit` seeds and checkpoints keep. Where ranks share
    a batch, each draws for all of it and keeps its share: an image gets the numbers that it would get on one rank, and the
    generators of all ranks stay alike. Without `fresh`, as in evaluation, every image gets the same numbers: what a model says of
    an image then depends neither on the batch it came in, nor on the device, nor on what was drawn before.
    """
    if fresh:
        share = shares.current()
        return draw(share.size * batch, *shape, device=device)[
            share.rank * batch : (share.rank + 1) * batch
        ]
    return _fixed(draw, shape).to(device).expand(batch, *shape)


@functools.lru_cache(maxsize=16)
def _fixed(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    """Drawn once: a program that is traced holds the numbers, not a generator that goes on from call to call."""
    with torch.inference_mode(False):
        return draw(*shape, generator=torch.Generator().manual_seed(SEED))
