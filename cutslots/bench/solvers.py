"""The min-cut program of a full grid, forward and backward, by every back end and peer.

Every cell (method, size, batch) gets the same float32 inputs and its own process with a limit of
time and memory; its results are checked against the closed form in float64 before timing.
"""

import importlib
import importlib.util
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from torch import Tensor

from cutslots.bench import timing
from cutslots.bench.peers import BETA, GAMMA, PEERS, BackEnd, Method
from cutslots.bench.timing import isolated, measure, memory_in_use, peak_memory
from cutslots.errors import InputError
from cutslots.qp import MinCut
from cutslots.qp.solvers import BACK_ENDS
from cutslots.report.plots import solvers_figure
from cutslots.train.inputs import pick_device

PACKAGES = ("torch", "numpy", "scipy", "scikit-sparse", "cholespy", "qpth", "cupy-cuda12x")
TOLERANCE = 1e-4  # largest relative error of a result that counts as right
TRUTH_CHUNK = 2**22  # numbers whose float64 truth is computed at once


METHODS = {name: Method(partial(BackEnd, name), peer=False) for name in BACK_ENDS} | PEERS


def solvers(
    *,
    quick: Annotated[bool, "grids of 6 and 12, batches of 1 and 8: minutes"] = False,
    sizes: Annotated[list[int] | None, "sides of the grids (default 16 to 512)"] = None,
    batches: Annotated[list[int] | None, "cuts per batch (default 1,64,256)"] = None,
    methods: Annotated[list[str] | None, f"some of {','.join(METHODS)} (default all)"] = None,
    device: Annotated[str | None, "cpu, cuda, ... (default: the first GPU, else the CPU)"] = None,
    limit: Annotated[float, "seconds per method, size and batch, start included"] = 300.0,
    memory: Annotated[float | None, "GB per method (default: half of what is free)"] = None,
    figure: Annotated[Path | None, "draw time and memory against size to this PNG"] = None,
) -> dict[str, Any]:
    """Time, memory and error of every back end and peer on the same inputs."""
    chosen, on = methods or list(METHODS), pick_device(device)
    timing.check_names("--methods", chosen, METHODS)
    sizes = sorted(sizes or ([6, 12] if quick else [16, 32, 64, 128, 256, 512]))
    batches = sorted(batches or ([1, 8] if quick else [1, 64, 256]))
    if min(*sizes, *batches) < 1:
        raise InputError(f"--sizes and --batches must be at least 1, got {sizes} and {batches}.")
    free = psutil.virtual_memory().available
    if on.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(on)[0])  # some methods always use the CPU
    limit_bytes = int(1e9 * memory if memory else free / 2)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cutslots-bench-") as folder:
        # The first batch of a size makes the factor, the others read it from here.
        os.environ["CUTSLOTS_FACTORS"] = folder
        for size, batch, name in itertools.product(sizes, batches, chosen):
            print(f"{size} x {size}, {batch} cuts: {name}", file=sys.stderr)
            cell = {"method": name, "size": size, "batch": batch}
            cell["device"] = str(on) if METHODS[name].cuda else "cpu"
            arguments = name, size, batch, cell["device"], limit_bytes
            result = not_run(cell, cells) or isolated(__name__, *arguments, timeout=limit)
            cells.append(cell | result)
    results = timing.provenance() | {
        "versions": {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES},
        "device": str(on),
        "limits": {"cell_seconds": limit, "memory_bytes": limit_bytes},
        "methods": {n: {"peer": METHODS[n].peer, "missing": missing(n)} for n in chosen},
        "cells": cells,
    }
    columns = "forward_seconds", "seconds", "setup_seconds", "gradient_error", "memory_bytes"
    timing.show(cells, "method", "size", "batch", *columns)
    if figure:
        solvers_figure(results, figure)
    return results


def missing(name: str) -> str | None:
    """How to install the package that a method needs; None if it is installed."""
    module = METHODS[name].module
    installed = module is None or importlib.util.find_spec(module)
    return None if installed else f"{module} is not installed: {METHODS[name].install}"


