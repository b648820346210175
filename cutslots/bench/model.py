"""Training throughput: a step in several precisions and layouts, eager and compiled, against the same model written plainly

All ways start from the same weights and are checked against float64 first. Each has a process of its own; they take turns.
"""

import argparse
import dataclasses
import datetime
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cutslots.bench import _plain, layer
from cutslots.bench._steps import Way, Worker
from cutslots.bench._timing import machine
from cutslots.bench._worker import StoppedError
from cutslots.data import Scene
from cutslots.data.shards import Info, write
from cutslots.errors import InputError
from cutslots.files import git_commit
from cutslots.train.config import RunConfig, preset
from cutslots.train.inputs import pick_device, to_model

_PLAIN = {
    "plain": Way("plain: float32, NCHW, eager, torch's Adam", plain=True, keep=False),
    "plain_kkt": Way("the same, cuts by the paper's solver", plain=True, keep=False, solver="kkt"),
}
_BFLOAT16 = Way("and bfloat16 autocast", channels_last=True, precision="bfloat16")
WAYS = {
    "cpu": _PLAIN
    | {
        "malloc": Way("cutslots: float32, memory as malloc has it", keep=False),
        "float32": Way("float32, freed memory kept"),
        "channels_last": Way("and weights channels-last", channels_last=True),
        "compiled": Way("float32, networks compiled", mode="default"),
        "bfloat16": _BFLOAT16,
    },
    "cuda": _PLAIN
    | {  # float32 with TF32 in convolutions, torch's default
        "float32": Way("cutslots: float32"),
        "channels_last": Way("and weights channels-last", channels_last=True),
        "bfloat16": _BFLOAT16,
        "searched": dataclasses.replace(_BFLOAT16, title="and cuDNN searches", search=True),
        "compiled": dataclasses.replace(
            _BFLOAT16, title="bfloat16, networks compiled", mode="default"
        ),
        "reduced": dataclasses.replace(
            _BFLOAT16, title="bfloat16, networks compiled with CUDA graphs", mode="reduce-overhead"
        ),
        "graph": dataclasses.replace(
            _BFLOAT16, title="bfloat16, the whole step one CUDA graph", graph=True
        ),
    },
}
FIT = {"cpu": "float32", "cuda": "bfloat16"}  # what `fit` does there
CHECKED_IMAGES = 2
EXACT, CLOSE = (
    1e-8,
    0.02,
)  # of gradients, relative: in float64, and in float32, where a ReLU near 0 may go either way
AT_LEAST = {"ratio": 3.0, "decoder_share": 0.3}  # on a GPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        help=f"whose step: {', '.join(layer.IMAGE_PRESETS)} (default small on a CPU, paper-clevr on a GPU)",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; default the first GPU, else the CPU")
    parser.add_argument("--batch", type=int, help="images a step (default the preset's)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn (default 10)")
    parser.add_argument("--turns", type=int, default=9, help="turns of each way (default 9)")
    parser.add_argument(
        "--ways", metavar="NAME,...", help="some of them, plain in any case (default all)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures.

    Raises:
        InputError: an option that cannot be used.
        ArithmeticError: plain model and package do not compute the same.
    """
    # Beside other work, threads that spin while they wait make two of them slower than one, by orders of magnitude.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    device = pick_device(arguments.device)
    config, ways = _config(arguments, device), _chosen(arguments.ways, device)
    figures: dict[str, Any] = {
        "command": shlex.join(["cutslots", *sys.argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine()
        | {"load_before": os.getloadavg()[0], "omp_wait_policy": os.environ["OMP_WAIT_POLICY"]},
        "device": str(device),
        "preset": arguments.preset,
        "batch": config.optim.batch_size,
        "steps": arguments.steps,
        "turns": arguments.turns,
        "fit": FIT[device.type],
    }
    images, truth = _truth(config)
    figures["same_model"] = {name: truth[name] for name in ("outputs_error", "gradient_error")}
    flops = decoder_flops(config) * config.model.num_slots * config.optim.batch_size
    figures["decoder_flops"] = flops
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        _write_images(Path(folder) / "set", config)
        figures["ways"] = _measured(
            ways, config, str(device), Path(folder) / "set", images, truth, arguments
        )
    rates = figures["matrix_rate"] = {}
    for row in figures[
        "ways"
    ]:  # the largest of a precision: other work on the machine only lessens it
        rates[row["precision"]] = max(rates.get(row["precision"], 0.0), row.get("matrix_rate", 0.0))
    for row in figures["ways"]:
        if row["status"] == "measured":
            row["images_per_second"] = config.optim.batch_size / row["seconds"]
            if "decoder_seconds" in row:
                row["decoder_share"] = flops / row["decoder_seconds"] / rates[row["precision"]]
    figures["headline"] = _headline(figures["ways"], device)
    figures["machine"]["load_after"] = os.getloadavg()[0]
    _show(figures)
    return figures


def decoder_flops(config: RunConfig) -> float:
    """Floating-point operations of painting one slot and going back: two a multiplication, taps beyond the border counted too.

    Backward is twice forward: once for the inputs' gradient, once for the weights'.
    """
    total = [0.0]

    def count(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        # Every weight is used once a pixel: of the output, or of the input where it is the input that is spread.
        pixels = inputs[0] if isinstance(conv, nn.ConvTranspose2d) else output
        total[0] += 2 * conv.weight.numel() * pixels.shape[-2] * pixels.shape[-1]

    decoder: Any = config.model.build().decoder
    for each in decoder.modules():
        if isinstance(each, nn.Conv2d | nn.ConvTranspose2d):
            each.register_forward_hook(count)
    with torch.no_grad():
        decoder(torch.zeros(1, 1, config.model.slots.size))
    return 3 * total[0]


def _config(arguments: argparse.Namespace, device: torch.device) -> RunConfig:
    arguments.preset = arguments.preset or ("small" if device.type == "cpu" else "paper-clevr")
    if arguments.preset not in layer.IMAGE_PRESETS:
        raise InputError(
            f"--preset is {arguments.preset!r}; for images with cuts there are: {', '.join(layer.IMAGE_PRESETS)}."
        )
    config = preset(arguments.preset)
    batch = config.optim.batch_size if arguments.batch is None else arguments.batch
    for name, number in (("batch", batch), ("steps", arguments.steps), ("turns", arguments.turns)):
        if number < 1:
            raise InputError(f"--{name} is {number}; give at least 1.")
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, batch_size=batch))


def _chosen(text: str | None, device: torch.device) -> dict[str, Way]:
    ways = WAYS[device.type]
    names = text.split(",") if text else list(ways)
    for name in names:
        if name not in ways:
            raise InputError(f"--ways has {name!r}; on this device there are: {', '.join(ways)}.")
    return {name: way for name, way in ways.items() if name in names or name == "plain"}


def _truth(config: RunConfig) -> tuple[Tensor, dict[str, Any]]:
    """Some images, and loss and clipped gradients of a step on them by the plain model in float64, after the package's has agreed.

    Raises:
        ArithmeticError: it has not.
    """
    size = config.model.image_size
    images = torch.randint(
        0, 256, (CHECKED_IMAGES, size, size, 3), generator=torch.Generator().manual_seed(0)
    ).byte()
    found = []
    for build in (_plain.build, lambda sizes: sizes.build()):
        torch.manual_seed(0)
        model = build(config.model).double()
        given = to_model(images, size, torch.device("cpu")).double()
        outputs = model(given)
        outputs = outputs if isinstance(outputs, dict) else vars(outputs)
        loss = nn.functional.mse_loss(outputs["reconstruction"], given)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append(
            (
                loss.item(),
                {name: outputs[name].detach() for name in ("masks", "alpha", "reconstruction")},
                gradients,
            )
        )
    (loss, plain, gradients), (_, ours, our_gradients) = found
    outputs_error = max(
        float((ours[name] - plain[name]).norm() / plain[name].norm()) for name in plain
    )
    wrong = (
        sum(float((our_gradients[name] - gradients[name]).square().sum()) for name in gradients)
        ** 0.5
    )
    gradient_error = wrong / sum(float(each.square().sum()) for each in gradients.values()) ** 0.5
    if not max(outputs_error, gradient_error) < EXACT:
        raise ArithmeticError(
            f"in float64 the package differs from the plain model by {outputs_error:.1e}, in gradients by {gradient_error:.1e}"
        )
    return images, {
        "loss": loss,
        "gradients": gradients,
        "outputs_error": outputs_error,
        "gradient_error": gradient_error,
    }


def _write_images(folder: Path, config: RunConfig) -> None:
    size, generator = config.model.image_size, np.random.default_rng(0)
    count, mask = (
        max(4 * config.optim.batch_size, 64),
        np.repeat(np.arange(4, dtype=np.uint8), size * size // 4),
    )

    def scenes(done: object):
        for index in range(count):
            image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            yield "train", Scene(str(index), image, mask.reshape(size, size), ({},) * 3)
        return count

    write(scenes, folder, Info("random", {}, {}, {"train": (0, count)}))


def _measured(
    ways: dict[str, Way],
    config: RunConfig,
    device: str,
    data: Path,
    images: Tensor,
    truth: dict[str, Any],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row a way, in their order. What fails has its reason; without the plain one there is nothing to compare with."""
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "title": way.title, "precision": way.precision, "status": "measured"}
        for name, way in ways.items()
    }
    workers: dict[str, Worker] = {}

    def ask(name: str, key: str, request: str, **given: Any) -> None:
        if rows[name]["status"] != "measured":
            return
        try:
            rows[name][key] = workers[name].ask(request, **given)
        except StoppedError as error:
            rows[name] |= {"status": "failed", "reason": str(error)}

    try:
        for name, way in ways.items():
            workers[name] = Worker(way, config, device, data)
            ask(
                name,
                "errors",
                "check",
                images=images,
                truth={key: truth[key] for key in ("loss", "gradients")},
            )
            if (
                rows[name]["status"] == "measured"
                and way.precision == "float32"
                and not _close(rows[name]["errors"])
            ):
                rows[name] |= {
                    "status": "unequal",
                    "reason": f"its gradient is wrong by {rows[name]['errors']['gradient_error']:.1e}",
                }
            ask(name, "first_seconds", "build")
            if name == "plain" and rows[name]["status"] != "measured":
                raise InputError(
                    f"the plain model cannot be measured: {rows[name]['reason']}. Give a smaller --batch, for example."
                )
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.turns):
            for name in ways:
                ask(name, "seconds", "turn", steps=arguments.steps)
                times[name].append(rows[name].get("seconds", float("nan")))
        for name in ways:
            if rows[name]["status"] == "measured":
                ratios = [
                    plain / own for plain, own in zip(times["plain"], times[name], strict=True)
                ]
                rows[name] |= {
                    "seconds": statistics.median(times[name]),
                    "fastest_seconds": min(times[name]),
                }
                rows[name] |= {"ratio": statistics.median(ratios), "ratios": ratios}
            if (
                ways[name].mode is None
                and not ways[name].graph
                and name in ("plain", FIT[torch.device(device).type])
            ):
                ask(name, "parts", "parts", steps=3 * arguments.steps)
            if not ways[name].graph and not ways[name].solver:
                ask(name, "matrix_rate", "matrix_rate")
                ask(name, "decoder_seconds", "decoder", repeats=arguments.steps)
    finally:
        for worker in workers.values():
            worker.close()
    return list(rows.values())


