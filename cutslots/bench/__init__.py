"""Benchmarks: one function each, which prints its results and returns them as JSON values.

The parameters of a benchmark are its command-line arguments, `Annotated[type, help]`: positional,
or `--options` if keyword-only; lists are separated by commas. Compare results of one run only.
"""

import importlib
from collections.abc import Callable
from typing import Any

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
