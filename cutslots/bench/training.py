"""Training steps of a model in several precisions and memory layouts, eager and compiled.

Every variant runs in its own process, with its own compilation cache and cuDNN settings. All start
from the same weights; their gradients are checked against float64 before they are timed.
"""

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.profiler import profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from cutslots.bench.timing import check_names, isolated, measure, peak_memory, provenance, show
from cutslots.errors import InputError
from cutslots.models import min_cut_slots
from cutslots.train import config
from cutslots.train.inputs import pick_device, to_model


@dataclass(frozen=True)
class Variant:
    """How steps are computed; `compile` is a mode of torch.compile, None for eager."""

    precision: str = "float32"
    solver: str = "auto"
    channels_last: bool = False  # the weights; activations of convolutions always are
    compile: str | None = None
    search: bool = False  # cuDNN tries its algorithms first


BFLOAT16 = Variant("bfloat16", channels_last=True)
# On a GPU, convolutions in float32 use TF32, as is torch's default.
VARIANTS = {
    "float32": Variant(),
    "kkt": Variant(solver="kkt"),
    "channels_last": Variant(channels_last=True),
    "compiled": Variant(compile="default"),
    "bfloat16": BFLOAT16,
    "bfloat16_search": replace(BFLOAT16, search=True),
    "bfloat16_compiled": replace(BFLOAT16, compile="default"),
    "bfloat16_cuda_graphs": replace(BFLOAT16, compile="reduce-overhead"),
}
CPU_VARIANTS = ["float32", "kkt", "channels_last", "compiled", "bfloat16"]
IMAGES = [n for n, make in config.PRESETS.items() if type(make().model) is min_cut_slots.Config]
CHECKED_IMAGES, PROFILED_STEPS = 2, 3
TOLERANCE = 0.02  # relative error of a gradient in float32: a ReLU near 0 may differ


def model(
    *,
    preset: Annotated[str | None, f"{', '.join(IMAGES)} (default: small or paper-clevr)"] = None,
    device: Annotated[str | None, "cpu, cuda, ... (default: the first GPU, else the CPU)"] = None,
    batch: Annotated[int | None, "images per step (default: the preset's)"] = None,
    variants: Annotated[list[str] | None, f"some of {','.join(VARIANTS)}"] = None,
    seconds: Annotated[float, "time to spend on timing each variant"] = 5.0,
    limit: Annotated[float, "seconds per variant, compilation included"] = 900.0,
) -> dict[str, Any]:
    """Training throughput in several precisions and layouts, eager and compiled."""
    on = pick_device(device)
    preset = preset or ("small" if on.type == "cpu" else "paper-clevr")
    chosen = variants or (CPU_VARIANTS if on.type == "cpu" else list(VARIANTS))
    check_names("--preset", [preset], IMAGES)
    check_names("--variants", chosen, VARIANTS)
    batch = config.preset(preset).optim.batch_size if batch is None else batch
    if batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}.")
    rows: list[dict[str, Any]] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr)
        row = isolated(__name__, name, preset, batch, on, seconds, timeout=limit)
        rows.append({"name": name, "precision": VARIANTS[name].precision} | row)
    measured = [row for row in rows if row["status"] == "measured"]
    for row in measured:
        row["images_per_second"] = batch / row["seconds"]
        row["ratio"] = measured[0]["seconds"] / row["seconds"]
    columns = "ratio", "first_seconds", "flops_used", "gradient_error", "peak_bytes"
    show(rows, "name", "images_per_second", *columns)
    for row in measured:
        if "parts" in row:
            parts = {part: sum(times.values()) for part, times in row["parts"].items()}
            shares = [f"{p} {t / sum(parts.values()):.1%}" for p, t in parts.items()]
            print(f"time of {row['name']}: {', '.join(shares)}")
    return provenance() | {"device": str(on), "preset": preset, "batch": batch, "variants": rows}


