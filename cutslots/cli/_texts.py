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
    """Every option of training, a table a model, with its value in each preset, its meaning, type and range."""
    from cutslots.train.config import PRESETS, RunConfig, preset

    by_model: dict[str, dict[str, RunConfig]] = {}
    for name in PRESETS:
        by_model.setdefault(preset(name).model_name, {})[name] = preset(name)
    lines = ["options for --set, by their path or any unambiguous ending of it:"]
    for model, presets in by_model.items():
        described = options.describe(next(iter(presets.values())))
        columns = {name: options.flat(config) for name, config in presets.items()}
        margin = 2 + max(len(option.path) for option in described)
        widths = {name: max(15, len(name) + 2) for name in columns}
        lines += [
            "",
            f"  {model:<{margin}}" + "".join(f"{name:<{width}}" for name, width in widths.items()),
        ]
        for option in described:
            values = "".join(
                f"{options.text(columns[name][option.path]):<{width}}"
                for name, width in widths.items()
            )
            kind = ", ".join(
                part for part in (options.type_name(option.type), option.range) if part
            )
            lines.append(f"  {option.path:<{margin}}{values}{option.help} ({kind})")
    return "\n".join(lines)
