"""list the presets with their parameter counts"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(chosen: argparse.Namespace) -> None:
    """Print every preset."""
    from cutslots.train.config import PRESETS, preset

    for name, function in PRESETS.items():
        config = preset(name)
        parts = {
            part: sum(p.numel() for p in module.parameters())
            for part, module in config.model.build().named_children()
        }
        print(f"{name}: {' '.join((function.__doc__ or '').split())}")
        print(
            f"  {sum(parts.values()):,} parameters: "
            + ", ".join(f"{part} {count:,}" for part, count in parts.items() if count)
        )
    print("their options, with every preset's values: cutslots train --help")
