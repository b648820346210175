"""The processes that train one model together; all use of torch.distributed is in this file."""

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; with one process all methods are no-ops.

    All ranks must call the same methods in the same order, as each method waits for the others.
    If a rank raises outside `agreed` and `from_first`, the others wait until its process ends
    (gloo) or the launcher, such as Ray Train, ends the group (NCCL).

    Attributes:
        rank: 0 to size - 1; rank 0 writes and reports.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

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
        return {name: sum(each.get(name, 0.0) for each in gathered) for name in gathered[0]}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result, or raise its exception, on every rank."""
        value: Any = None
        with self.agreed():
            if self.is_first:
                value = make()
        if self.size > 1:
            box = [value]
            distributed.broadcast_object_list(box, 0)
            value = box[0]
        return value

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise on every rank what the body raises on any: the exception of the lowest rank.

        The body must not call other methods. A KeyboardInterrupt ends its own rank at once.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        sent = error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            sent = RuntimeError(f"rank {self.rank} raised {type(error).__name__}: {error}")
        raised = [(rank, other) for rank, other in enumerate(self.gather(sent)) if other]
        if raised:
            rank, other = raised[0]
            raise error if error and rank == self.rank else other

    def synchronised(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module`, which returns a loss, with gradients averaged over the ranks by backward."""
        if self.size == 1:
            return module
        wrap = nn.parallel.DistributedDataParallel
        # Buffers are computed alike on all ranks (BatchNorm2d of cutslots.nn) and need not be
        # sent at every step; newer versions of torch renamed that option.
        names = ("forward_sync_buffers", "broadcast_buffers")
        name = names[names[0] not in inspect.signature(wrap).parameters]
        devices = [device] if device.type == "cuda" else None
        unsynced: dict[str, Any] = {name: False}
        return wrap(module, devices, gradient_as_bucket_view=True, **unsynced)
