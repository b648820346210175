"""Typed options: frozen dataclasses whose fields carry their own help and range.

`option(default, help, ...)` declares a field. `describe(config)` lists every option with its full path, type and help;
`override(config, "cut.gamma=0.3")` returns a copy with one value replaced. A path may be shortened to any unambiguous ending:
`gamma` and `cut.gamma` both mean `model.cut.gamma` when no other option ends so.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cutslots.errors import InputError, nearest


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    odd: bool = False,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with a help text, an inclusive range, oddness and a set of choices, all checked by `check`."""
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "odd": odd, "choices": tuple(choices)},
    )


class Option(NamedTuple):
    path: str
    type: Any
    value: Any
    help: str
    range: str


def _fields(config: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        yield field, hints[field.name]


def describe(config: Any, prefix: str = "") -> list[Option]:
    """Every option of a config, nested ones included, in order of declaration."""
    found = []
    for field, kind in _fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += describe(value, f"{prefix}{field.name}.")
        else:
            found.append(
                Option(
                    prefix + field.name,
                    kind,
                    value,
                    field.metadata.get("help", ""),
                    _range(field.metadata),
                )
            )
    return found


def flat(config: Any) -> dict[str, Any]:
    """A config as one dictionary, `{"model.cut.gamma": 0.5, ...}`."""
    return {found.path: found.value for found in describe(config)}


def override(config: Any, assignment: str) -> Any:
    """A copy of `config` with one option replaced by the text after `=`.

    Raises:
        InputError: no `=`, an unknown or ambiguous path, or a value of the wrong type or out of range.
    """
    path, separator, text = assignment.partition("=")
    if not separator:
        raise InputError(
            f"option {assignment!r} has no value. Write it as NAME=VALUE, for example cut.gamma=0.3."
        )
    found = resolve(config, path.strip())
    return _replace(config, found.path.split("."), parse(text.strip(), found.type, found.path))


def resolve(config: Any, path: str) -> Option:
    """The one option that `path`, whole or shortened to its ending, names."""
    known = describe(config)
    exact = [found for found in known if found.path == path]
    matches = exact or [found for found in known if found.path.endswith("." + path)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"option {path!r} is ambiguous: {', '.join(found.path for found in matches)}. Give more of the path."
        )
    endings = [ending for found in known for ending in _endings(found.path)]
    raise InputError(f"unknown option {path!r}. {nearest(path, endings)}")


def check(config: Any, prefix: str = "") -> None:
    """Raise InputError where a value is outside its option's type, range or choices, or even where it must be odd.

    A class of options that has a method `check` is asked too: it knows which values do not go together.
    """
    for field, kind in _fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, name + ".")
            continue
        _check_type(value, kind, name)
        choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
        if value is None:
            continue
        if choices and value not in choices:
            raise InputError(
                f"{name} is {value!r}. {nearest(str(value), choices)} Choices: {', '.join(choices)}."
            )
        if isinstance(value, int | float) and not (
            (low is None or value >= low) and (high is None or value <= high) and value == value
        ):
            raise InputError(f"{name} is {value}; it must be {_range(field.metadata)}.")
        if field.metadata.get("odd") and value % 2 == 0:
            raise InputError(f"{name} is {value}; it must be odd.")
    if hasattr(config, "check"):
        config.check()


def parse(text: str, kind: Any, name: str) -> Any:
    """The value that a text from the command line stands for, given the option's type."""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        if text.lower() in ("none", ""):
            return None
        kind = next(argument for argument in arguments if argument is not type(None))
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        return kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{name}={text}: expected {type_name(kind)}.") from None


def type_name(kind: Any) -> str:
    """A type as a person writes it."""
    return (
        getattr(kind, "__name__", None)
        if isinstance(kind, type)
        else str(kind).replace("typing.", "")
    )  # type: ignore[return-value]


def _check_type(value: Any, kind: Any, name: str) -> None:
    accepted = typing.get_args(kind) or (kind,)
    if float in accepted:
        accepted += (int,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise InputError(f"{name} is {value!r}; expected {type_name(kind)}.")


def _replace(config: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    inner = _replace(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: inner})


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _range(metadata: Any) -> str:
    if metadata.get("choices"):
        return " | ".join(metadata["choices"])
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None and high is not None:
        span = f"{low} to {high}"
    else:
        span = f">= {low}" if low is not None else f"<= {high}" if high is not None else ""
    return ", ".join(filter(None, (span, "odd" if metadata.get("odd") else "")))


def restore(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """A copy of `config` with the nested `values` of `dataclasses.asdict` put in.

    Raises:
        InputError: `values` has an option that `config` lacks, so it was written by another version or for another model.
    """
    fields = {field.name: kind for field, kind in _fields(config)}
    replaced = {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(
                f"unknown option {prefix + name!r} in a stored configuration. {nearest(name, list(fields))}"
            )
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            value = restore(current, value, f"{prefix}{name}.")
        replaced[name] = value
    return dataclasses.replace(config, **replaced)


def text(value: Any) -> str:
    """A value as `parse` reads it back."""
    return "none" if value is None else str(value)
