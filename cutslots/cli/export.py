"""Export a trained model."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cutslots.cli.common import MODEL
from cutslots.errors import InputError
from cutslots.files import write_text

CARD = "README.md"


@click.command(help=f"""Export a trained model as a folder: configuration, weights, model card.

MODEL is {MODEL}. OUT gets config.json, weights.safetensors (neither contains code) and README.md, a
card with scores, run hash, data digest, commit and how to load it. The export is loaded
and compared with the model on random images before it moves to OUT.
""")  # fmt: skip
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.option("--torch", is_flag=True, help="also write model.pt2, which runs without cutslots")
@click.option("--overwrite", is_flag=True, help="replace an earlier export in OUT")
def command(model: str, out: Path, torch: bool, overwrite: bool) -> None:
    import numpy as np

    import cutslots
    from cutslots.report.pages import PROGRAM, model_card
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import origin
    from cutslots.train import load_model, predict
    from cutslots.train.export import CONFIG, WEIGHTS, load_weights, save_model, weights_digest
    from cutslots.train.inputs import image_size
    from cutslots.train.program import save_program

    present = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in present if name not in (CONFIG, WEIGHTS, CARD, PROGRAM)]
    if others or (present and not overwrite):
        raise InputError(
            f"OUT must be empty, got {out} with {', '.join((others or present)[:3])}. "
            + ("Give another folder." if others else "Give another folder, or --overwrite.")
        )
    path = find_model(model)
    trained = load_model(path)
    config, state = load_weights(path)
    weights, version = weights_digest(trained), cutslots.__version__
    about = {**origin(path), "weights": weights, "version": version}
    refused, any_batch = None, None
    with _replaced(out) as folder:
        save_model(state, config, folder, about)
        size = image_size(trained)
        images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
        expected = predict(trained, images)
        for name, value in predict(load_model(folder), images).items():
            assert np.array_equal(value, expected[name]), f"{name} differ in the exported model"
        if torch:
            try:
                any_batch = save_program(trained, folder / PROGRAM)
            except InputError as error:
                refused = error
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        card = model_card(out.resolve().name, config, parameters, about, any_batch)
        write_text(folder / CARD, card)
        files = [f"{f.name} {f.stat().st_size:,} bytes" for f in sorted(folder.iterdir())]
    click.echo(f"{out}: {', '.join(files)}; verified: it gives the same masks as the model")
    if refused:
        raise InputError(f"{PROGRAM} was not written: {refused}")


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`, which replaces `out` as a whole at the end."""
    out = out.resolve()
    new, old = (out.with_name(f".{out.name}.{os.getpid()}.{suffix}") for suffix in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    finally:
        if old.exists() and not out.exists():  # interrupted between the two renames
            os.rename(old, out)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
