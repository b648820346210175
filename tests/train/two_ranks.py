"""Two processes that are ranks of one group over gloo, and what they are asked to do: a module, as the processes import it."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cutslots.train import Callback, Ranks, RunConfig, fit

TIMEOUT = 120.0


class TwoRanks:
    """Calls functions of modules in both ranks at once. One group serves many calls, as starting it takes seconds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(2)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function(ranks, *arguments)` in both."""
        for pipe in self.pipes:
            pipe.send((function, arguments))

    def results(self) -> list[Any]:
        """What each returned or raised."""
        for pipe in self.pipes:
            assert pipe.poll(TIMEOUT), "a rank does not answer"
        return [pipe.recv() for pipe in self.pipes]

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each returns."""
        self.start(function, *arguments)
        found = self.results()
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found

    def fail(self, function: Callable[..., Any], *arguments: Any) -> Exception:
        """What both raise, which must be the same."""
        self.start(function, *arguments)
        first, second = self.results()
        assert isinstance(first, Exception), "rank 0 raised nothing"
        assert (type(second), str(second)) == (type(first), str(first))
        return first

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


class Recorder(Callback):
    """Keeps what `fit` says. Its rank is known once it trains."""

    rank = 0

    def __init__(self) -> None:
        self.values, self.scores, self.examples, self.paths, self.lines = [], [], [], [], []

    def on_start(self, start):
        self.start = start

    def on_log(self, step, values):
        self.values.append((step, dict(values)))

    def on_evaluate(self, step, scores, sample):
        self.scores.append((step, dict(scores)))

    def on_improve(self, step, examples):
        self.examples.append((step, examples.roles))

    def on_save(self, step, path, best):
        self.paths.append((step, path.name, best))

    def on_message(self, message):
        self.lines.append(message)


def train(
    ranks: Ranks,
    config: RunConfig,
    data: Path,
    run: Path,
    resume: bool = False,
    stop: Callable[[int], bool] | None = None,
    recorder: Recorder | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """`fit` on one rank or as one of several, and what there is to compare. Ranks share no folder.

    Args:
        stop: is given the rank.
    """
    folder = run if ranks.is_first else run.with_name(f"{run.name}-elsewhere")
    recorder = recorder or Recorder()
    recorder.rank = ranks.rank
    asked = None if stop is None else lambda: stop(ranks.rank)
    result = fit(
        config, data, folder, recorder, device=device, resume=resume, ranks=ranks, stop=asked
    )
    assert folder.exists() == ranks.is_first
    return {
        **vars(recorder),
        "step": result.step,
        "best": result.best,
        "parameters": {
            name: value.detach().cpu().numpy() for name, value in result.model.named_parameters()
        },
        "buffers": {name: value.cpu().numpy() for name, value in result.model.named_buffers()},
        "random": torch.get_rng_state().numpy(),
    }


def _serve(rank: int, folder: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["CUTSLOTS_FACTORS"] = str(folder / "factors")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2
    )
    while True:
        function, arguments = pipe.recv()
        try:
            found = function(Ranks.joined(), *arguments)
        except Exception as error:
            found = error
        pipe.send(found)