def not_run(cell: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Status and reason of a cell that lacks a package, or whose method stopped at less work."""
    if reason := missing(cell["method"]):
        return {"status": "missing", "reason": reason}
    for other in done:
        less = other["size"] <= cell["size"] and other["batch"] <= cell["batch"]
        if other["method"] == cell["method"] and other["status"] == "stopped" and less:
            at = f"{other['size']} x {other['size']}, {other['batch']} cuts"
            return {"status": "not run", "reason": f"stopped at {at}: {other['reason']}"}
    return None


def measure_cell(name: str, size: int, batch: int, device: torch.device) -> dict[str, Any]:
    """Errors, seconds and bytes of one method at one size and batch.

    Raises:
        ArithmeticError: the potentials or their gradient are wrong.
    """
    weights, upstream = inputs(size, batch, device)
    before, start = memory_in_use(device), time.perf_counter()
    solver = METHODS[name].build(size, device)
    setup = time.perf_counter() - start
    results = solver.forward(weights), solver.backward(upstream)
    held = memory_in_use(device) - before
    wrong = errors(weights, upstream, *results)
    del results
    if not all(error <= TOLERANCE for error in wrong.values()):  # also refuses NaN
        raise ArithmeticError(f"wrong result: {wrong}, relative to the closed form in float64")

    def step() -> None:
        solver.forward(weights)
        solver.backward(upstream)

    step_bytes = min(peak_memory(step, device) for _ in range(3))
    step_bytes += weights.nbytes + upstream.nbytes
    timing = measure(step)
    return {
        **wrong,
        "setup_seconds": setup,
        "forward_seconds": measure(lambda: solver.forward(weights)).median,
        "seconds": timing.median,
        "fastest_seconds": min(timing.times),
        "repeats": len(timing.times) * timing.number_per_run,
        "memory_bytes": max(0, held - weights.nbytes) + step_bytes,
        "step_bytes": step_bytes,
        "weights_bytes": weights.nbytes,
    }


def inputs(size: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights, and derivatives of a loss by the potentials: the same for every method."""
    weights = torch.rand(batch, 6, size, size, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(batch, size, size, generator=torch.Generator().manual_seed(1))
    return weights.to(device), upstream.to(device)


def errors(
    weights: Tensor, upstream: Tensor, potentials: Tensor, gradient: Tensor
) -> dict[str, float]:
    """Relative errors against the closed form in float64, over the whole batch."""
    height, width = weights.shape[2:]
    cut = MinCut(height, width, GAMMA, beta=BETA, solver="dct")
    sums = torch.zeros(2, 2, dtype=torch.float64)  # (potentials, gradient) x (error, truth)
    chunk = max(1, TRUTH_CHUNK // weights[0].numel())
    chunks = (tensor.split(chunk) for tensor in (weights, upstream, potentials, gradient))
    for w, u, *results in zip(*chunks, strict=True):
        w = w.double().requires_grad_()
        truth = cut(w).potentials
        truths = truth.detach(), torch.autograd.grad(truth, w, u.double())[0]
        for row, (result, true) in enumerate(zip(results, truths, strict=True)):
            sums[row] += torch.stack([(result - true).square().sum(), true.square().sum()]).cpu()
    relative = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
    return {"potentials_error": relative[0], "gradient_error": relative[1]}


def main(name: str, size: str, batch: str, device: str, memory: str) -> None:
    """Measure one cell in this process and print it as JSON."""
    if module := METHODS[name].module:
        importlib.import_module(module)
    # Loads the libraries that every method uses, so that none is charged for them.
    warm_up = BackEnd("dct", 8, torch.device(device))
    warm_up.backward(warm_up.forward(torch.rand(1, 6, 8, 8, device=device)))
    if device == "cpu" and sys.platform == "linux":
        limit = psutil.Process().memory_info().data + int(memory)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    print(json.dumps(measure_cell(name, int(size), int(batch), torch.device(device))))


if __name__ == "__main__":
    main(*sys.argv[1:])
