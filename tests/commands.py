"""Command lines of the README and of messages: parsing without running."""

from collections.abc import Sequence

import click

from cutslots.cli import group


def parse(words: Sequence[str], command: click.Command = group, name: str = "cutslots") -> None:
    """Parse the words behind `cutslots`.

    Raises:
        click.UsageError: the command line would be refused.
    """
    words = list(words)
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        subcommand = command.get_command(context, words[0])
        if subcommand is None:
            raise click.UsageError(f"no command {words[0]!r} in {name}")
        command, name = subcommand, f"{name} {words.pop(0)}"
    command.make_context(name, words)
