"""Benchmarks: one function each, which prints its results and returns them as JSON values.

The parameters of a benchmark are its command-line arguments, `Annotated[type, help]`: positional,
or `--options` if keyword-only; lists are separated by commas. Compare results of one run only.
"""

import argparse
import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin

# Benchmark -> its module in this package.
COMMANDS = {
    "solvers": "solvers",
    "model": "training",
    "prepare": "data",
    "batches": "data",
    "orchestration": "sweep",
    "tracking": "sweep",
}


def load(name: str) -> Callable[..., dict[str, Any]]:
    """The function of a benchmark."""
    return getattr(importlib.import_module(f"{__name__}.{COMMANDS[name]}"), name)


def add_arguments(parser: argparse.ArgumentParser, benchmark: Callable[..., Any]) -> None:
    """Add an argument for every parameter of a benchmark."""
    for name, parameter in inspect.signature(benchmark).parameters.items():
        kind, text = get_args(parameter.annotation)
        optional = [] if get_origin(kind) is list else get_args(kind)  # of `X | None`
        kind = optional[0] if optional else kind
        settings: dict[str, Any] = {"help": text, "default": parameter.default}
        if kind is bool:
            settings["action"] = "store_true"
        elif get_origin(kind) is list:
            (item,) = get_args(kind)
            settings["type"] = lambda text, item=item: [item(part) for part in text.split(",")]
        else:
            settings["type"] = kind
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name.replace('_', '-')}", **settings)
        else:
            required = parameter.default is inspect.Parameter.empty
            parser.add_argument(name, nargs=None if required else "?", **settings)


def run(benchmark: Callable[..., dict[str, Any]], chosen: argparse.Namespace) -> dict[str, Any]:
    """Call a benchmark with its parsed arguments."""
    names = inspect.signature(benchmark).parameters
    return benchmark(**{name: getattr(chosen, name) for name in names})
