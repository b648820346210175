"""List the presets."""

import click


@click.command
def command() -> None:
    """List the presets with their parameter counts."""
    from cutslots.train.config import PRESETS, preset

    for name, function in PRESETS.items():
        parts = {
            part: sum(p.numel() for p in module.parameters())
            for part, module in preset(name).model.build().named_children()
        }
        click.echo(f"{name}: {' '.join((function.__doc__ or '').split())}")
        counts = ", ".join(f"{part} {count:,}" for part, count in parts.items() if count)
        click.echo(f"  {sum(parts.values()):,} parameters: {counts}")
    click.echo("Options with the values of every preset: cutslots train --help")
