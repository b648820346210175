"""Benchmarks of this machine."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from cutslots import bench
from cutslots.files import write_text


class _Benchmarks(click.Group):
    """One subcommand per benchmark; the parameters of its function are its arguments."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(bench.COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _benchmark(cmd_name) if cmd_name in bench.COMMANDS else None


@click.group(cls=_Benchmarks, help=f"Measure this machine: {', '.join(bench.COMMANDS)}.")
def command() -> None:
    pass


def _benchmark(name: str) -> click.Command:
    function = bench.load(name)

    def run(json_file: str | None, **arguments: Any) -> None:
        results = function(**arguments)
        if json_file:
            write_text(Path(json_file), json.dumps(results, indent=2) + "\n")

    params: list[click.Parameter] = [
        _parameter(name, parameter)
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    params.append(click.Option(["--json", "json_file"], metavar="FILE", help="write the results"))
    return click.Command(name, callback=run, params=params, help=inspect.getdoc(function))


def _parameter(name: str, parameter: inspect.Parameter) -> click.Parameter:
    """A click parameter from `name: Annotated[type, help] = default`; lists are comma-separated."""
    kind, text = get_args(parameter.annotation)
    is_list = get_origin(kind) is list
    if not is_list and get_args(kind):  # X | None
        kind = get_args(kind)[0]
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return click.Argument([name], type=kind, required=required, default=default)
    option = [f"--{name.replace('_', '-')}", name]
    if kind is bool:
        return click.Option(option, is_flag=True, default=default, help=text)
    if is_list:
        kind = _Commas(get_args(kind)[0])
    return click.Option(option, type=kind, required=required, default=default, help=text)


class _Commas(click.ParamType):
    """A list of values separated by commas."""

    name = "list"

    def __init__(self, item: Callable[[str], Any]) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return [self.item(part) for part in value.split(",")]
        except ValueError as error:
            self.fail(str(error), param, ctx)
