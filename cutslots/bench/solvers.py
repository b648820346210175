"""The min-cut program of a full grid, forward and backward, by every back end and every peer: checked equal, then timed

All get the same inputs in one run, float32 weights. Each method and size has a process of its own, with a limit of time and memory.
"""

import argparse
import datetime
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from cutslots.bench import layer
from cutslots.bench._cells import Cells, missing
from cutslots.bench._methods import METHODS
from cutslots.bench._peers import BETA, GAMMA, KktSplu
from cutslots.bench._tables import show
from cutslots.bench._timing import machine, median_seconds
from cutslots.bench._worker import inputs
from cutslots.errors import InputError, nearest
from cutslots.files import git_commit
from cutslots.qp import MinCut
from cutslots.report.plots import solvers_figure
from cutslots.train.inputs import pick_device

SIZES, BATCHES = (16, 32, 64, 128, 256, 512), (1, 64, 768)
# The size and batch of the headline figures.
SIDE, CUTS = 64, 256
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-sparse",
    "cholespy",
    "osqp",
    "qpth",
    "cvxpylayers",
    "diffcp",
    "scs",
    "cupy-cuda12x",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick",
        action="store_true",
        help="grids of 6 and 12, batches of 1 and 8, limits of 10 s: a minute",
    )
    parser.add_argument(
        "--sizes",
        type=_numbers,
        metavar="N,...",
        help=f"sides of the grids (default {_listed(SIZES)})",
    )
    cuts = f"{_listed(BATCHES)}, and {CUTS} at {SIDE}"
    parser.add_argument(
        "--batches", type=_numbers, metavar="N,...", help=f"cuts in a batch (default {cuts})"
    )
    parser.add_argument(
        "--methods", metavar="NAME,...", help=f"some of {', '.join(METHODS)} (default all)"
    )
    parser.add_argument("--device", help="cpu, cuda, ...; default the first GPU, else the CPU")
    parser.add_argument("--limit", type=float, help="seconds that a step may take (default 120)")
    parser.add_argument(
        "--setup-limit", type=float, help="seconds that a factor may take (default 300)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="gigabytes that a method may take (default half of what is free)",
    )
    parser.add_argument(
        "--figure", metavar="PNG", help="draw time and memory against size to this file"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures."""
    # Beside other work, threads that spin while they wait make two of them slower than one, by orders of magnitude.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    device, names = pick_device(arguments.device), _chosen(arguments.methods)
    sizes = arguments.sizes or ([6, 12] if arguments.quick else list(SIZES))
    batches = arguments.batches or ([1, 8] if arguments.quick else list(BATCHES))
    limit, setup_limit = (
        arguments.limit or (10 if arguments.quick else 120),
        arguments.setup_limit or (10 if arguments.quick else 300),
    )
    memory = 1e9 * arguments.memory if arguments.memory else _free_bytes(device) / 2
    figures: dict[str, Any] = {
        "command": shlex.join(["cutslots", *sys.argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine()
        | {"load_before": os.getloadavg()[0], "omp_wait_policy": os.environ["OMP_WAIT_POLICY"]},
        "versions": {package: _version(package) for package in PACKAGES},
        "device": str(device),
        "limits": {"step_seconds": limit, "setup_seconds": setup_limit, "memory_bytes": memory},
        "methods": {
            name: {
                "title": METHODS[name].title,
                "exact": METHODS[name].tolerance is not None,
                "missing": missing(name),
            }
            for name in names
        },
        "truth": _truth(min(sizes)),
    }
    cells = Cells(device, limit, setup_limit, memory)
    for size in sizes:
        cells.measure(
            names, size, [*batches, *([CUTS] if size == SIDE and not arguments.batches else [])]
        )
    figures["cells"], figures["bandwidth_bytes_per_second"] = cells.done, _bandwidth(device)
    if not arguments.quick:
        images = 64 if device.type == "cuda" else 2
        with torch.device(device):
            figures["training_step"] = {
                "preset": "paper-clevr",
                "images": images,
                **layer._share("paper-clevr", images),
            }
    figures["headline"] = _headline(figures)
    figures["machine"]["load_after"] = os.getloadavg()[0]
    show(figures)
    if arguments.figure:
        solvers_figure(figures, Path(arguments.figure))
    return figures


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{numbers[0]} is less than 1")
    return numbers


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _chosen(text: str | None) -> list[str]:
    names = text.split(",") if text else list(METHODS)
    for name in names:
        if name not in METHODS:
            raise InputError(f"--methods has {name!r}. {nearest(name, list(METHODS))}")
    return names


def _free_bytes(device: torch.device) -> int:
    """On the machine and on its GPU, whichever has less: some methods run on the CPU in any case."""
    free = psutil.virtual_memory().available
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _truth(size: int) -> dict[str, float]:
    """What all are checked against, the closed form in float64, against a sparse LU of the whole KKT matrix.

    Raises:
        ArithmeticError: they differ.
    """
    weights, upstream = inputs(size, 4, torch.device("cpu"))
    exact_weights = weights.double().requires_grad_()
    potentials = MinCut(size, size, GAMMA, beta=BETA, solver="dct")(exact_weights).potentials
    gradient = torch.autograd.grad(potentials, exact_weights, upstream.double())[0]
    whole = KktSplu(size, torch.device("cpu"))
    solved = whole.forward(exact_weights.detach()), whole.backward(upstream.double())
    pairs = {"potentials": (potentials.detach(), solved[0]), "gradient": (gradient, solved[1])}
    found = {f"{name}_error": float((a - b).norm() / b.norm()) for name, (a, b) in pairs.items()}
    if not all(error < 1e-10 for error in found.values()):
        raise ArithmeticError(f"the closed form is not the solution of the KKT system: {found}")
    return {"size": size, **found}


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source))


def _headline(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that have targets and what belongs beside them: by medians (`value`) and, of times, by the fastest steps.

    `value` is None where a cell is not measured.
    """
    measured = {
        (cell["method"], cell["size"], cell["batch"]): cell
        for cell in figures["cells"]
        if cell["status"] == "measured"
    }
    own = {key[1:]: cell for key, cell in measured.items() if key[0] == "dct"}
    gpu, here, at = (
        figures["device"] != "cpu",
        own.get((SIDE, CUTS)),
        f"{SIDE} x {SIDE}, {CUTS} cuts",
    )
    rows: list[dict[str, Any]] = []

    def add(
        what: str, value: float | None, fastest: float | None = None, **target: float | None
    ) -> None:
        rows.append(
            {"what": what, "value": value, "fastest": fastest, "at_least": None, "at_most": None}
            | target
        )

    for name, least in (
        ("kkt", 500 if gpu else 1000),
        ("kkt_cholmod", None),
        ("vertex", None if gpu else 10),
    ):
        other = measured.get((name, SIDE, CUTS))
        ratios = [
            other[key] / here[key] if other and here else None
            for key in ("seconds", "fastest_seconds")
        ]
        add(f"dct against {name}, {at}", *ratios, at_least=least)
    # At as many pixels in a batch, and at as many cuts: more pixels leave the caches and are paid for in page faults.
    for cuts, cuts_here in ((1, 64), (1, 1), (64, 64)):
        large, small = own.get((512, cuts)), own.get((SIDE, cuts_here))
        pixels = cuts / cuts_here * (512 / SIDE) ** 2
        ratios = [
            large[key] / small[key] / pixels if large and small else None
            for key in ("seconds", "fastest_seconds")
        ]
        add(
            f"dct, time a pixel, {cuts} cuts at 512 x 512 against {cuts_here} at {SIDE} x {SIDE}",
            *ratios,
            at_most=4,
        )
    # Where weights take less, all is tables and pages.
    heavy = [
        cell["step_bytes"] / cell["weights_bytes"]
        for cell in own.values()
        if cell["weights_bytes"] > 1e6
    ]
    add(
        "dct, memory of a step in units of its weights, at most",
        max(heavy, default=None),
        at_most=4,
    )
    for name, key, numbers in (
        ("forward", "forward_seconds", 7),
        ("forward and backward", "seconds", 14),
    ):
        # Weights are read and potentials written once; going back, potentials are read and weights written.
        least = 4 * numbers * SIDE**2 * CUTS / figures["bandwidth_bytes_per_second"]
        share = least / here[key] if here else None
        add(
            f"dct, {name}, share of the bandwidth limit, {at}", share, at_least=0.1 if gpu else None
        )
    if "training_step" in figures:
        add(
            "dct, share of a training step of paper-clevr",
            figures["training_step"]["share_of_step"],
        )
    return rows
