"""The command line: one file per command, each with a click command named `command`."""

import importlib
import sys
from collections.abc import Sequence

import click

import cutslots
from cutslots.errors import nearest
from cutslots.exit_status import exit_status

COMMANDS = ("prepare", "check", "train", "evaluate", "best", "report", "predict", "export")
COMMANDS += ("import-published", "baselines", "presets", "sync", "ui", "doctor", "bench")


class _Commands(click.Group):
    """Imports a command's file when it is asked for; nothing heavy is imported for --help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}").command

    def resolve_command(self, ctx, args):
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="CUTSLOTS_HOME is the folder of runs, the tracking store and built-in datasets "
    "(default: ./cutslots-home).",
)
@click.version_option(cutslots.__version__, message="cutslots %(version)s")
def group() -> None:
    """Object-centric learning by differentiable minimum s-t cuts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int | None:
        with group.make_context("cutslots", words) as context:
            return group.invoke(context)

    return exit_status(run, debug="--debug" in words)