def _close(errors: dict[str, float]) -> bool:
    return max(errors.values()) < CLOSE


def _headline(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The ratio of what `fit` does and of the fastest way, and the best share of the matrix rate on the decoder."""
    done = {row["name"]: row for row in rows if row["status"] == "measured"}
    fit, best = (
        done.get(FIT[device.type]),
        max(done.values(), key=lambda row: row["ratio"], default=None),
    )
    shares = [
        row["decoder_share"]
        for row in done.values()
        if "decoder_share" in row and row["precision"] == (fit or row)["precision"]
    ]
    found = {
        "ratio_of_fit": fit and fit["ratio"],
        "fastest": best and best["name"],
        "ratio_of_fastest": best and best["ratio"],
        "decoder_share": max(shares, default=None),
    }
    return found | (
        {f"{name}_at_least": value for name, value in AT_LEAST.items()}
        if device.type == "cuda"
        else {}
    )


def _show(figures: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 118)
    about = figures["machine"]
    load = f"load {about['load_before']:.1f} before, {about['load_after']:.1f} after"
    console.print(
        f"{about['processor']}, {about['threads']} threads, {about['gpu'] or 'no GPU'}; {load}"
    )
    rates = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in figures["matrix_rate"].items()
    )
    console.print(
        f"Matrix products: {rates}. Decoder: {figures['decoder_flops'] / 1e9:,.3g} GFLOP a step, by its convolutions."
    )
    error = max(figures["same_model"].values())
    console.print(
        f"Plain model and package agree to {error:.0e} in float64. Error: of the gradient, against that."
    )
    console.print(
        f"{figures['preset']}, batch {figures['batch']}; medians of {figures['turns']} turns of {figures['steps']} steps."
    )
    table = Table(pad_edge=False)
    for name in ("way", "images/s", "x plain", "first, s", "decoder", "error"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in figures["ways"]:
        if row["status"] != "measured":
            continue
        name = f"{row['title']}{' (fit)' if row['name'] == figures['fit'] else ''}"
        share = f"{100 * row['decoder_share']:.0f} %" if "decoder_share" in row else "-"
        numbers = (
            f"{row['images_per_second']:.4g}",
            f"{row['ratio']:.2f}",
            f"{row['first_seconds']:.2g}",
            share,
        )
        table.add_row(name, *numbers, f"{row['errors']['gradient_error']:.0e}")
    console.print(table)
    for row in figures["ways"]:
        if row["status"] != "measured":
            console.print(
                f"  {row['title']}, {row['status']}: {row['reason']}", soft_wrap=True, markup=False
            )
    console.print(
        "First: seconds to the second step, with what is compiled. Decoder: share of the matrix rate, alone, with backward."
    )
    for row in figures["ways"]:
        if "parts" in row:
            console.print(_parts_line(row), soft_wrap=True)


def _parts_line(row: dict[str, Any]) -> str:
    seconds = {part: sum(ways.values()) for part, ways in row["parts"].items()}
    whole = sum(seconds.values())
    parts = ", ".join(
        f"{part} {100 * each / whole:.1f} %"
        for part, each in sorted(seconds.items(), key=lambda pair: -pair[1])
    )
    return f"Time of {row['name']}: {parts}"
