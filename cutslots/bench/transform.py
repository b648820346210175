"""One axis of the cosine transform by a matrix product and by an FFT, over lengths: where `dct.FFT_FROM` comes from."""

import argparse
from typing import Any

import torch

from cutslots.bench._timing import machine, median_seconds
from cutslots.qp.solvers import dct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--numbers", type=int, default=2**22, help="numbers in a batch of grids (default 4 million)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures."""
    figures: dict[str, Any] = {"machine": machine(), "milliseconds": {}}
    threads = figures["machine"]["threads"]
    print(
        f"{'grid':>11}{'product':>10}{'FFT':>10}   ms for both axes of {arguments.numbers:,} numbers, {threads} threads"
    )
    for length in (32, 64, 128, 256, 512, 1024):
        x = torch.rand(max(1, arguments.numbers // length**2), length, length)
        both = {
            name: 1e3 * median_seconds(lambda x=x: dct.dct(dct.dct(x, -1), -2), 5)
            for name in _each_way()
        }
        figures["milliseconds"][length] = both
        print(f"{length:>5} x{length:>4}{both['product']:>10.2f}{both['fft']:>10.2f}")
    print(f"the layer changes at {dct.FFT_FROM}")
    return figures


def _each_way():
    chosen = dct.FFT_FROM
    try:
        for name, start in (("product", 2**30), ("fft", 1)):
            dct.FFT_FROM = start
            yield name
    finally:
        dct.FFT_FROM = chosen
