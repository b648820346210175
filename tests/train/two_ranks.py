"""Two processes that are the ranks of one gloo group; a module, as the processes import it."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_runs import Recorder

from cutslots.train import Ranks, RunConfig, fit

TIMEOUT = 120.0


class TwoRanks:
    """Calls module functions in both ranks; one group serves many calls, as it starts slowly."""

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
        """The result or the exception of each."""
        for pipe in self.pipes:
            assert pipe.poll(TIMEOUT), "a rank does not answer"
        return [pipe.recv() for pipe in self.pipes]

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The result of each."""
        self.start(function, *arguments)
        results = self.results()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def fail(self, function: Callable[..., Any], *arguments: Any) -> Exception:
        """The exception of both, which must be the same."""
        self.start(function, *arguments)
        first, second = self.results()
        assert isinstance(first, Exception), "rank 0 raised nothing"
        assert (type(second), str(second)) == (type(first), str(first))
        return first

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, folder: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["CUTSLOTS_FACTORS"] = str(folder / "factors")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = (folder / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    while True:
        function, arguments = pipe.recv()
        try:
            result = function(Ranks.joined(), *arguments)
        except Exception as error:
            result = error
        pipe.send(result)


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
    """`fit` with these ranks; its recorded calls and its end. `stop` is called with the rank.

    Only rank 0 may use the run's folder, so the ranks share none.
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
        "examples": [(step, examples.roles) for step, examples in recorder.examples],
        "step": result.step,
        "best": result.best,
        "parameters": {name: tensor.detach() for name, tensor in result.model.named_parameters()},
        "buffers": dict(result.model.named_buffers()),
        "random": torch.get_rng_state(),
    }
