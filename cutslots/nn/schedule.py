"""What changes in a model while it trains."""

import torch
from torch import Tensor, nn


class Ramp(nn.Module):
    """0 for the first `wait` steps of training, then a line up to 1, `length` steps later.

    A model with a ramp calls `advance` in its loss, once per step. The number of steps is part of
    the state dict, so a resumed run continues the ramp, and a finished model stays at its end.
    It is a Python number: reading it never waits for a GPU.
    """

    def __init__(self, wait: int, length: int) -> None:
        super().__init__()
        self.wait, self.length, self.step = wait, length, 0

    @property
    def value(self) -> float:
        return min(1.0, max(0.0, (self.step - self.wait) / max(1, self.length)))

    def advance(self) -> None:
        """Count a step, in training mode only."""
        self.step += self.training

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)
