"""The one training loop: in a debugger, in a Ray Train worker, in a Tune trial."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutslots import options
from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError, NonFiniteLossError
from cutslots.files import write_text
from cutslots.metrics.registry import higher_is_better
from cutslots.nn.batch_shard import use_shard
from cutslots.train import checkpoint
from cutslots.train.callbacks import Callback, Examples, Sample, Start
from cutslots.train.checkpoint import CHECKPOINTS as CHECKPOINTS
from cutslots.train.checkpoint import CONFIG as CONFIG
from cutslots.train.checkpoint import exclusive, stored
from cutslots.train.config import RunConfig, run_hash, to_json
from cutslots.train.evaluate import evaluate
from cutslots.train.examples import ItemScores
from cutslots.train.inputs import pick_device, reduction, to_model
from cutslots.train.memory import keep_freed_memory
from cutslots.train.meter import Meter
from cutslots.train.ranks import Ranks


@dataclass(frozen=True)
class Result:
    """What a run has to say at its end.

    Attributes:
        step: the last step taken; less than `train.steps` when the run was stopped before.
        best: the scores of the best evaluation, and its `step`.
        seconds: that training has taken, evaluations included, pauses between stop and resume not.
    """

    step: int
    best: dict[str, float]
    model: nn.Module
    seconds: float


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
    """Train a model and leave its checkpoints in `run_dir`.

    Several processes train one model when each calls this with its `ranks`, the same configuration and the same data, which may lie
    elsewhere on each. Every rank takes an equal share of each batch, and the numbers are those of one rank but for the order in
    which float32 sums are taken. Checkpoints know nothing of ranks: a run may go on with another number of them.

    Args:
        config: the run; see `cutslots.train.config`.
        data_dir: a prepared dataset with the splits `train` and `val`.
        run_dir: gets `config.json` and `checkpoints/`. It must not hold another run. Only rank 0 looks at it.
        callback: is told of progress, scores and checkpoints: on every rank the same, but for the sample, which is of its share.
            All ranks are told at the same time, so that an callback may wait for those of the others.
        device: "cpu", "cuda", "cuda:1"...; default: the current GPU, else the CPU.
        resume: continue from the newest checkpoint of `run_dir`, if there is one. On a CPU the weights come out bit for bit as if
            never interrupted, with one rank or two; with more, sums over the ranks may be taken in another order.
        debug: no data thread, anomaly detection: a breakpoint stops where it stands, an error points at its cause.
        ranks: this process among those that train together, `Ranks.joined()`.
        stop: asked after every step, with several ranks after every `train.log_every` steps, where one that says yes is enough. On
            yes the run writes a checkpoint and returns; `resume` goes on from there.

    Raises:
        InputError: the run directory holds another config, more steps, or a process that trains in it; data and model do not fit
            each other; there is no such device; the ranks cannot share the batches; a checkpoint cannot be written.
        NonFiniteLossError: with the step, the ids of its images, and the last good checkpoint.

        What one rank raises before its first step, in an evaluation, or in what rank 0 does alone, every rank raises.
    """
    with ranks.agreed():
        run = _Run(
            config,
            Path(data_dir),
            Path(run_dir),
            callback or Callback(),
            device,
            resume,
            debug,
            ranks,
            stop,
        )
    return run.train()


class _Loss(nn.Module):
    """Forward and loss as one module: gradients are synchronised after its backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.loss(self.model(images), images)


