"""What `fit` measures from step to step."""

import contextlib
import time
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from cutslots.data.batches import Batch
from cutslots.train.ranks import Ranks


class Meter:
    """Means since the last reading, over all ranks; kept on the device so that a step never waits for the host."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._reset()

    def waiting(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        """Pass batches on and count the time spent waiting for them."""
        with contextlib.closing(batches):
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

    def add(self, loss: Tensor, norm: Tensor, num_images: int) -> None:
        """Take in a step: this rank's loss and number of images, and the gradient norm, which all ranks share."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.num_images += self.ranks.size * num_images

    def first_bad(self) -> int | None:
        """How many steps ago, 0 for the last, loss or gradient first was not finite on any rank since the previous check; None if
        never."""
        if self.checked == len(self.losses):
            return None
        losses, norms = (
            torch.stack(values[self.checked :]) for values in (self.losses, self.norms)
        )
        if self.ranks.size > 1:
            losses = self.ranks.mean(losses)
            self.losses[self.checked :] = losses.unbind()
        finite = losses.isfinite() & norms.isfinite()
        self.checked = len(self.losses)
        return None if bool(finite.all()) else len(finite) - 1 - int((~finite).int().argmax())

    def read(self) -> dict[str, float]:
        """The means since the last reading; `first_bad` has been asked since the last step: it makes losses those of all ranks."""
        assert self.checked == len(self.losses)
        seconds = time.perf_counter() - self.since - self.away
        values = {
            "loss": float(torch.stack(self.losses).mean()),
            "gradient_norm": float(torch.stack(self.norms).mean()),
            "images_per_second": self.num_images / seconds,
            "data_wait_share": self.waited / seconds,
            "model_share": self.worked / seconds,
        }
        self._reset()
        return {name: total / self.ranks.size for name, total in self.ranks.sum(values).items()}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not the steps'."""
        start = time.perf_counter()
        yield
        self.away += time.perf_counter() - start

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.num_images = self.checked = 0
        self.waited = self.worked = self.away = 0.0
        self.since = time.perf_counter()
