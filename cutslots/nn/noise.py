"""Random numbers inside a model: fresh in training, fixed in evaluation."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cutslots.nn.batch_shard import current_shard

SEED = 0
Draw = Callable[..., Tensor]


def drawn(draw: Draw, batch: int, *shape: int, fresh: bool, device: torch.device) -> Tensor:
    """`(batch, *shape)` random numbers of `draw`, which is `torch.randn` or `torch.rand`.

    With `fresh`, as in training, they come from torch's global generator, which `fit` seeds and
    checkpoints save. Each rank draws for the whole batch and keeps its shard, so an image gets the
    same numbers for any number of ranks. Without `fresh`, as in evaluation, every image gets the
    same numbers, so results do not depend on the batch, the device or earlier draws.
    """
    if not fresh:
        return _fixed(draw, shape).to(device).expand(batch, *shape)
    shard = current_shard()
    numbers = draw(shard.size * batch, *shape, device=device)
    return numbers[shard.rank * batch : (shard.rank + 1) * batch]


@functools.lru_cache(maxsize=16)
def _fixed(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    """Drawn once, so that a traced program contains the numbers and not a generator."""
    with torch.inference_mode(False):
        return draw(*shape, generator=torch.Generator().manual_seed(SEED))
