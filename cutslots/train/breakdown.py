"""IoU of the true objects, grouped by their metadata."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from cutslots.data.batches import Batches
from cutslots.metrics import object_iou
from cutslots.train.evaluate import Scored
from cutslots.train.inputs import label_maps

MAX_GROUPS = 30  # a key with more values, such as a position, does not group objects


def keys(batches: Batches) -> list[str]:
    """The metadata keys that group objects: strings and numbers with at most 30 values."""
    values: dict[str, set[Any]] = defaultdict(set)
    for objects in batches.metadata(range(batches.num_scenes)):
        for metadata in objects:
            for key, value in metadata.items():
                if isinstance(value, str | int | float):
                    values[key].add(value)
    return [key for key, distinct in values.items() if len(distinct) <= MAX_GROUPS]


class Breakdown:
    """Mean IoU of a split's objects by metadata; passed to `evaluate` as `watch`.

    Every object with a pixel at the model's size counts once, with `metrics.object_iou` by the
    alpha masks (`iou`) and the cuts of models that have them (`cut_iou`). Means are over objects.

    Args:
        batches: of images.
        keys: the keys to group by, some of `keys(batches)`.
    """

    def __init__(self, batches: Batches, keys: Sequence[str]) -> None:
        self._batches = batches
        self._values: dict[str, list[Any]] = {key: [] for key in keys}
        self._ious: dict[str, list[np.ndarray]] = defaultdict(list)

    def __call__(self, scored: Scored) -> None:
        """Add the objects of a batch."""
        true, num_slots, visible = scored.true, scored.outputs.alpha.shape[1], np.empty(0)
        for name, labels in label_maps(scored.outputs, true.shape[-1]).items():
            ious = object_iou(true, labels, num_slots).cpu().numpy()
            visible = ~np.isnan(ious)
            self._ious[f"{name.removesuffix('masks')}iou"].append(ious[visible])
        metadata = self._batches.metadata(scored.index)
        for image, column in np.argwhere(visible):
            for key, values in self._values.items():
                values.append(metadata[image][column].get(key))

    def means(self, chosen: Any = slice(None)) -> dict[str, float]:
        """Over all (or the chosen) objects: `num_objects`, `iou` and, for models that cut,
        `cut_iou`."""
        ious = {name: np.concatenate(parts)[chosen] for name, parts in self._ious.items()}
        count = len(ious["iou"])
        return {"num_objects": count, **{n: float(v.mean()) for n, v in ious.items() if count}}

    def groups(self) -> dict[str, dict[str, dict[str, float]]]:
        """For each key and each of its values, in order, the `means` of the objects with it."""
        groups: dict[str, dict[str, dict[str, float]]] = {}
        for key, values in self._values.items():
            numeric = all(type(value) in (int, float) for value in values)
            names = ["(none)" if value is None else str(value) for value in values]
            array = np.array(values if numeric else names)
            groups[key] = {str(value): self.means(array == value) for value in np.unique(array)}
        return groups
