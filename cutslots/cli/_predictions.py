"""The folder of a model's predictions: a mask and an overlay a picture, and one list of all of them."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from cutslots.cli._pictures import Picture, Square
from cutslots.errors import InputError
from cutslots.files import atomic, write_text

LIST, MASKS, OVERLAYS = "predictions.json", "masks", "overlays"
SAVE_SECONDS = 5.0


class Predictions:
    """What is written, and what was written before. Every file is there as a whole or not at all.

    Args:
        model: what is known of the model; its `weights` say whether earlier predictions are its own.
        overwrite: forget what was written before.

    Raises:
        InputError: `out` is no folder, or holds something else or predictions of another model.
    """

    def __init__(self, out: Path, model: dict[str, Any], overwrite: bool = False) -> None:
        self.out, self.model = out, model
        self._entries: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()
        if out.exists() and not out.is_dir():
            raise InputError(
                f"--out {out} is a file. Give a folder, which is made when it is missing."
            )
        if (out / LIST).exists() and not overwrite:
            self._entries = self._earlier()

    def _earlier(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads((self.out / LIST).read_text(encoding="utf-8"))
            weights, entries = (
                found["model"]["weights"],
                {each["name"]: each for each in found["images"]},
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.out / LIST} is no list of predictions. Give another --out, or --overwrite."
            ) from None
        if weights != self.model["weights"]:
            raise InputError(
                f"{self.out} has predictions of another model ({weights}). Give another --out, or --overwrite."
            )
        return entries

    def has(self, picture: Picture) -> bool:
        """Whether the picture has its predictions, and is not newer than they are."""
        entry = self._entries.get(picture.name)
        if entry is None or entry["image"] != str(picture.path):
            return False
        try:
            made = min(os.stat(self.out / entry[name]).st_mtime_ns for name in ("mask", "overlay"))
        except OSError:
            return False
        return os.stat(picture.path).st_mtime_ns <= made

    def write(
        self, picture: Picture, square: Square, labels: np.ndarray, reconstruction: np.ndarray
    ) -> None:
        """Write one picture's files and put it on the list."""
        from cutslots.report.figures import mask_image, overlay, slots

        files = {"mask": f"{MASKS}/{picture.name}.png", "overlay": f"{OVERLAYS}/{picture.name}.png"}
        images = {
            "mask": mask_image(labels),
            "overlay": overlay(square.shown, labels, reconstruction),
        }
        for name, image in images.items():
            with atomic(self.out / files[name]) as temporary:
                image.save(temporary, format="PNG")
        self._entries[picture.name] = {
            "name": picture.name,
            "image": str(picture.path),
            "size": list(square.size),
            "square": list(square.box),
            **files,
            "slots": slots(labels, square.box),
        }

    def save(self, now: bool = True) -> None:
        """Write the list; not `now`: only when some seconds have passed since it was written."""
        if not now and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        images = ",\n  ".join(
            json.dumps(self._entries[name]) for name in sorted(self._entries)
        )  # a line each, to be read and compared
        write_text(
            self.out / LIST,
            f'{{\n "model": {json.dumps(self.model)},\n "images": [\n  {images}\n ]\n}}\n',
        )
        self._saved = time.monotonic()
