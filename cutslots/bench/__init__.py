"""Benchmarks: one a file, each with `add_arguments(parser)` and `run(arguments) -> figures`. They print what they measure; compare
figures of one run only."""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def load(name: str) -> ModuleType:
    """A benchmark's module."""
    return importlib.import_module(f"{__name__}.{name}")