def build(
    variant: Variant, run: config.RunConfig, device: torch.device
) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A model and its step on uint8 images `(batch, H, W, 3)`, as `cutslots train` computes it.

    The learning rate is 0, so that all steps see the same weights.
    """
    torch.manual_seed(0)
    cut = replace(run.model.cut, solver=variant.solver)
    model = replace(run.model, cut=cut).build().to(device)
    if model.detail is not None:  # measure steps with the decoder, not the first ones of one color
        model.detail.step = model.detail.wait + model.detail.length
    dtype: torch.dtype = getattr(torch, variant.precision)
    torch.backends.cudnn.benchmark = variant.search
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if variant.compile:
        # Not the cut: torch 2.13 loses the memory order of tensors around its gradient.
        for name, part in model.named_children():
            if name != "cut":
                part.compile(mode=variant.compile, dynamic=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)

    def step(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        inputs = to_model(images, run.model.image_size, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model.loss(model(inputs), inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.optim.clip_norm or float("inf"))
        with record_function("part: optimizer"):
            optimizer.step()
        return loss.detach()

    return model, step


def measure_variant(
    variant: Variant, run: config.RunConfig, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Gradient error, seconds, memory and share of the peak arithmetic of a variant's step.

    Raises:
        ArithmeticError: its gradient in float32 is wrong.
    """
    size, batch = run.model.image_size, run.optim.batch_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    few, cpu = images[:CHECKED_IMAGES], torch.device("cpu")
    exact, _ = build(Variant(), run, cpu)
    inputs = to_model(few, size, cpu).double()
    with FlopCounterMode(display=False) as counter:
        exact.double().loss(exact(inputs), inputs).backward()
    nn.utils.clip_grad_norm_(exact.parameters(), run.optim.clip_norm or float("inf"))

    model, step = build(variant, run, device)
    torch.backends.cudnn.allow_tf32 = False
    step(few)
    torch.backends.cudnn.allow_tf32 = True
    truth, result = (
        torch.cat([p.grad.double().cpu().flatten() for p in trained.parameters()])
        for trained in (exact, model)
    )
    error = float((result - truth).norm() / truth.norm())
    if variant.precision == "float32" and not error <= TOLERANCE:
        raise ArithmeticError(f"wrong gradient, relative error {error:.1e}")
    start = time.perf_counter()
    float(step(images))
    first, timing = time.perf_counter() - start, measure(lambda: step(images), seconds)
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, variant.precision))
    rate = 2 * side**3 / measure(lambda: matrix @ matrix).median
    flops = counter.get_total_flops() * batch / len(few)
    results = {
        "gradient_error": error,
        "first_seconds": first,
        "seconds": timing.median,
        "fastest_seconds": min(timing.times),
        "peak_bytes": peak_memory(lambda: step(images), device),
        "matrix_rate": rate,
        "flops_used": flops / timing.median / rate,
    }
    eager = variant.compile is None
    return results | ({"parts": part_times(model, lambda: step(images), device)} if eager else {})


def part_times(
    model: nn.Module, step: Callable[[], object], device: torch.device
) -> dict[str, dict[str, float]]:
    """Seconds of a step per child of the model, optimizer and rest, forward and backward.

    A backward operation belongs to the part of the forward operation with its sequence number.
    """
    for name, part in model.named_children():
        part.forward = record_function(f"part: {name}")(part.forward)
    step()
    with profile() as profiler, record_function("part: rest"):
        for _ in range(PROFILED_STEPS):
            step()
    times: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    owners: dict[int, str] = {}  # sequence number -> part; the forward operation comes first
    events = [e for e in profiler.events() or [] if e.device_type == torch.autograd.DeviceType.CPU]
    for event in sorted(events, key=lambda event: event.time_range.start):
        parent = event
        while parent is not None and not parent.name.startswith("part: "):
            parent = parent.cpu_parent
        part = parent.name.removeprefix("part: ") if parent else "rest"
        part = owners.setdefault(event.sequence_nr, part) if event.sequence_nr >= 0 else part
        # On a GPU, the kernels that the operation launched.
        time = event.device_time_total if device.type == "cuda" else event.cpu_time_total
        if event is parent:
            times[part]["forward"] += time / 1e6 / PROFILED_STEPS
        elif event.name.startswith("autograd::engine::evaluate_function"):
            times[part]["backward"] += time / 1e6 / PROFILED_STEPS
    rest = times.pop("rest")  # so far the forward time of everything, as all parts run inside it
    known = sum(sum(part.values()) for part in times.values()) + rest["backward"]
    return times | {"rest": rest | {"forward": max(0.0, rest["forward"] - known)}}


def main(name: str, preset: str, batch: str, device: str, seconds: str) -> None:
    """Measure one variant in this process and print it as JSON."""
    run = config.preset(preset)
    run = replace(run, optim=replace(run.optim, batch_size=int(batch)))
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # the first step includes compilation
        results = measure_variant(VARIANTS[name], run, torch.device(device), float(seconds))
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
