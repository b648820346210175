"""What `fit` measures from step to step."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from cutslots.train.ranks import Ranks


class Meter:
    """Means since the last reading, over all ranks; losses stay on the device, so that a step does
    not wait for the GPU."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.num_images = self.checked = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = time.perf_counter()

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the body's time as "data", "model", or "pause", which is left out of all shares."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def add(self, loss: Tensor, norm: Tensor, num_images: int) -> None:
        """Count a step: this rank's loss and images, and the gradient norm of all ranks."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.num_images += self.ranks.size * num_images

    def first_bad(self) -> int | None:
        """How many steps ago (0: the last) loss or gradient norm first was not finite on any rank
        since the previous call; None if they all were."""
        if self.checked == len(self.losses):
            return None
        losses = self.ranks.mean(torch.stack(self.losses[self.checked :]))
        norms = torch.stack(self.norms[self.checked :])
        self.losses[self.checked :] = losses.unbind()
        finite = losses.isfinite() & norms.isfinite()
        self.checked = len(self.losses)
        return None if bool(finite.all()) else len(finite) - 1 - int((~finite).int().argmax())

    def read(self) -> dict[str, float]:
        """The means since the last reading. `first_bad` comes first: it averages over ranks."""
        seconds = time.perf_counter() - self.since - self.seconds["pause"]
        values = {
            "loss": float(torch.stack(self.losses).mean()),
            "gradient_norm": float(torch.stack(self.norms).mean()),
            "images_per_second": self.num_images / seconds,
            "data_wait_share": self.seconds["data"] / seconds,
            "model_share": self.seconds["model"] / seconds,
        }
        self._reset()
        return {name: total / self.ranks.size for name, total in self.ranks.sum(values).items()}
