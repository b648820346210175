"""One way of taking training steps, in a process of its own: what malloc, cuDNN and torch.compile are told stays with it.

The parent asks, one request at a time, so that all ways take their turns in one run.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutslots.bench import _plain
from cutslots.bench._timing import median_seconds
from cutslots.bench._worker import StoppedError
from cutslots.data import Batches
from cutslots.train.config import RunConfig
from cutslots.train.inputs import keep_freed_memory, to_model

# A part's name, and the modules of the model that it is.
PARTS = {
    "encoder": ("encoder",),
    "weights": ("object_weights", "foreground_weights"),
    "cut": ("cut",),
    "slots": ("slot_heads",),
    "decoder": ("decoder",),
}


@dataclass(frozen=True)
class Way:
    """How steps are computed.

    Attributes:
        plain: the model of `_plain` and torch's Adam as it comes; else the package's model and fused Adam.
        keep: on a CPU, freed memory is kept, as `fit` does.
        channels_last: the weights lie so; what goes through the package's convolutions does in any case.
        mode: of torch.compile, of the parts that are networks; None for eager.
        graph: forward, backward and optimiser are one CUDA graph.
        search: cuDNN tries its algorithms before the first step.
    """

    title: str
    plain: bool = False
    solver: str | None = None
    keep: bool = True
    channels_last: bool = False
    precision: str = "float32"
    mode: str | None = None
    graph: bool = False
    search: bool = False


class Worker:
    """The parent's end."""

    def __init__(self, way: Way, config: RunConfig, device: str, data: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        arguments = theirs, way, config, device, data, torch.get_num_threads()
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request: str, **arguments: Any) -> Any:
        """The answer of `_Side` to a request.

        Raises:
            StoppedError: it failed, with its words; the process is gone then.
        """
        try:
            self.connection.send((request, arguments))
            answer, error = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(10)
            answer, error = (
                None,
                f"the process died with status {self.process.exitcode}, out of memory if -9",
            )
        if error:
            self.close()
            raise StoppedError(error)
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()


def _serve(
    connection: Connection, way: Way, config: RunConfig, device: str, data: Path, threads: int
) -> None:
    sys.stdout = sys.stderr
    torch.set_num_threads(threads)
    side = _Side(way, config, torch.device(device), data)
    while True:
        try:
            request, arguments = connection.recv()
        except (EOFError, ConnectionError):  # nobody is there to ask
            return
        try:
            answer = getattr(side, request)(**arguments), None
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        try:
            connection.send(answer)
        except ConnectionError:
            return


