"""What is wrong with an object, by the types of fields.yaml."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES: dict[str, dict[str, str]] = yaml.safe_load(
    (Path(__file__).parent / "fields.yaml").read_text()
)
PLAIN = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}


def problems(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """One line for every field that is unknown, missing, or of another type than `kind` says."""
    if kind == "any":
        return
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{path}: {value!r} is not of type {kind}"
    elif kind[0] in "[{":
        if not isinstance(value, list if kind[0] == "[" else dict):
            yield f"{path}: {value!r} is not of type {'list' if kind[0] == '[' else 'map'}"
            return
        for name, item in enumerate(value) if isinstance(value, list) else value.items():
            yield from problems(item, kind[1:-1], f"{path}.{name}")
    elif kind in TYPES:
        yield from _object(value, TYPES[kind], path)
    elif value not in kind.split("|"):
        yield f"{path}: {value!r} is none of {kind}"


def _object(value: Any, fields: dict[str, str], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is not an object"
        return
    kinds = {name.removesuffix("!"): kind for name, kind in fields.items()}
    for name, item in value.items():
        if name in kinds:
            yield from problems(item, kinds[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: no such field; there are {', '.join(sorted(kinds))}"
    for name in fields:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{path}.{name[:-1]}: missing"


def spoilt(value: Any, free: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every copy of `value` with one name misspelt, except names whose path matches `free`."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        here = f"{path}.{name}"
        if isinstance(value, dict) and not re.search(free, here):
            yield here, {f"{key}x" if key == name else key: each for key, each in value.items()}
        for where, changed in spoilt(item, free, here):
            if isinstance(value, dict):
                yield where, value | {name: changed}
            else:
                yield where, [*value[:name], changed, *value[name + 1 :]]
