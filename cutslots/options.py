"""Typed options: frozen dataclasses whose fields carry their help and range.

`option(default, help, ...)` declares a field. `describe(config)` lists every option with its path,
type and help; `override(config, "cut.gamma=0.3")` returns a copy with one value replaced. A path
may be shortened to an unambiguous ending: `gamma` or `cut.gamma` for `model.cut.gamma`.
"""

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from cutslots.errors import InputError, nearest

BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    odd: bool = False,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with a help text and what `check` checks: inclusive range, odd, choices."""
    span = " | ".join(choices)
    if low is not None:
        span = f">= {low}" if high is None else f"{low} to {high}"
    elif high is not None:
        span = f"<= {high}"
    limits = {"low": low, "high": high, "odd": odd, "choices": tuple(choices)}
    range = ", ".join(filter(None, (span, "odd" if odd else "")))
    return dataclasses.field(default=default, metadata={"help": help, "range": range, **limits})


class Option(NamedTuple):
    """One option of a config; `range` is text such as ">= 1, odd"."""

    path: str
    type: Any
    value: Any
    help: str
    range: str


def describe(config: Any, prefix: str = "") -> list[Option]:
    """Every option of a config, including nested ones, in order of declaration."""
    options, types = [], typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            options += describe(value, f"{path}.")
        else:
            help, range = (field.metadata.get(key, "") for key in ("help", "range"))
            options.append(Option(path, types[field.name], value, help, range))
    return options


def flat(config: Any) -> dict[str, Any]:
    """A config as one dictionary, `{"model.cut.gamma": 0.5, ...}`."""
    return {option.path: option.value for option in describe(config)}


def override(config: Any, assignment: str) -> Any:
    """A copy of `config` with the option before `=` set to the text after it, parsed."""
    path, separator, value = assignment.partition("=")
    if not separator:
        raise InputError(
            f"option {assignment!r} has no value. Write NAME=VALUE, for example cut.gamma=0.3."
        )
    option = resolve(config, path.strip())
    replaced: Any = parse(value.strip(), option.type, option.path)
    names = option.path.split(".")
    for depth in reversed(range(len(names))):
        parent = functools.reduce(getattr, names[:depth], config)
        replaced = dataclasses.replace(parent, **{names[depth]: replaced})
    return replaced


def resolve(config: Any, path: str) -> Option:
    """The one option whose path is or ends with `path`; InputError if there are none or several."""
    options = describe(config)
    matches = [option for option in options if option.path == path] or [
        option for option in options if option.path.endswith("." + path)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(option.path for option in matches)
        raise InputError(f"option {path!r} is ambiguous: {listed}. Give more of the path.")
    parts = [option.path.split(".") for option in options]
    endings = [".".join(names[start:]) for names in parts for start in range(len(names))]
    raise InputError(f"unknown option {path!r}. {nearest(path, endings)}")


def check(config: Any, prefix: str = "") -> None:
    """Raise InputError unless every value fits its option's type, range, choices and oddness.

    A class with a method `check` is asked too: it checks which values go together.
    """
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check(value, name + ".")
            continue
        accepted = typing.get_args(types[field.name]) or (types[field.name],)
        if float in accepted:
            accepted += (int,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            raise InputError(f"{name} must be {type_name(types[field.name])}, got {value!r}.")
        if value is None:
            continue
        choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
        fits = not choices or value in choices
        if isinstance(value, int | float):
            fits &= (low is None or value >= low) and (high is None or value <= high)
            fits &= value == value and not (field.metadata.get("odd") and value % 2 == 0)
        if not fits:
            hint = f" {nearest(str(value), choices)}" if choices else ""
            raise InputError(f"{name} must be {field.metadata['range']}, got {value!r}.{hint}")
    if hasattr(config, "check"):
        config.check()


def parse(text: str, kind: Any, name: str) -> Any:
    """A text from the command line as a value of type `kind`; InputError if it is not one."""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        if text.lower() in ("none", ""):
            return None
        kind = next(argument for argument in arguments if argument is not type(None))
    try:
        return BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{name} must be {type_name(kind)}, got {text!r}.") from None


def restore(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """A copy of `config` with the nested `values` of `dataclasses.asdict`.

    InputError if they have an unknown option: another version or another model wrote them.
    """
    names, replaced = [field.name for field in dataclasses.fields(config)], {}
    for name, value in values.items():
        if name not in names:
            hint = nearest(name, names)
            raise InputError(f"unknown option {prefix + name!r} in a stored configuration. {hint}")
        current = getattr(config, name)
        nested = dataclasses.is_dataclass(current)
        replaced[name] = restore(current, value, f"{prefix}{name}.") if nested else value
    return dataclasses.replace(config, **replaced)


def type_name(kind: Any) -> str:
    """A type as a person writes it, such as "float | None"."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def text(value: Any) -> str:
    """A value as `parse` reads it."""
    return "none" if value is None else str(value)