class _Side:
    """The worker's end: every public method is a request."""

    def __init__(self, way: Way, config: RunConfig, device: torch.device, data: Path) -> None:
        if way.solver:
            cut = dataclasses.replace(config.model.cut, solver=way.solver)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, cut=cut))
        self.way, self.config, self.device, self.data = way, config, device, data
        self.dtype: torch.dtype = getattr(torch, way.precision)
        if way.mode:  # what earlier runs have compiled is not found: compiling is timed
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(data.parent / "compiled")
        if device.type == "cpu" and way.keep:
            keep_freed_memory()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = way.search

    def check(self, images: Tensor, truth: dict[str, Any]) -> dict[str, float]:
        """How far a step's loss and its gradients, clipped, are from the truth, relative; float32 without TF32."""
        torch.backends.cudnn.allow_tf32 = False
        step = self._prepared(
            len(images), rate=0.0
        )  # Adam moves nothing: a captured graph is warmed up by steps
        loss = step(self._to_model(images)).item()
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        wrong = whole = 0.0
        for name, true in truth["gradients"].items():
            found = gradients[name]
            assert found is not None, name
            wrong += float((found.detach().cpu().double() - true).square().sum())
            whole += float(true.square().sum())
        return {
            "loss_error": abs(loss - truth["loss"]) / truth["loss"],
            "gradient_error": (wrong / whole) ** 0.5,
        }

    def build(self) -> float:
        """Make everything for steps on the training batches; seconds of the first two steps, with all that is compiled in them."""
        torch.backends.cudnn.allow_tf32 = True  # torch's default
        batch = self.config.optim.batch_size
        self.batches = Batches(self.data, "train", batch, seed=self.config.train.seed)
        self.feed = self._images()
        start = time.perf_counter()
        self.step = self._prepared(batch, self.config.optim.learning_rate)
        self.turn(1)
        return time.perf_counter() - start

    def turn(self, steps: int) -> float:
        """Seconds of a step with its data, the mean of so many in a row after one that is not timed."""
        self.step(next(self.feed))
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(next(self.feed))
        self._wait()
        seconds = (time.perf_counter() - start) / steps
        if self.device.type == "cuda" and not self.way.graph:
            torch.cuda.empty_cache()  # the others are to have room
        return seconds

    def parts(self, steps: int) -> dict[str, dict[str, float]]:
        """Mean seconds of a step by part, forward and backward apart; of an eager way. Asked once, as marks stay in the model."""
        for part, names in PARTS.items():
            for name in names:
                _mark(getattr(self.model, name), part, lambda: self.marks)
        totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for step in range(steps + 1):
            self.marks = marks = _Marks(self.device)
            marks.add("data", "forward")
            images = next(self.feed)
            marks.add("rest", "forward")
            loss = self._loss(images)
            marks.add("optimiser", "forward")
            self.optimizer.zero_grad(set_to_none=True)
            marks.add("rest", "backward")
            loss.backward()
            marks.add("optimiser", "forward")
            self._update()
            marks.add("end", "forward")
            if step:  # the first warms up
                for (part, way), seconds in marks.read():
                    totals[part][way] += seconds / steps
        return {part: dict(ways) for part, ways in totals.items()}

    def decoder(self, repeats: int) -> float:
        """Median seconds of the decoder alone on a step's slots, forward and backward."""
        config, decoder = self.config.model, self.model.decoder
        shape = self.config.optim.batch_size, config.num_slots, config.slots.size
        slots = torch.randn(*shape, device=self.device, requires_grad=True)
        given = slots.flatten(0, 1) if self.way.plain else slots

        def both() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            with self._autocast():
                painted = decoder(given)
            painted = painted if isinstance(painted, tuple) else (painted,)
            wanted = [slots, *decoder.parameters()]
            torch.autograd.grad(painted, wanted, [torch.ones_like(each) for each in painted])

        return median_seconds(both, repeats)

    def matrix_rate(self) -> float:
        """Operations a second of a large square matrix product in this way's precision."""
        side = 8192 if self.device.type == "cuda" else 1024
        factor = torch.randn(side, side, device=self.device, dtype=self.dtype)
        return 2 * side**3 / median_seconds(lambda: factor @ factor)

    def _prepared(self, batch: int, rate: float) -> Callable[[Tensor], Tensor]:
        """A new model with the weights of seed 0, and its step."""
        way, config = self.way, self.config
        torch.manual_seed(0)
        self.model: Any = (_plain.build(config.model) if way.plain else config.model.build()).to(
            self.device
        )
        if way.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        options: dict[str, Any] = {} if way.plain else {"fused": True, "capturable": way.graph}
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, **options)
        if way.mode:
            # Not the whole: around the cut, whose gradient is its own, torch 2.13 loses the memory order of what it hands over.
            for name in (name for part, names in PARTS.items() if part != "cut" for name in names):
                getattr(self.model, name).compile(mode=way.mode, dynamic=False)
        if not way.graph:
            return self._step
        size = config.model.image_size
        images = torch.zeros(batch, size, size, 3, device=self.device).permute(0, 3, 1, 2)
        return self._captured(images)

    def _captured(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The step as a CUDA graph that reads its images from one place."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(images)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._step(images)

        def step(others: Tensor) -> Tensor:
            images.copy_(others)
            graph.replay()
            return loss

        return step

    def _loss(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model.loss(self.model(images), images)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # Inside a graph a cast that was cached before it would be read from memory that is no longer the weight's.
        return torch.autocast(
            self.device.type,
            self.dtype,
            enabled=self.dtype != torch.float32,
            cache_enabled=not self.way.graph,
        )

    def _step(self, images: Tensor) -> Tensor:
        if self.way.mode:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._update()
        return loss.detach()

    def _update(self) -> None:
        clip = self.config.optim.clip_norm
        if clip or not self.way.plain:  # `fit` takes the norm in any case, to see that it is finite
            nn.utils.clip_grad_norm_(self.model.parameters(), clip or float("inf"))
        self.optimizer.step()

    def _images(self) -> Iterator[Tensor]:
        for epoch in itertools.count():
            for batch in self.batches.epoch(epoch):
                yield self._to_model(batch.images)

    def _to_model(self, images: Tensor) -> Tensor:
        images = to_model(images, self.config.model.image_size, self.device)
        return images.contiguous() if self.way.plain else images

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Marks:
    """Moments of a step, each with the name of what begins there; on a GPU by events, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.marks = device.type == "cuda", []

    def add(self, part: str, way: str) -> None:
        now: Any = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            now.record()
        self.marks.append(((part, way), now))

    def read(self) -> Iterator[tuple[tuple[str, str], float]]:
        if self.cuda:
            torch.cuda.synchronize()
        for (name, start), (_, end) in itertools.pairwise(self.marks):
            yield name, start.elapsed_time(end) / 1e3 if self.cuda else end - start


class _Passage(torch.autograd.Function):
    """The identity, which says when its gradient comes by."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, say: Callable[[], None]) -> Tensor:
        ctx.say = say
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.say()
        return gradients[0], None


def _mark(module: nn.Module, part: str, marks: Callable[[], _Marks]) -> nn.Module:
    """Make a module say when its forward and its backward begin and end.

    Autograd runs what was recorded last first, so a module's backward is over when the gradients of all its inputs are there. What
    has no such inputs, the encoder, is the last.
    """
    inner = module.forward

    def forward(*inputs: Any) -> Any:
        waiting = [sum(isinstance(each, Tensor) and each.requires_grad for each in inputs)]

        def arrived() -> None:
            waiting[0] -= 1
            if not waiting[0]:
                marks().add("rest", "backward")

        def begins() -> None:
            marks().add(part, "backward")

        inputs = tuple(
            _Passage.apply(each, arrived)
            if isinstance(each, Tensor) and each.requires_grad
            else each
            for each in inputs
        )
        marks().add(part, "forward")
        found = inner(*inputs)
        marks().add("rest", "forward")
        if isinstance(found, Tensor):
            return _Passage.apply(found, begins)
        if isinstance(found, tuple):
            return tuple(_Passage.apply(each, begins) for each in found)
        passed = {
            name: _Passage.apply(getattr(found, name), begins)
            for name in ("potentials", "terminals")
        }
        return dataclasses.replace(found, **passed)  # the solution of a cut

    module.forward = forward
    return module