class _Run:
    def __init__(
        self, config, data_dir, run_dir, callback, device, resume, debug, ranks, stop
    ) -> None:
        options.check(config)
        self.config, self.data_dir, self.run_dir, self.resume, self.debug = (
            config,
            data_dir,
            run_dir,
            resume,
            debug,
        )
        self.ranks, self.stop = ranks, stop
        self.callback = callback
        self.device = pick_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if ranks.size > 1 and self.device.index is not None:
            torch.cuda.set_device(self.device)  # through which NCCL speaks to other ranks
        self.precision = _precision(config.train.precision, self.device)
        self.batches = self._training_batches(ranks)
        self.validation = self._validation_batches(ranks)
        reduction(self.batches.image_size, config.model.image_size)
        if config.train.best_metric.startswith("video_") and self.validation.num_frames is None:
            raise InputError(
                f"train.best_metric is {config.train.best_metric!r}, which only clips have; the data are images. Use ari_fg."
            )

        torch.manual_seed(config.train.seed)
        self.model = config.model.build().to(self.device)
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.optim.learning_rate, fused=True
        )
        self.step, self.saved_at, self.best = 0, 0, {}
        self.began, self.seconds_before = time.monotonic(), 0.0

    def _training_batches(self, ranks: Ranks) -> Batches:
        config = self.config
        return Batches(
            self.data_dir,
            "train",
            config.optim.batch_size,
            frames=getattr(config.model, "frames", 1),
            distance=getattr(config.model, "distance", 1),
            seed=config.train.seed,
            rank=ranks.rank,
            world_size=ranks.size,
            prefetch=0 if self.debug else 2,
        )

    def _validation_batches(self, ranks: Ranks) -> Batches:
        batches = Batches(
            self.data_dir,
            "val",
            self.config.optim.batch_size,
            rank=ranks.rank,
            world_size=ranks.size,
            shuffle=False,
            drop_last=False,
            prefetch=0 if self.debug else 2,
        )
        if (
            batches.num_scenes < ranks.size
        ):  # rank 0's share would be empty, and it is the one that shows a sample
            raise InputError(
                f"split 'val' has {batches.num_scenes} scenes for {ranks.size} ranks. Use no more ranks than scenes."
            )
        return batches

    def train(self) -> Result:
        with contextlib.ExitStack() as held:
            self._claim(held)
            # After the weights are in place: rank 0's are given to all.
            self.loss = self.ranks.synchronised(_Loss(self.model), self.device)
            return self._train()

    def _claim(self, held: contextlib.ExitStack) -> None:
        """Make `run_dir` this run's, and go on from its checkpoint. What is refused is refused before the last line writes."""
        given = to_json(self.config), self.batches.manifest.digest
        first = self.ranks.from_first(lambda: given)
        with self.ranks.agreed():
            if given != first:
                raise InputError(
                    f"rank {self.ranks.rank} was given another configuration or other data than rank 0. Give all the same."
                )

        def look() -> dict[str, Any] | None:
            held.enter_context(exclusive(self.run_dir, self.callback.on_message))
            return stored(self.run_dir, self.config, self.resume)

        state = self.ranks.from_first(look)
        with self.ranks.agreed():
            if state:
                self._restore(state)
            if self.ranks.is_first:
                write_text(self.run_dir / CONFIG, to_json(self.config))

    def _train(self) -> Result:
        train = self.config.train
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        precision = str(self.precision).removeprefix("torch.")
        with self.ranks.agreed():
            self.callback.on_start(
                Start(
                    self.step, train.steps, parameters, str(self.device), precision, self.ranks.size
                )
            )
        self.model.train()
        with torch.autograd.set_detect_anomaly(self.debug):
            try:
                self._steps()
            except KeyboardInterrupt:
                # Between two steps or inside one: the newest checkpoint is whole either way, and resuming repeats what it lacks.
                newest = (
                    f"the newest checkpoint is of step {self.saved_at}"
                    if self.saved_at
                    else "there is no checkpoint yet"
                )
                self.callback.on_message(f"interrupted after step {self.step}; {newest}.")
                raise
        return Result(self.step, self.best, self.model, self._seconds())

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _steps(self) -> None:
        train = self.config.train
        if (
            self.step == train.steps and not self.best
        ):  # resumed with fewer steps than before, at a checkpoint without evaluation
            self._save(evaluating=True)
        meter = self.meter = Meter(self.ranks)
        while self.step < train.steps:
            epoch, offset = divmod(self.step, self.batches.steps_per_epoch)
            for batch in meter.waiting(self.batches.epoch(epoch, offset)):
                loss, norm = self._step(batch)
                self.step += 1
                meter.add(loss, norm, batch.images.shape[:-3].numel())
                last = self.step == train.steps
                evaluating = last or self.step % train.eval_every == 0
                saving = evaluating or self.step % train.checkpoint_every == 0
                if saving or self.step % train.log_every == 0 or self.device.type == "cpu":
                    self._check_finite(meter)
                if self.step % train.log_every == 0 or last:
                    rate = self.config.optim.rate(self.step - 1, train.steps)
                    values = {
                        **meter.read(),
                        "learning_rate": rate,
                        "epoch": self.step / self.batches.steps_per_epoch,
                    }
                    with self.ranks.agreed():
                        self.callback.on_log(self.step, values)
                if saving:
                    with meter.paused():
                        self._save(evaluating)
                if last or self._stopped():
                    return

    def _stopped(self) -> bool:
        """Whether the run was asked to stop here; then its checkpoint is written."""
        if self.ranks.size > 1 and self.step % self.config.train.log_every:
            return False
        with self.ranks.agreed():
            asked = self.stop is not None and self.stop()
        if not self.ranks.any(asked):
            return False
        if self.saved_at != self.step:
            self._check_finite(self.meter)
            self._save(evaluating=False)
        with self.ranks.agreed():
            self.callback.on_message(
                f"stopped as asked after step {self.step} of {self.config.train.steps}; resuming goes on from there."
            )
        return True

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        config = self.config.optim
        rate = config.rate(self.step, self.config.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = to_model(batch.images, self.config.model.image_size, self.device)
        start = time.perf_counter()
        autocast = torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        )
        with autocast, use_shard(self.ranks):
            loss = self.loss(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Without clipping too: a gradient that is not finite spoils the weights while this step's loss is still a number.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm or math.inf)
        self.optimizer.step()
        # The host's time: on a GPU it is that of the launches, which a step does not wait for.
        self.meter.worked += time.perf_counter() - start
        return loss.detach(), norm

    def _check_finite(self, meter: Meter) -> None:
        bad = meter.first_bad()
        if bad is not None:
            raise self.ranks.from_first(lambda: self._not_finite(self.step - bad))

    def _not_finite(self, step: int) -> NonFiniteLossError:
        epoch, offset = divmod(step - 1, self.batches.steps_per_epoch)
        ids = ", ".join(
            self.batches.ids(self._training_batches(Ranks()).batch(epoch, offset).index)
        )
        good = checkpoint.steps(self.run_dir / CHECKPOINTS)
        return NonFiniteLossError(
            f"the loss or its gradient is not finite at step {step}. Images of that batch: {ids}. "
            f"Last good checkpoint: {good[-1] if good else 'none yet'}. "
            "A lower learning rate, gradient clipping (--set optim.clip_norm=1) or a larger gamma usually helps; "
            "--debug shows the operation."
        )

    def _evaluate(self) -> tuple[dict[str, float], Sample, bool, Examples | None]:
        """Scores of the validation split, a sample of it, whether they are the best so far, and if so its telling scenes."""
        metric, limit = self.config.train.best_metric, self.config.train.eval_images
        items = ItemScores(metric, not higher_is_better(metric))
        scores, sample = evaluate(
            self.model, self.validation, self.device, limit, ranks=self.ranks, scored=items
        )
        sign = -1 if not higher_is_better(metric) else 1
        better = not self.best or sign * scores[metric] > sign * self.best[metric]
        if not better:
            return scores, sample, False, None
        self.best = {**scores, "step": float(self.step)}
        return (
            scores,
            sample,
            True,
            items.examples(self.model, self.validation, self.device, self.ranks),
        )

    def _save(self, evaluating: bool) -> None:
        """Evaluate if asked, write the checkpoint, then tell of both: a listener that fails costs no steps."""
        evaluated = self._evaluate() if evaluating else None
        best = evaluated is not None and evaluated[2]
        path = checkpoint.path_of(self.run_dir / CHECKPOINTS, self.step)
        with self.ranks.agreed():
            if self.ranks.is_first:
                self._write(path, best)
        self.saved_at = self.step
        # Apart from the above: an callback that waits for the other ranks would wait for ever for one that could not write.
        with self.ranks.agreed():
            if evaluated:
                self.callback.on_evaluate(self.step, *evaluated[:2])
                if evaluated[3]:
                    self.callback.on_improve(self.step, evaluated[3])
            self.callback.on_save(self.step, path, best)

    def _write(self, path: Path, best: bool) -> None:
        state = {
            "config": to_json(self.config),
            "signature": run_hash(self.config, self.batches.manifest.digest),
            "data_digest": self.batches.manifest.digest,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": _random_state(self.device),
            "best": self.best,
            "seconds": self._seconds(),
        }
        checkpoint.save(path, state, self.config.train.keep_last)
        if best:
            checkpoint.mark_best(path)

    def _restore(self, state: Mapping[str, Any]) -> None:
        steps = self.config.train.steps
        if state["step"] > steps:
            raise InputError(
                f"{self.run_dir} is already at step {state['step']}; train.steps is {steps}. Ask for more steps."
            )
        # 1 data: the position in the epoch is a function of the step, if the data are the same.
        if state["data_digest"] != self.batches.manifest.digest:
            raise InputError(
                f"{self.run_dir} was trained on other data than these; resume with the same prepared folder."
            )
        # 2 weights, 3 optimiser, 4 random numbers, 5 counters. The schedule is a function of the step.
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                # Fused Adam goes by place in memory, and on another device the weights may lie in another order.
                if moment.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(moment)
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step, self.saved_at, self.best = state["step"], state["step"], state["best"]
        self.seconds_before = state.get("seconds", 0.0)  # not in checkpoints of before
        # A process that was killed between writing its best checkpoint and naming it left the name with the one before.
        if self.ranks.is_first and self.best.get("step") == self.step:
            checkpoint.mark_best(checkpoint.path_of(self.run_dir / CHECKPOINTS, self.step))


def _precision(asked: str, device: torch.device) -> torch.dtype:
    if asked == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    return getattr(torch, asked)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
