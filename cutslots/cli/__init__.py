"""The command line: every module of this folder is a command, and what `Command` lists is all that it needs.

Errors of the user's making exit with status 2.
"""

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol, cast

import cutslots
from cutslots.errors import nearest
from cutslots.exit_status import exit_status

# The help lists commands in the order in which they are needed; a new one comes behind these, by name.
ORDER = (
    "prepare",
    "check",
    "train",
    "evaluate",
    "best",
    "report",
    "predict",
    "export",
    "baselines",
    "presets",
    "sync",
    "ui",
    "bench",
)


class Command(Protocol):
    """What a command's module holds; the first line of its docstring is its help, the rest the description in its own help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments; called only when this command is the chosen one."""
        ...

    def run(self, chosen: argparse.Namespace) -> int | None:
        """Do it; returns the exit status, None for 0."""
        ...


def names() -> list[str]:
    """The names of all commands, in the order of the help."""
    found = sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""

    def run() -> int:
        chosen = parser().parse_args(arguments)
        return exit_status(lambda: chosen.run(chosen), debug=getattr(chosen, "debug", False))

    # The outer one is for Ctrl-C while a command imports what its arguments need, for seconds.
    return exit_status(run, debug=True)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it parses holds the command's `run`."""
    top = argparse.ArgumentParser(
        prog="cutslots",
        description="Object-centric learning by differentiable minimum cuts.",
        formatter_class=_Help,
        epilog="CUTSLOTS_HOME names the folder of runs, tracking store and built-in data; default ./cutslots-home.",
    )
    top.add_argument("--version", action="version", version=f"cutslots {cutslots.__version__}")
    commands = top.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_CommandParser
    )
    for name in names():
        command = cast(Command, importlib.import_module(f"{__name__}.{name}"))
        help_line, _, description = (command.__doc__ or name).partition("\n")
        each = commands.add_parser(name, help=help_line, description=description.strip() or None)
        each.command = command
        each.set_defaults(run=command.run)
    return top


class _Help(argparse.HelpFormatter):
    """Leaves room for the longest command: argparse forgets by how much it indents them."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length = max(
            [self._action_max_length, *(len(name) + 4 for name in names())]
        )


class _CommandParser(argparse.ArgumentParser):
    """Asks its command for arguments when it is chosen: what one command imports costs, and can break, no other command."""

    command: Command | None = None

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        command, self.command = self.command, None
        if command:
            command.add_arguments(self)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # said here, the usage is the command's own
            options = [
                name
                for action in self._actions
                for name in action.option_strings
                if name.startswith("--")
            ]
            hint = (
                nearest(unknown[0].partition("=")[0], options)
                if unknown[0].startswith("--")
                else ""
            )
            self.error(f"unrecognized arguments: {' '.join(unknown)}. {hint}".strip())
        return namespace, unknown
