"""Objects by their metadata, on images whose colours say what the model makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cutslots.data import Batches, Scene, shards
from cutslots.train import evaluate
from cutslots.train.breakdown import Breakdown, keys

CPU = torch.device("cpu")
SIDE = 8


@dataclass(frozen=True)
class Size:
    image_size: int = SIDE


class FromColours(torch.nn.Module):
    """Takes its slots from red, and with `cuts` those of its cut masks, at half the size, from green: 50 a slot."""

    config = Size()

    def __init__(self, cuts: bool) -> None:
        super().__init__()
        self.cuts = cuts

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        slots = ((images[:, :2] + 1) * (127.5 / 50)).round().long()
        masks = torch.nn.functional.one_hot(slots, 4).movedim(-1, 2).float()
        outputs = SimpleNamespace(alpha=masks[:, 0], reconstruction=images)
        if self.cuts:
            outputs.masks = masks[:, 1, :, ::2, ::2]
        return outputs


def rows(*labels: int) -> np.ndarray:
    """A label map of SIDE rows of one label each."""
    return np.repeat(np.array(labels, np.uint8)[:, None], SIDE, 1)


def stored(
    folder: Path,
    scenes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[dict[str, Any]]]],
) -> Batches:
    """Scenes of (true ids, slots, slots of the cuts, metadata) as a prepared set, in batches of 5."""

    def read(done: dict[str, int]):
        for number, (true, slots, cuts, objects) in enumerate(scenes):
            image = np.stack([50 * slots, 50 * cuts, 0 * slots], -1)
            yield "test", Scene(f"scene_{number}", image, true, tuple(objects))
        return len(scenes)

    shards.write(read, folder, shards.Info("made", {}, {}, {"test": (0, len(scenes))}))
    return Batches(folder, "test", 5, shuffle=False, drop_last=False)


@pytest.fixture
def worked(tmp_path: Path) -> Batches:
    """Three scenes. First: object 1 found, 4 of the 16 pixels of object 2; both by the cuts. Second: object 1 not parted from the
    ground, two thirds of it by the cuts; object 2 hidden. Third: no object."""
    half = rows(1, 1, 0, 0, 0, 0, 0, 0)
    half[2, :4] = 2
    first = rows(1, 1, 2, 2, 0, 0, 0, 0), half, rows(1, 1, 2, 2, 0, 0, 0, 0)
    second = rows(1, 1, 1, 0, 0, 0, 0, 0), rows(*[3] * 8), rows(1, 1, 0, 0, 0, 0, 0, 0)
    nothing = rows(*[0] * 8)
    words = (
        {"material": "rubber", "fixed": True, "place": [1.0, 2.0]},
        {"material": "metal", "fixed": False, "weight": 0.5},
    )
    return stored(
        tmp_path / "worked", [(*first, words), (*second, words), (nothing, nothing, nothing, [])]
    )


def test_worked_by_hand(worked):
    breakdown = Breakdown(worked, ["material", "weight"])
    scores, _ = evaluate(FromColours(cuts=True), worked, CPU, watch=breakdown)
    assert breakdown.means() == pytest.approx(
        {"num_objects": 3, "iou": (1 + 1 / 4 + 0) / 3, "cut_iou": (1 + 1 + 2 / 3) / 3}
    )
    groups = breakdown.groups()
    assert list(groups) == ["material", "weight"]
    assert list(groups["material"]) == ["metal", "rubber"]
    assert groups["material"]["metal"] == {"num_objects": 1, "iou": 0.25, "cut_iou": 1}
    assert groups["material"]["rubber"] == pytest.approx(
        {"num_objects": 2, "iou": 1 / 2, "cut_iou": (1 + 2 / 3) / 2}
    )
    assert {name: group["num_objects"] for name, group in groups["weight"].items()} == {
        "(none)": 2,
        "0.5": 1,
    }
    # The same assignment as in mIoU: with the backgrounds, 32 of 44 and 40 of 64 pixels, and the empty image.
    assert scores["miou"] == pytest.approx(((1 + 1 / 4 + 32 / 44) / 3 + (40 / 64) / 2 + 1) / 3)


def test_models_without_cuts_and_parts_of_a_split(worked):
    breakdown = Breakdown(worked, ["fixed"])
    evaluate(FromColours(cuts=False), worked, CPU, 1, watch=breakdown)
    assert breakdown.groups() == {
        "fixed": {"False": {"num_objects": 1, "iou": 0.25}, "True": {"num_objects": 1, "iou": 1}}
    }


def test_no_object_at_all(tmp_path):
    nothing = rows(*[0] * 8)
    batches = stored(tmp_path / "empty", [(nothing, nothing, nothing, [{"shape": "cube"}])])
    breakdown = Breakdown(batches, keys(batches))
    evaluate(FromColours(cuts=True), batches, CPU, watch=breakdown)
    assert breakdown.means() == {"num_objects": 0}
    assert breakdown.groups() == {"shape": {}}


def test_words_and_numbers_are_keys(worked):
    assert keys(worked) == ["material", "fixed", "weight"]


def test_many_numbers_are_shown_in_thirds(tmp_path):
    """Of twelve objects the four lightest are found, the next half, the heaviest not at all."""
    true = rows(1, 1, 0, 0, 0, 0, 0, 0)
    found = [true, rows(1, 0, 0, 0, 0, 0, 0, 0), rows(*[0] * 8)]
    scenes = [(true, found[i // 4], true, [{"mass": i / 8, "number": i % 3}]) for i in range(12)]
    batches = stored(
        tmp_path / "masses", [scenes[i] for i in np.random.default_rng(0).permutation(12)]
    )
    breakdown = Breakdown(batches, keys(batches))
    evaluate(FromColours(cuts=False), batches, CPU, watch=breakdown)
    groups = breakdown.groups()
    assert groups["mass"] == {
        "0 to 0.375": {"num_objects": 4, "iou": 1},
        "0.5 to 0.875": {"num_objects": 4, "iou": 0.5},
        "1 to 1.375": {"num_objects": 4, "iou": 0},
    }
    assert {name: group["num_objects"] for name, group in groups["number"].items()} == {
        "0": 4,
        "1": 4,
        "2": 4,
    }
