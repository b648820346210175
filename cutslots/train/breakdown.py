"""How well objects are found, by what the metadata say of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cutslots.data.batches import Batches
from cutslots.metrics import object_iou
from cutslots.train.scoring import label_maps

MOST_NUMBERS = 10  # a key of more different numbers than this is shown in thirds


def keys(batches: Batches) -> list[str]:
    """The keys of metadata that objects can be grouped by: those of words and numbers."""
    found: dict[str, None] = {}
    for objects in batches.metadata(range(batches.num_scenes)):
        for entry in objects:
            found |= {
                key: None for key, value in entry.items() if isinstance(value, str | int | float)
            }
    return list(found)


class Breakdown:
    """IoUs of the true objects of a split by keys of their metadata; made to be `evaluate`'s `watch`.

    Every object counts once that has a pixel at the model's size, with `metrics.object_iou` on the alpha masks and, in models that
    cut, on the cut masks. Means are over objects, not over images.

    Args:
        keys: of `keys`.
    """

    def __init__(self, batches: Batches, keys: Sequence[str]) -> None:
        self._batches = batches
        self._values: dict[str, list[Any]] = {key: [] for key in keys}
        self._ious: dict[str, list[np.ndarray]] = defaultdict(list)

    def __call__(self, index: np.ndarray, true: Tensor, outputs: Any) -> None:
        """Take in the objects of a batch."""
        ious = {
            f"{name.removesuffix('masks')}iou": object_iou(true, labels, outputs.alpha.shape[1])
            .cpu()
            .numpy()
            for name, labels in label_maps(outputs, true.shape[-1]).items()
        }
        seen = ~np.isnan(ious["iou"])
        for name, values in ious.items():
            self._ious[name].append(values[seen])
        described = self._batches.metadata(index)
        for image, column in np.argwhere(seen):
            for key, values in self._values.items():
                values.append(described[image][column].get(key))

    def means(self) -> dict[str, float]:
        """Over all objects: `num_objects`, `iou` and, in models that cut, `cut_iou`."""
        return self._means(slice(None))

    def groups(self) -> dict[str, dict[str, dict[str, float]]]:
        """For every key and value of it what `means` gives of the objects with that value, in the order of the values.

        A key of more than ten different numbers is cut into three groups of about as many objects, named by their least and
        largest number.
        """
        return {
            key: {name: self._means(rows) for name, rows in _groups(values)}
            for key, values in self._values.items()
        }

    def _means(self, rows: Any) -> dict[str, float]:
        ious = {name: np.concatenate(parts)[rows] for name, parts in self._ious.items()}
        count = len(ious["iou"])
        return {"num_objects": count} | {
            name: float(values.mean()) for name, values in ious.items() if count
        }


def _groups(values: Sequence[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of every group."""
    array = np.array(
        values
        if _numbers(values)
        else ["(none)" if value is None else str(value) for value in values]
    )
    distinct = np.unique(array)
    if array.dtype.kind not in "if" or len(distinct) <= MOST_NUMBERS:
        yield from ((str(value), array == value) for value in distinct)
        return
    third = np.searchsorted(np.quantile(array, [1 / 3, 2 / 3]), array)
    for number in np.unique(third):
        rows = third == number
        yield f"{array[rows].min():g} to {array[rows].max():g}", rows


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
