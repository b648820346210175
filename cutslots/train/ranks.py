"""Several processes that train one model together, and what they tell each other: everything of torch.distributed is here."""

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
    """Which of how many processes this is. With one nothing below does anything.

    With more, all ranks must call the same methods in the same order; each method waits for the others. A rank that ends
    elsewhere than in `agreed` leaves the others waiting until its process is gone (gloo) or their launcher ends them (NCCL).

    Attributes:
        rank: 0 to size - 1; rank 0 is the one that writes and reports.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> "Ranks":
        """The ranks of torch's default process group, of gloo or NCCL, which the launcher has joined; one rank where there is none.

        Over NCCL the launcher has also chosen each process's GPU by `torch.cuda.set_device`.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the ranks, bit for bit the same on all. No gradient passes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(_device() if _nccl() else tensor.device, copy=True)
        distributed.all_reduce(total)
        return total.div_(self.size).to(tensor.device)

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers by name, summed over the ranks. Rank 0 has all the names; a rank that lacks one adds nothing to it."""
        if self.size == 1:
            return dict(values)
        names = self.from_first(lambda: list(values))
        assert values.keys() <= set(names), f"rank 0 lacks {sorted(values.keys() - set(names))}"
        total = torch.tensor(
            [values.get(name, 0.0) for name in names], dtype=torch.float64, device=_device()
        )
        distributed.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self._largest(int(flag)) > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; it is called there only, and what it raises is raised on every rank."""
        value: Any = None
        with self.agreed():
            if self.is_first:
                value = make()
        return self._given(value, 0)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What the body raises on any rank is raised on every rank: of several errors that of the lowest rank.

        The body may not speak to other ranks. An interrupt is not waited with; it ends its own rank at once.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = self._largest(0 if error is None else self.size - self.rank)
        if not failed:
            return
        lowest = self.size - failed
        told: Any = self._given(None if error is None else _portable(error, self.rank), lowest)
        raise error if error is not None and lowest == self.rank else told

    def synchronised(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module`, which returns a loss, with gradients that are means over the ranks after its backward pass."""
        if self.size == 1:
            return module
        wrap = nn.parallel.DistributedDataParallel
        # Buffers move alike on all ranks (`cutslots.nn.batch_shard`) and need no sending at every step; torch renamed that option.
        renamed = "forward_sync_buffers" in inspect.signature(wrap).parameters
        unsent: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return wrap(
            module,
            [device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **unsent,
        )

    def _largest(self, number: int) -> int:
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=_device())
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def _given(self, value: T, source: int) -> T:
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, source, device=_device())
        return box[0]


def _nccl() -> bool:
    return distributed.get_backend() == "nccl"


def _device() -> torch.device:
    """Where what ranks tell each other has to lie."""
    return torch.device("cuda", torch.cuda.current_device()) if _nccl() else torch.device("cpu")


def _portable(error: Exception, rank: int) -> Exception:
    """An error as another process can raise it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"rank {rank} ended with {type(error).__name__}: {error}")
    return error
