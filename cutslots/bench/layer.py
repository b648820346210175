"""The cut layer against a sparse solve of the paper's whole KKT system, and its share of a training step."""

import argparse
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import splu

from cutslots.bench._timing import machine, median_seconds
from cutslots.errors import InputError
from cutslots.models import min_cut_slots
from cutslots.qp import Gamma, Grid, MinCut, min_cut_program
from cutslots.qp.program import edge_costs
from cutslots.train.config import PRESETS, preset

# Of models of images: one of video, whose configuration is a subclass, takes pairs.
IMAGE_PRESETS = [name for name in PRESETS if type(preset(name).model) is min_cut_slots.Config]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=64, help="side of the grid (default 64)")
    parser.add_argument("--cuts", type=int, default=256, help="cuts in a batch (default 256)")
    parser.add_argument(
        "--preset",
        default="paper-clevr",
        help=f"whose training step to compare with: {', '.join(IMAGE_PRESETS)}",
    )
    parser.add_argument("--batch", type=int, default=2, help="images in that step (default 2)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures.

    Raises:
        InputError: the preset's model is not the image model with cuts.
    """
    if arguments.preset not in IMAGE_PRESETS:
        raise InputError(
            f"--preset is {arguments.preset!r}; for images with cuts there are: {', '.join(IMAGE_PRESETS)}."
        )
    figures = {
        "machine": machine(),
        **_against_kkt(arguments.size, arguments.cuts),
        **_share(arguments.preset, arguments.batch),
    }
    layer, kkt = figures["layer_seconds"], figures["kkt_seconds"]
    grid, threads = f"{arguments.size} x {arguments.size}", figures["machine"]["threads"]
    print(f"{arguments.cuts} cuts of {grid}, forward and backward, float32, {threads} threads")
    print(
        f"  layer (closed form)        {layer * 1e3:10.2f} ms   forward alone {figures['layer_forward_seconds'] * 1e3:.2f} ms"
    )
    print(
        f"  sparse LU of the KKT matrix{kkt * 1e3:10.2f} ms   without {figures['kkt_factor_seconds']:.2f} s to factor it once"
    )
    print(
        f"  ratio                      {kkt / layer:10.0f} x    relative error of the layer {figures['relative_error']:.1e}"
    )
    print(
        f"training step of {arguments.preset}, batch {arguments.batch}: {figures['step_seconds']:.3f} s,"
    )
    print(
        f"  of which the cuts {figures['step_cut_seconds'] * 1e3:.2f} ms = {100 * figures['share_of_step']:.2f} %"
    )
    return figures


def _against_kkt(size: int, cuts: int) -> dict[str, float]:
    weights = torch.rand(
        cuts, 6, size, size, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    upstream = torch.randn(cuts, size, size, generator=torch.Generator().manual_seed(1))
    cut = MinCut(size, size)

    def both() -> torch.Tensor:
        return torch.autograd.grad(cut(weights).potentials, weights, upstream)[0]

    program = min_cut_program(Grid(size, size), Gamma(0.5, 0.5, 0.5))
    kkt = program.kkt()
    factored: list[Any] = []
    factor_seconds = median_seconds(lambda: factored.append(splu(kkt)), repeats=1, warmup=0)
    c = np.zeros((len(program.G), cuts))
    c[program.blocks["d"]] = edge_costs(weights.detach().double().numpy(), Grid(size, size))
    rhs = program.rhs(c)
    solved: list[np.ndarray] = []
    kkt_seconds = median_seconds(lambda: solved.append(factored[0].solve(rhs)), repeats=1, warmup=0)
    # The backward pass is the same solve with the loss's derivative on the right (the paper's grad_c = -C grad_z).
    back = np.zeros_like(rhs)
    back[program.blocks["p"]][: size * size] = -upstream.double().flatten(1).numpy().T
    kkt_seconds += median_seconds(
        lambda: solved.append(factored[0].solve(back)), repeats=1, warmup=0
    )
    expected = solved[0][program.blocks["p"]][: size * size].T
    found = cut(weights).potentials.detach().double().flatten(1).numpy()
    return {
        "layer_forward_seconds": median_seconds(lambda: cut(weights.detach())),
        "layer_seconds": median_seconds(both),
        "kkt_factor_seconds": factor_seconds,
        "kkt_seconds": kkt_seconds,
        "relative_error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
    }


def _share(name: str, batch: int) -> dict[str, float]:
    config = preset(name)
    model = config.model.build()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.rand(batch, 3, config.model.image_size, config.model.image_size) * 2 - 1

    def step() -> None:
        loss = model.loss(model(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    grid = config.model.image_size // 2
    cut = config.model.cut.build(grid, grid)
    weights = [
        torch.rand(batch * cuts, 6, grid, grid, requires_grad=True)
        for cuts in (config.model.num_slots - 1, 1)
    ]

    def cuts_alone() -> None:
        for each in weights:
            cut(each).potentials.sum().backward()

    step_seconds, cut_seconds = median_seconds(step, 3, 1), median_seconds(cuts_alone)
    return {
        "step_seconds": step_seconds,
        "step_cut_seconds": cut_seconds,
        "share_of_step": cut_seconds / step_seconds,
    }
