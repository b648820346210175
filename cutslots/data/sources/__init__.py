"""The datasets that cutslots can prepare: one module each, with one subclass of `Source`."""

import importlib
import pkgutil

from cutslots import options
from cutslots.data.manifest import Manifest
from cutslots.data.source import Source, naming, parse_splits
from cutslots.errors import InputError, nearest

__all__ = ["changed_options", "dataset_name", "load", "names", "naming", "parse_splits"]


def names() -> list[str]:
    """The names of all sources."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[Source]:
    """The source class of this name.

    Raises:
        InputError: unknown name.
    """
    if name not in names():
        raise InputError(f"unknown source {name!r}. {nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type))
    return next(c for c in classes if issubclass(c, Source) and c.__module__ == module.__name__)


def changed_options(manifest: Manifest) -> dict[str, options.Option]:
    """The options of a prepared dataset that differ from the source's defaults, with their values.

    Empty for a source that this version does not know.
    """
    if manifest.source not in names():
        return {}
    defaults = options.describe(load(manifest.source).Options())
    stored = (o._replace(value=manifest.options.get(o.path, o.value)) for o in defaults)
    return {o.path: o for o, default in zip(stored, defaults, strict=True) if o != default}


def dataset_name(manifest: Manifest) -> str:
    """The source and those of its changed options that have a few choices, e.g. clevrtex_outd."""
    chosen = (option for option in changed_options(manifest).values() if "|" in option.range)
    return "_".join([manifest.source, *(str(option.value) for option in chosen)])
