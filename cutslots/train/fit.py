"""The training loop: for one process, or for each rank of several that train one model."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutslots import options
from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError, NonFiniteLossError
from cutslots.files import write_text
from cutslots.metrics.registry import better
from cutslots.nn.batch_shard import use_shard
from cutslots.train import checkpoint
from cutslots.train.callbacks import Callback, Start
from cutslots.train.checkpoint import CHECKPOINTS, CONFIG
from cutslots.train.config import RunConfig, run_hash, to_json
from cutslots.train.evaluate import ItemScores, evaluate
from cutslots.train.inputs import keep_freed_memory, pick_device, reduction, to_model
from cutslots.train.meter import Meter
from cutslots.train.ranks import Ranks


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    step: int  # less than `train.steps` if `stop` ended the run
    best: dict[str, float]  # the scores of the best evaluation, and its `step`
    model: nn.Module
    seconds: float  # of training with evaluations, without pauses between stop and resume


def fit(
    config: RunConfig,
    data_dir: Path,
    run_dir: Path,
    callback: Callback | None = None,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    debug: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008 (it is frozen)
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Train a model and keep its checkpoints in `run_dir`.

    Several processes train one model if each calls this with its `ranks`, the same configuration
    and the same data. Each rank takes an equal part of every batch; the numbers are those of one
    rank except for the order of float32 sums. A checkpoint can be resumed by any number of ranks.

    Args:
        data_dir: a prepared dataset with the splits `train` and `val`.
        run_dir: gets `config.json` and `checkpoints/`, from rank 0; must not hold another run.
        callback: called with the same values on every rank, except the sample, which is local.
        device: "cpu", "cuda", "cuda:1"; default: the current GPU, else the CPU.
        resume: continue from the newest checkpoint of `run_dir`, if any. On a CPU with one or two
            ranks the weights are bit for bit those of an uninterrupted run.
        debug: no data thread, and autograd's anomaly detection.
        ranks: this process among those that train together, `Ranks.joined()`.
        stop: asked after every step (several ranks: after every `train.log_every` steps). If it
            returns True on any rank, the run writes a checkpoint and returns.

    Raises:
        InputError: the run directory holds another config, more steps, or a process that trains in
            it; data and model do not fit; no such device; a checkpoint cannot be written.
        NonFiniteLossError: with the step, the ids of its images, and the last good checkpoint.

        Every rank raises what one rank raises outside its steps.
    """
    with ranks.agreed():
        target, callback = pick_device(device), callback or Callback()
        run = _Run(config, Path(data_dir), Path(run_dir), target, callback, ranks, debug)
    with contextlib.ExitStack() as stack:
        run.claim(stack, resume)
        try:
            run.train(stop or (lambda: False))
        except KeyboardInterrupt:
            # The newest checkpoint is complete: resuming repeats the steps since then.
            saved = f"step {run.saved_at}" if run.saved_at else "none"
            callback.on_message(f"interrupted after step {run.step}; newest checkpoint: {saved}.")
            raise
    return Result(run.step, run.best, run.model, time.monotonic() - run.started_at)


