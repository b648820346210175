"""Reader of ClevrTex and its variants.

The raw data is a folder with, at any depth, `CLEVRTEX_<variant>_NNNNNN.png` (image), `..._flat.png`
(palette image whose indices are the instance ids) and `....json` (metadata) for every number from 0
on; it may contain other variants and files. Object k of the metadata has id k. The metadata keeps
what the benchmark keeps (`color` in vbg only, elsewhere it has no effect on the image), the
position, and for every object the ground's material.

Source: Karazija, Laina, Rupprecht, "ClevrTex: A Texture-Rich Benchmark for Unsupervised
Multi-Object Segmentation" (2021) and the reader in https://github.com/karazijal/clevrtex-generation
(layout, splits by number, preprocessing).
"""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cutslots.data import images
from cutslots.data.images import Preprocessing
from cutslots.data.locate import Location
from cutslots.data.record import Ranges, Scene
from cutslots.data.source import Source, naming
from cutslots.errors import InputError, listed
from cutslots.options import option

VARIANTS = ("full", "pbg", "vbg", "grassbg", "camo", "outd")
NUM_FULL = 50_000
KINDS = (".png", "_flat.png", ".json")
NAME = re.compile(rf"CLEVRTEX_({'|'.join(VARIANTS)})_(\d{{6}})(\.png|_flat\.png|\.json)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(Preprocessing):
    """Which variant, and crop and size of the prepared images."""

    variant: str = option("full", "which set of images", choices=VARIANTS)


class Item(NamedTuple):
    """A scene and its files."""

    name: str
    image: Location
    ids: Location
    metadata: Location


class ClevrTex(Source):
    """ClevrTex: textured scenes of up to 10 objects as PNG files, 50,000 in the main set."""

    Options = Options

    def find(self) -> None:
        raw, variant = self.raw, self.options.variant
        if raw.kind == "file":
            raise InputError(f"raw {raw} is a file. Give the folder of the unpacked archives.")
        files: dict[str, dict[str, Location]] = defaultdict(dict)  # by variant and name
        for file, _ in raw.files(recursive=True):
            if match := NAME.fullmatch(file.name):
                other = files[match[1]].setdefault(file.name, file)
                if other != file and match[1] == variant:
                    raise InputError(f"{file.name} exists twice: {other}, {file}. Remove one.")
        own = files.pop(variant, {})
        if not own:
            others = f" It has images of {', '.join(sorted(files))}." if files else ""
            problem = f"has no CLEVRTEX_{variant}_NNNNNN files.{others}"
            raise InputError(f"raw {raw} {problem} Give another variant or folder.")
        self.num_records = 1 + max(int(match[2]) for name in own if (match := NAME.match(name)))
        stems = [f"CLEVRTEX_{variant}_{number:06d}" for number in range(self.num_records)]
        if missing := [stem + kind for stem in stems for kind in KINDS if stem + kind not in own]:
            raise InputError(f"raw {raw} lacks {listed(missing, 5)}. Unpack the archives again.")
        self.items = [Item._make([s.lower(), *(own[s + kind] for kind in KINDS)]) for s in stems]

    def splits(self) -> Ranges:
        """The benchmark's tenths: test, val, and the rest is train; outd is only for testing."""
        if self.options.variant == "outd":
            return {"test": (0, self.num_records)}
        if self.options.variant == "full" and self.num_records != NUM_FULL:
            log.warning(
                "%s has %d images, the published main set %d: the splits are tenths of these",
                *(self.raw, self.num_records, NUM_FULL),
            )
        return super().splits()

    def describe(self, splits: Ranges) -> dict[str, Any]:
        """The number of images, and a fingerprint of the metadata of the first and the last."""
        digest = hashlib.sha256()
        for item in (self.items[0], self.items[-1]):
            text = item.metadata.read()
            with naming(item.metadata):
                _objects(text, self.options.variant)  # damaged, its fingerprint would change later
            digest.update(text)
        return {"images": self.num_records, "fingerprint": digest.hexdigest()[:8]}

    def records(self, splits: Ranges, done: dict[str, int]) -> Iterator[tuple[str, Item]]:
        """The files of every scene; `decode` reads them."""
        for name, number in super().records(splits, done):
            yield name, self.items[number]

    @staticmethod
    def decode(item: Item, options: Any) -> Scene:
        with naming(item.image):
            image = images.rgb(item.image.read())
        with naming(item.metadata):
            objects = _objects(item.metadata.read(), options.variant)
        with naming(item.ids):
            ids = images.ids(item.ids.read())
            if ids.shape != image.shape[:2]:
                raise InputError(f"the size is {ids.shape}, that of its image {image.shape[:2]}.")
            if ids.max() > len(objects):
                described = f"{item.metadata.name} describes {len(objects)} objects"
                raise InputError(f"it has id {ids.max()}, but {described}.")
        image, ids = options.apply(image, ids)
        return Scene(item.name, image, ids, objects)


def _objects(text: bytes, variant: str) -> tuple[dict[str, Any], ...]:
    """The objects in the order of their ids."""
    try:
        metadata = json.loads(text)
        objects, ground = metadata["objects"], metadata["ground_material"]
        described = tuple(_describe(entry, ground, variant) for entry in objects)
        order = [entry.get("index", at) for at, entry in enumerate(objects, start=1)]
        json.dumps(described, allow_nan=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not ClevrTex metadata ({error!r}). Fetch or copy it again.") from None
    if order != list(range(1, len(order) + 1)):
        raise InputError(f"the objects' indices must be 1 to {len(order)} in order, got {order}.")
    return described


def _describe(entry: dict[str, Any], ground: str, variant: str) -> dict[str, Any]:
    words = {name: entry[name] for name in ("shape", "size", "material")}
    for value in (*words.values(), ground):
        if not isinstance(value, str | int | float):
            raise TypeError(f"expected a string or number, got {value!r}")
    return {
        **words,
        **({"color": entry["color"]} if variant == "vbg" else {}),
        "position": [round(float(value), 4) for value in entry["3d_coords"]],
        "rotation": round(float(entry["rotation"]), 4),
        "ground_material": ground,
    }
