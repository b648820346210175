"""Which part of the global batch a forward sees, when several processes ("ranks") each take an equal share of it.

What a model draws or averages over the batch has to be the same for one rank and for many. The parts that do so (`noise`,
`batch_norm`, GENESIS-V2's multiplier) ask `current()`; `fit` says it around every step with `of`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Share(Protocol):
    """One of `size` equal shares, cut in the order of `rank`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the shares. No gradient passes."""
        ...


@dataclass(frozen=True)
class Whole:
    """The batch as it is: the only share."""

    rank: int = 0
    size: int = 1

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor


_share: ContextVar[Share] = ContextVar("share", default=Whole())  # noqa: B039 (it is frozen)


def current() -> Share:
    """The share that the forward at hand sees; the whole batch unless `of` says otherwise."""
    return _share.get()


@contextmanager
def of(share: Share) -> Iterator[None]:
    """While it lasts, forwards in this thread see `share`."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)