@dataclass
class _Run:
    """The state of a training, and its steps in the order in which `fit` takes them."""

    config: RunConfig
    data_dir: Path
    run_dir: Path
    device: torch.device
    callback: Callback
    ranks: Ranks
    debug: bool

    def __post_init__(self) -> None:
        """Open the data and build the model; refuse what cannot be trained."""
        config, device, ranks = self.config, self.device, self.ranks
        options.check(config)
        if device.type == "cpu":
            keep_freed_memory()
        if ranks.size > 1 and device.index is not None:
            torch.cuda.set_device(device)  # NCCL uses the current device
        self.precision = config.train.precision
        if self.precision == "auto":
            supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
            self.precision = "bfloat16" if supported else "float32"
        opened = functools.partial(
            Batches,
            self.data_dir,
            batch_size=config.optim.batch_size,
            seed=config.train.seed,
            rank=ranks.rank,
            world_size=ranks.size,
            prefetch=0 if self.debug else 2,
        )
        frames, distance = (getattr(config.model, name, 1) for name in ("frames", "distance"))
        self.batches = opened(split="train", frames=frames, distance=distance)
        self.validation = opened(split="val", shuffle=False, drop_last=False)
        self.digest = self.batches.manifest.digest
        reduction(self.batches.image_size, config.model.image_size)
        count, metric = self.validation.num_scenes, config.train.best_metric
        if count < ranks.size:  # a rank would have no sample to show
            scenes = "split 'val' must have at least one scene per rank"
            raise InputError(f"{scenes}, got {count} for {ranks.size} ranks. Use fewer ranks.")
        if metric.startswith("video_") and self.validation.num_frames is None:
            problem = f"must be a score of images, got {metric!r}, which needs clips"
            raise InputError(f"train.best_metric {problem}. Use ari_fg.")
        torch.manual_seed(config.train.seed)
        self.model: Any = config.model.build().to(device)
        if device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.optim.learning_rate, fused=True
        )
        self.step, self.saved_at = 0, 0
        self.best: dict[str, float] = {}
        self.started_at = time.monotonic()  # earlier by the time of the run that is resumed

    def claim(self, stack: contextlib.ExitStack, resume: bool) -> None:
        """Lock `run_dir` for this run until `stack` is closed, and resume from its checkpoint."""
        config = to_json(self.config)
        if len(set(self.ranks.gather((config, self.digest)))) > 1:
            raise InputError("all ranks must have the same configuration and the same data.")
        state = None
        with self.ranks.agreed():
            if self.ranks.is_first:
                stack.enter_context(checkpoint.exclusive(self.run_dir))
                state = checkpoint.stored(self.run_dir, self.config, self.digest, resume)
                write_text(self.run_dir / CONFIG, config)
            if state and state["best"].get("step") == state["step"]:
                # A kill between writing the best checkpoint and naming it left an older name.
                checkpoint.mark_best(self._path(state["step"]))
        state = self.ranks.from_first(state)
        if state:
            self._restore(state)
        # After the weights are in place: this gives rank 0's to all.
        self.synchronised = self.ranks.synchronised(self.model, self.device)

    def _path(self, step: int) -> Path:
        return checkpoint.path_of(self.run_dir / CHECKPOINTS, step)

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs; data and schedule depend on the step."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "config": to_json(self.config),
            "signature": run_hash(self.config, self.digest),
            "data_digest": self.digest,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "best": self.best,
            "seconds": time.monotonic() - self.started_at,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                # Fused Adam needs the memory order of the weights, which another device may change.
                if moment.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(moment)
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step, self.saved_at, self.best = state["step"], state["step"], state["best"]
        self.started_at -= state.get("seconds", 0.0)  # missing in old checkpoints

    def train(self, stop: Callable[[], bool]) -> None:
        """Take the remaining steps."""
        train, optim, ranks = self.config.train, self.config.optim, self.ranks
        size = sum(parameter.numel() for parameter in self.model.parameters())
        start = Start(self.step, train.steps, size, str(self.device), self.precision, ranks.size)
        with ranks.agreed():
            self.callback.on_start(start)
        self.model.train()
        if self.step == train.steps and not self.best:
            # Resumed with fewer steps than before, at a checkpoint without evaluation.
            self._save(evaluating=True)
        meter, batches = Meter(ranks), self._training_batches()
        with contextlib.closing(batches), torch.autograd.set_detect_anomaly(self.debug):
            while self.step < train.steps:
                with meter.timed("data"):
                    batch = next(batches)
                rate = optim.rate(self.step, train.steps)
                with meter.timed("model"):  # on a GPU the time of launching the kernels
                    loss, norm = self._step(batch, rate)
                meter.add(loss, norm, batch.images.shape[:-3].numel())
                self.step += 1
                last = self.step == train.steps
                logging = last or self.step % train.log_every == 0
                evaluating = last or self.step % train.eval_every == 0
                saving = evaluating or self.step % train.checkpoint_every == 0
                if saving or logging or self.device.type == "cpu":
                    self._check_finite(meter)
                if logging:
                    values = meter.read() | {"learning_rate": rate}
                    values["epoch"] = self.step / self.batches.steps_per_epoch
                    with ranks.agreed():
                        self.callback.on_log(self.step, values)
                if saving:
                    with meter.timed("pause"):
                        self._save(evaluating)
                if (ranks.size == 1 or logging) and not last and ranks.any(stop()):
                    if not saving:
                        self._check_finite(meter)
                        self._save(evaluating=False)
                    steps = f"{self.step} of {train.steps}; --resume continues from there"
                    self.callback.on_message(f"stopped as requested after step {steps}.")
                    return

    def _training_batches(self) -> Generator[Batch, None, None]:
        """The batches from the current step on, epoch after epoch."""
        while True:
            epoch, offset = divmod(self.step, self.batches.steps_per_epoch)
            yield from self.batches.epoch(epoch, offset)

    def _step(self, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """One step; this rank's loss and the norm of the gradient of all ranks, not waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = to_model(batch.images, self.config.model.image_size, self.device)
        precision = getattr(torch, self.precision)
        mixed = precision != torch.float32
        with torch.autocast(self.device.type, precision, enabled=mixed), use_shard(self.ranks):
            loss = self.model.loss(self.synchronised(images), images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Also without clipping: a gradient that is not finite spoils the weights while this step's
        # loss is still a number.
        limit = self.config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        return loss.detach(), norm

    def _check_finite(self, meter: Meter) -> None:
        steps_ago = meter.first_bad()
        if steps_ago is None:
            return
        step = self.step - steps_ago
        batch = self.batches.batch(*divmod(step - 1, self.batches.steps_per_epoch))
        ids = itertools.chain(*self.ranks.gather(self.batches.ids(batch.index)))
        good = self.ranks.from_first(checkpoint.steps(self.run_dir / CHECKPOINTS)) or ["none"]
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {step}. Images of that batch: "
            f"{', '.join(ids)}. Last good checkpoint: {good[-1]}. Try a lower learning rate, "
            "gradient clipping (--set optim.clip_norm=1) or a larger gamma; --debug shows the "
            "operation."
        )

    def _save(self, evaluating: bool) -> None:
        """Evaluate if asked, write a checkpoint, then call the callbacks: one that fails costs no
        steps, and one that waits for other ranks is not called if the checkpoint failed."""
        train, ranks, metric = self.config.train, self.ranks, self.config.train.best_metric
        scores, sample, examples, improved = {}, None, None, False
        if evaluating:
            evaluated, items = (self.model, self.validation, self.device), ItemScores(metric)
            scores, sample = evaluate(*evaluated, train.eval_images, watch=items, ranks=ranks)
            improved = not self.best or better(metric, scores[metric], self.best[metric])
            if improved:
                self.best = {**scores, "step": float(self.step)}
                examples = items.examples(*evaluated, ranks)
        path = self._path(self.step)
        with ranks.agreed():
            if ranks.is_first:
                checkpoint.save(path, self._state(), train.keep_last)
                if improved:
                    checkpoint.mark_best(path)
        self.saved_at = self.step
        with ranks.agreed():
            if sample is not None:
                self.callback.on_evaluate(self.step, scores, sample)
            if examples is not None:
                self.callback.on_improve(self.step, examples)
            self.callback.on_save(self.step, path, improved)
