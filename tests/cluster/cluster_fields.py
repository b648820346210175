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


def items(value: Any) -> list[tuple[Any, Any]]:
    """Names and values of a map, indices and values of a list."""
    if isinstance(value, list):
        return list(enumerate(value))
    return list(value.items()) if isinstance(value, dict) else []


def problems(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """One line for every field that is unknown, missing, or of another type than `kind`."""
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{path}: {value!r} is not of type {kind}"
    elif kind[0] in "[{" or kind in TYPES:
        if not isinstance(value, list if kind[0] == "[" else dict):
            yield f"{path}: {value!r} is not of type {kind}"
            return
        fields = TYPES.get(kind, {})
        kinds = {name.removesuffix("!"): type_ for name, type_ in fields.items()}
        for name, item in items(value):
            if kind not in TYPES:
                yield from problems(item, kind[1:-1], f"{path}.{name}")
            elif name in kinds:
                yield from problems(item, kinds[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: no such field; there are {', '.join(sorted(kinds))}"
        required = [name[:-1] for name in fields if name.endswith("!")]
        yield from (f"{path}.{name}: missing" for name in required if name not in value)
    elif kind != "any" and value not in kind.split("|"):
        yield f"{path}: {value!r} is none of {kind}"


def misspelt(value: Any, free: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every copy of `value` with one name misspelt, except names whose path matches `free`."""
    for name, item in items(value):
        at = f"{path}.{name}"
        if isinstance(value, dict) and not re.search(free, at):
            yield at, {f"{key}x" if key == name else key: value[key] for key in value}
        for place, changed in misspelt(item, free, at):
            if isinstance(value, dict):
                yield place, value | {name: changed}
            else:
                yield place, [*value[:name], changed, *value[name + 1 :]]
