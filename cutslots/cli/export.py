"""a trained model as a folder of its own: configuration, weights, card

OUT gets config.json, weights.safetensors (neither holds code) and README.md, a card with scores, signature, digest of the data,
commit, and how to load it; with --torch also model.pt2, a program of torch.export that runs without cutslots. What was written is
loaded and compared with the model on random images before OUT is there.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cutslots.errors import InputError
from cutslots.files import write_text

CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and where to."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's name or folder, a checkpoint, an exported folder, an MLflow run id, or models:/NAME@champion",
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--torch",
        action="store_true",
        help="also a program of torch.export, where the model can be traced",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")


def run(chosen: argparse.Namespace) -> int:
    """Export; status 1 when a program was asked for and cannot be had."""
    import cutslots
    from cutslots.report.pages import PROGRAM, model_card
    from cutslots.runs.lookup import find_model
    from cutslots.runs.provenance import origin
    from cutslots.train import load_model
    from cutslots.train.export import CONFIG, WEIGHTS, load_weights, save_model, weights_digest
    from cutslots.train.program import save_program

    out = Path(chosen.out)
    _check(out, chosen.overwrite, (CONFIG, WEIGHTS, CARD, PROGRAM))
    path = find_model(chosen.model)
    model, known = load_model(path), origin(path)
    config, state = load_weights(path)
    known |= {"weights": weights_digest(model), "version": cutslots.__version__}
    refused, any_number = None, None
    with _replaced(out) as folder:
        save_model(state, config, folder, known)
        _compare(model, load_model(folder))
        if chosen.torch:
            try:
                any_number = save_program(model, folder / PROGRAM)
            except InputError as error:
                refused = error
        parameters = sum(parameter.numel() for parameter in model.parameters())
        name = out.resolve().name
        write_text(folder / CARD, model_card(name, config, parameters, known, any_number))
        files = ", ".join(
            f"{file.name} {file.stat().st_size:,} bytes" for file in sorted(folder.iterdir())
        )
    print(f"{out}: {files}")
    images = {None: "", True: "any number of images", False: "one image"}[any_number]
    print(
        "loaded back, it gives the same masks"
        + (f"; so does {PROGRAM}, which takes {images} a call" if images else "")
    )
    if refused:
        print(f"{PROGRAM} is left out: {refused}", file=sys.stderr)
    return int(refused is not None)


def _check(out: Path, overwrite: bool, ours: tuple[str, ...]) -> None:
    """Refuse to lose what is no export."""
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT {out} is a file. Give a folder, which is made when it is missing.")
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if there and not overwrite:
        raise InputError(
            f"OUT {out} is not empty. Give another folder, or --overwrite to replace an earlier export."
        )
    others = [name for name in there if name not in ours]
    if others:
        raise InputError(
            f"OUT {out} holds {', '.join(others[:3])}, which no export has. Give another folder."
        )


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place in the end, as a whole."""
    out = out.resolve()
    new, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    finally:
        if old.exists() and not out.exists():  # interrupted between the two
            os.rename(old, out)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _compare(model: Any, exported: Any) -> None:
    import numpy as np

    from cutslots.train import predict
    from cutslots.train.inputs import image_size

    size = image_size(model)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    expected = predict(model, images)
    for name, value in predict(exported, images).items():
        assert np.array_equal(value, expected[name]), f"the exported model gives other {name}"
