"""The processes that train one model together; all use of torch.distributed is in this file."""

import inspect
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from cutslots.nn.batch_shard import BatchShard

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks(BatchShard):
    """This process among those that train together; with one process all methods are no-ops.

    All ranks must call the same methods in the same order, as each method waits for the others.
    If a rank raises outside `agreed`, the others wait until its process ends
    (gloo) or the launcher, such as Ray Train, ends the group (NCCL). Rank 0 writes and reports.
    """

    @classmethod
    def joined(cls) -> "Ranks":
        """The ranks of torch's default process group; for NCCL the launcher has also called
        `torch.cuda.set_device`. One rank if no group exists."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the ranks, bit for bit the same on all; without gradient."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total.div_(self.size)

    def gather(self, value: T) -> list[T]:
        """The picklable values of all ranks, in their order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks of the numbers that rank 0 names; a name counts 0 where missing."""
        gathered = self.gather(dict(values))
        return {name: sum(other.get(name, 0.0) for other in gathered) for name in gathered[0]}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def from_first(self, value: T) -> T:
        """The picklable value of rank 0."""
        box: list[Any] = [value]
        if self.size > 1:
            distributed.broadcast_object_list(box, 0)
        return box[0]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise on every rank what the body raises on any: the exception of the lowest rank.

        The body must not call other methods. A KeyboardInterrupt ends its own rank at once.
        """
        error: Exception | None = None
        sent: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.size == 1:
                raise
            error = sent = caught
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                sent = RuntimeError(f"rank {self.rank} raised {type(error).__name__}: {error}")
        for rank, other in enumerate(self.gather(sent)):
            if other:
                raise error if error and rank == self.rank else other

    def synchronised(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` with gradients that backward averages over the ranks."""
        if self.size == 1:
            return model
        wrap = nn.parallel.DistributedDataParallel
        # All ranks compute the same buffers (BatchNorm2d of cutslots.nn), so none are sent at every
        # step. Newer versions of torch renamed that option.
        old, new = "broadcast_buffers", "forward_sync_buffers"
        unsent: dict[str, Any] = {new if new in inspect.signature(wrap).parameters else old: False}
        devices = [device] if device.type == "cuda" else None
        return wrap(model, devices, gradient_as_bucket_view=True, **unsent)
