"""The one training loop: in a debugger, in a Ray Train worker, in a Tune trial."""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutslots import options
from cutslots.data.batches import Batch, Batches
from cutslots.errors import InputError
from cutslots.files import write_text
from cutslots.train import checkpoint
from cutslots.train.config import RESUMABLE, RunConfig, differences, from_json, signature, to_json
from cutslots.train.evaluate import evaluate, pick_device, reduction, to_model
from cutslots.train.observer import Observer, Sample, Start

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
SMALLER_IS_BETTER = ("mse",)


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient stopped being a number."""


@dataclass(frozen=True)
class Result:
    """What a finished run has to say.

    Attributes:
        best: the scores of the best evaluation, and its `step`.
    """

    step: int
    best: dict[str, float]
    model: nn.Module


def fit(
    config: RunConfig,
    data_dir: Path,
    run_dir: Path,
    observer: Observer | None = None,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    debug: bool = False,
) -> Result:
    """Train a model and leave its checkpoints in `run_dir`.

    Args:
        config: the run; see `cutslots.train.config`.
        data_dir: a prepared dataset with the splits `train` and `val`.
        run_dir: gets `config.json` and `checkpoints/`. It must not hold another run.
        observer: is told of progress, scores and checkpoints.
        device: "cpu", "cuda", "cuda:1"...; default: the first GPU, else the CPU.
        resume: continue from the newest checkpoint of `run_dir`, if there is one. On a CPU the weights come out bit for bit as if
            never interrupted.
        debug: no data thread, anomaly detection: a breakpoint stops where it stands, an error points at its cause.

    Raises:
        InputError: the run directory holds another config, more steps, or a process that trains in it; data and model do not fit
            each other; there is no such device; a checkpoint cannot be written.
        NonFiniteLossError: with the step, the ids of its images, and the last good checkpoint.
    """
    return _Run(config, Path(data_dir), Path(run_dir), observer or Observer(), device, resume, debug).train()


class _Run:
    def __init__(self, config, data_dir, run_dir, observer, device, resume, debug) -> None:
        options.check(config)
        self.config, self.run_dir, self.observer, self.resume, self.debug = config, run_dir, observer, resume, debug
        self.device = pick_device(device)
        self.precision = _precision(config.train.precision, self.device)
        prefetch = 0 if debug else 2
        batch_size = config.optim.batch_size
        frames, distance = getattr(config.model, "frames", 1), getattr(config.model, "distance", 1)
        self.batches = Batches(
            data_dir, "train", batch_size, frames=frames, distance=distance, seed=config.train.seed, prefetch=prefetch
        )
        self.validation = Batches(data_dir, "val", batch_size, shuffle=False, drop_last=False, prefetch=prefetch)
        reduction(self.batches.image_size, config.model.image_size)
        if config.train.best_metric.startswith("video_") and self.validation.num_frames is None:
            raise InputError(
                f"train.best_metric is {config.train.best_metric!r}, which only clips have; the data are images. Use ari_fg."
            )

        torch.manual_seed(config.train.seed)
        self.model = config.model.build().to(self.device)
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.learning_rate, fused=True)
        self.step, self.saved_at, self.best = 0, 0, {}

    def train(self) -> Result:
        with _exclusive(self.run_dir, self.observer):
            self._claim()
            return self._train()

    def _claim(self) -> None:
        """Make `run_dir` this run's, and go on from its checkpoint. What is refused is refused before the last line writes."""
        stored = _stored(self.run_dir, self.config, self.resume)
        if stored:
            self._restore(stored)
        write_text(self.run_dir / CONFIG, to_json(self.config))

    def _train(self) -> Result:
        train = self.config.train
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.observer.started(
            Start(self.step, train.steps, parameters, str(self.device), str(self.precision).removeprefix("torch."))
        )
        self.model.train()
        with torch.autograd.set_detect_anomaly(self.debug):
            try:
                self._steps()
            except KeyboardInterrupt:
                # Between two steps or inside one: the newest checkpoint is whole either way, and resuming repeats what it lacks.
                self.observer.said(f"interrupted after step {self.step}; the newest checkpoint is of step {self.saved_at}.")
                raise
        return Result(self.step, self.best, self.model)

    def _steps(self) -> None:
        train = self.config.train
        if self.step == train.steps and not self.best:  # resumed with fewer steps than before, at a checkpoint without evaluation
            self._save(evaluating=True)
        meter = self.meter = _Meter()
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
                    self.observer.progress(
                        self.step,
                        {**meter.read(), "learning_rate": rate, "epoch": self.step / self.batches.steps_per_epoch},
                    )
                if saving:
                    with meter.paused():
                        self._save(evaluating)
                if last:
                    break

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        config = self.config.optim
        rate = config.rate(self.step, self.config.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = to_model(batch.images, self.config.model.image_size, self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = self.model.loss(self.model(images), images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Without clipping too: a gradient that is not finite spoils the weights while this step's loss is still a number.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm or math.inf)
        self.optimizer.step()
        # The host's time: on a GPU it is that of the launches, which a step does not wait for.
        self.meter.worked += time.perf_counter() - start
        return loss.detach(), norm

    def _check_finite(self, meter: "_Meter") -> None:
        bad = meter.first_bad()
        if bad is None:
            return
        step = self.step - bad
        epoch, offset = divmod(step - 1, self.batches.steps_per_epoch)
        ids = ", ".join(self.batches.ids(self.batches.batch(epoch, offset).index))
        good = checkpoint.steps(self.run_dir / CHECKPOINTS)
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {step}. Images of that batch: {ids}. "
            f"Last good checkpoint: {good[-1] if good else 'none yet'}. "
            "A lower learning rate, gradient clipping (--set optim.clip_norm=1) or a larger gamma usually helps; "
            "--debug shows the operation."
        )

    def _evaluate(self) -> tuple[dict[str, float], Sample, bool]:
        """Scores of the validation split, a sample of it, and whether they are the best so far."""
        scores, sample = evaluate(self.model, self.validation, self.device, self.config.train.eval_images)
        metric = self.config.train.best_metric
        sign = -1 if metric in SMALLER_IS_BETTER else 1
        better = not self.best or sign * scores[metric] > sign * self.best[metric]
        if better:
            self.best = {**scores, "step": float(self.step)}
        return scores, sample, better

    def _save(self, evaluating: bool) -> None:
        """Evaluate if asked, write the checkpoint, then tell of both: a listener that fails costs no steps."""
        evaluated = self._evaluate() if evaluating else None
        best = evaluated is not None and evaluated[2]
        path = self._write(best)
        if evaluated:
            self.observer.evaluated(self.step, *evaluated[:2])
        self.observer.saved(self.step, path, best)

    def _write(self, best: bool) -> Path:
        path = checkpoint.path_of(self.run_dir / CHECKPOINTS, self.step)
        state = {
            "config": to_json(self.config),
            "signature": signature(self.config, self.batches.manifest.digest),
            "data_digest": self.batches.manifest.digest,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": _random_state(self.device),
            "best": self.best,
        }
        checkpoint.save(path, state, self.config.train.keep_last)
        if best:
            checkpoint.mark_best(path)
        self.saved_at = self.step
        return path

    def _restore(self, state: Mapping[str, Any]) -> None:
        steps = self.config.train.steps
        if state["step"] > steps:
            raise InputError(f"{self.run_dir} is already at step {state['step']}; train.steps is {steps}. Ask for more steps.")
        # 1 data: the position in the epoch is a function of the step, if the data are the same.
        if state["data_digest"] != self.batches.manifest.digest:
            raise InputError(f"{self.run_dir} was trained on other data than these; resume with the same prepared folder.")
        # 2 weights, 3 optimiser, 4 random numbers, 5 counters. The schedule is a function of the step.
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step, self.saved_at, self.best = state["step"], state["step"], state["best"]
        # A process that was killed between writing its best checkpoint and naming it left the name with the one before.
        if self.best.get("step") == self.step:
            checkpoint.mark_best(checkpoint.path_of(self.run_dir / CHECKPOINTS, self.step))


@contextlib.contextmanager
def _exclusive(run_dir: Path, observer: Observer) -> Iterator[None]:
    """Hold `run_dir` against a second process. The system lets go of it however this one ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # A file, as network file systems do not lock folders. It stays: without it the next two could lock different ones.
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"the run's folder {run_dir} cannot be written ({error.strerror}). Name another one.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training in {run_dir}. Wait for it, or give the run another name.") from None
        except OSError:
            observer.said(f"{run_dir} cannot be locked on this file system; do not train in it twice at once.")
        yield
    finally:
        os.close(handle)


def _stored(run_dir: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, None for a new run.

    Raises:
        InputError: `run_dir` holds another run, or this one and `resume` was not asked for.
    """
    path = run_dir / CONFIG
    # Without a checkpoint nothing is lost: the run that left the configuration stopped before it had anything to keep.
    if not path.exists() or not checkpoint.steps(run_dir / CHECKPOINTS):
        return None
    changed = {name: pair for name, pair in differences(from_json(path.read_text()), config).items() if name not in RESUMABLE}
    if changed:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise InputError(f"{run_dir} holds a run with another configuration: {listed}. Give the run another name.")
    stored = checkpoint.newest(run_dir / CHECKPOINTS)
    if stored and not resume:
        raise InputError(
            f"{run_dir} already holds this run, at step {stored['step']}. Continue it with --resume, or give another name."
        )
    return stored


def _precision(asked: str, device: torch.device) -> torch.dtype:
    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, asked)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


class _Meter:
    """Means since the last reading, kept on the device so that a step never waits for the host."""

    def __init__(self) -> None:
        self._reset()

    def waiting(self, batches):
        """Pass batches on and count the time spent waiting for them."""
        batches = iter(batches)
        with contextlib.closing(batches):
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

    def add(self, loss: Tensor, norm: Tensor, num_images: int) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.num_images += num_images

    def first_bad(self) -> int | None:
        """How many steps ago, 0 for the last, loss or gradient first was not finite since the previous check; None if never."""
        losses, norms = (torch.stack(values[self.checked :]) for values in (self.losses, self.norms))
        finite = losses.isfinite() & norms.isfinite()
        self.checked = len(self.losses)
        return None if bool(finite.all()) else len(finite) - 1 - int((~finite).int().argmax())

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.since - self.away
        values = {
            "loss": float(torch.stack(self.losses).mean()),
            "gradient_norm": float(torch.stack(self.norms).mean()),
            "images_per_second": self.num_images / seconds,
            "data_wait_share": self.waited / seconds,
            "model_share": self.worked / seconds,
        }
        self._reset()
        return values

    @contextlib.contextmanager
    def paused(self):
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
