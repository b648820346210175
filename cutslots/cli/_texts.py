"""Texts that several commands print."""

from typing import TYPE_CHECKING

from cutslots import options

if TYPE_CHECKING:
    from cutslots.data import Manifest


def summary(manifest: "Manifest") -> str:
    """A prepared dataset in one line."""
    splits = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    height, width = manifest.image_size
    return f"{manifest.source}, {splits}; {height} x {width}, at most {manifest.max_objects} objects, digest {manifest.digest}"


def options_table() -> str:
    """Every option of training with its value in each preset, its meaning, type and range."""
    from cutslots.train.config import PRESETS, preset

    columns = {name: options.flat(preset(name)) for name in PRESETS}
    lines = ["options for --set, by their path or any unambiguous ending of it:", ""]
    lines.append(f"  {'':<30}" + "".join(f"{name:<15}" for name in columns))
    for option in options.describe(preset("small")):
        values = "".join(f"{options.text(column.get(option.path)):<15}" for column in columns.values())
        kind = ", ".join(part for part in (options.type_name(option.type), option.range) if part)
        lines.append(f"  {option.path:<30}{values}{option.help} ({kind})")
    return "\n".join(lines)
