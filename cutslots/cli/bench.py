"""Benchmarks of this machine."""

import inspect
import json
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

    params = [_parameter(p) for p in inspect.signature(function).parameters.values()]
    params.append(click.Option(["--json", "json_file"], metavar="FILE", help="write the results"))
    return click.Command(name, callback=run, params=params, help=inspect.getdoc(function))


def _parameter(parameter: inspect.Parameter) -> click.Parameter:
    """A click parameter from `name: Annotated[type, help] = default`; lists are comma-separated."""
    name, (kind, text) = parameter.name, get_args(parameter.annotation)
    if get_origin(kind) is not list and get_args(kind):  # X | None
        kind = get_args(kind)[0]
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return click.Argument([name], type=kind, required=required, default=default)
    option = [f"--{name.replace('_', '-')}", name]
    if kind is bool:
        return click.Option(option, is_flag=True, default=default, help=text)
    metavar = None
    if get_origin(kind) is list:
        (item,) = get_args(kind)

        def items(text: str) -> list[Any]:
            return [item(part) for part in text.split(",")]

        kind, metavar = items, "A,B,..."
    return click.Option(
        option, type=kind, required=required, default=default, help=text, metavar=metavar
    )
