"""Arguments and output that several commands share."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cutslots.files import home

if TYPE_CHECKING:
    from cutslots.data import Manifest

MODEL = "a run's name or folder (its best checkpoint), a checkpoint, an exported folder, an MLflow "
MODEL += "run id, or a model URI such as models:/NAME@champion"
device_option = click.option(
    "--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)"
)
POSITIVE = click.IntRange(min=1)
batch_size_option = click.option("--batch-size", type=POSITIVE, default=32)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="replace existing output that was made differently"
)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, as a callback `update(name, done, total)`."""
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stderr)
    tasks: dict[str, Any] = {}
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(f"{unit}, left"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:

        def update(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield update


def dataset_path(name: str) -> Path | str:
    """A path or URI as given, or else the folder of that name in CUTSLOTS_HOME/data."""
    stored = home() / "data" / name
    return stored if "://" not in name and not Path(name).exists() and stored.exists() else name


def summary(manifest: "Manifest") -> str:
    """A prepared dataset in one line."""
    splits = ", ".join(f"{split.count:,} {name}" for name, split in manifest.splits.items())
    height, width = manifest.image_size
    return (
        f"{manifest.source}, {splits}; {height} x {width}, "
        f"at most {manifest.max_objects} objects, digest {manifest.digest}"
    )
