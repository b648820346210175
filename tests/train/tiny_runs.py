"""Configurations that take a step in milliseconds, and a callback that records a run."""

from typing import Any

from cutslots import options
from cutslots.train import Callback, RunConfig

RUN = (
    "optim.batch_size=8",
    "train.steps=12",
    "train.seed=0",
    "train.log_every=3",
    "train.eval_every=6",
    "train.eval_images=8",
    "train.checkpoint_every=2",
)
TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    *RUN,
)
TINY_VIDEO = (*TINY, "num_slots=4", "matching.hidden=16", "optim.batch_size=4")


def changed(config: Any, *assignments: str) -> RunConfig:
    """A configuration with some options replaced."""
    for assignment in assignments:
        config = options.override(config, assignment)
    return config


class Recorder(Callback):
    """Keeps the arguments of every call; raises KeyboardInterrupt when it saves step `stop_at`."""

    rank = 0

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.values, self.scores, self.examples, self.paths, self.lines = [], [], [], [], []

    def on_start(self, start):
        self.start = start

    def on_log(self, step, values):
        self.values.append((step, dict(values)))

    def on_evaluate(self, step, scores, sample):
        self.scores.append((step, dict(scores)))
        self.sample = sample

    def on_improve(self, step, examples):
        self.examples.append((step, examples))

    def on_save(self, step, path, best):
        self.paths.append((step, path.name, best))
        if step == self.stop_at:
            raise KeyboardInterrupt

    def on_message(self, message):
        self.lines.append(message)
