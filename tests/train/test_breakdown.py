"""Objects by their metadata, on images whose colors determine the model's masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cutslots.data import Batches, Manifest, Scene, shards
from cutslots.train import evaluate
from cutslots.train.breakdown import MAX_GROUPS, Breakdown, keys

CPU = torch.device("cpu")
SIZE = 8


class FromColors(torch.nn.Module):
    """Slots from red, and with `cuts` the slots of half-size cut masks from green: 50 per slot."""

    config = SimpleNamespace(image_size=SIZE)

    def __init__(self, cuts: bool) -> None:
        super().__init__()
        self.cuts = cuts

    def forward(self, images):
        slots = ((images[:, :2] + 1) * (127.5 / 50)).round().long()
        masks = torch.nn.functional.one_hot(slots, 4).movedim(-1, 2).float()
        outputs = SimpleNamespace(alpha=masks[:, 0], reconstruction=images)
        if self.cuts:
            outputs.masks = masks[:, 1, :, ::2, ::2]
        return outputs


def rows(*labels):
    """A label map with one label per row, 0 below the given ones."""
    padded = np.array([*labels, *[0] * (SIZE - len(labels))], np.uint8)
    return np.repeat(padded[:, None], SIZE, 1)


def stored(folder, scenes):
    """Scenes of (true ids, slots, slots of the cuts, metadata) as a prepared dataset."""

    def read():
        for number, (true, slots, cuts, objects) in enumerate(scenes):
            image = np.stack([50 * slots, 50 * cuts, 0 * slots], -1)
            yield "test", Scene(f"scene_{number}", image, true, tuple(objects))

    with shards.writing(folder, Manifest("made", {}, {}, {"test": (0, len(scenes))})) as writer:
        writer.write(read())
        writer.finish(len(scenes))
    return Batches(folder, "test", 5, shuffle=False, drop_last=False)


@pytest.fixture
def batches(tmp_path):
    """Three scenes. First: object 1 complete, 4 of 16 pixels of object 2; both by the cuts. Second:
    object 1 joined with the ground, two thirds by the cuts; object 2 hidden. Third: no object."""
    half = rows(1, 1)
    half[2, :4] = 2
    metadata = (
        {"material": "rubber", "fixed": True, "position": [1.0, 2.0]},
        {"material": "metal", "fixed": False, "weight": 0.5},
    )
    scenes = [
        (rows(1, 1, 2, 2), half, rows(1, 1, 2, 2), metadata),
        (rows(1, 1, 1), rows(*[3] * 8), rows(1, 1), metadata),
        (rows(), rows(), rows(), []),
    ]
    return stored(tmp_path / "data", scenes)


def test_groups_computed_by_hand(batches):
    breakdown = Breakdown(batches, ["material", "weight"])
    scores, _ = evaluate(FromColors(cuts=True), batches, CPU, watch=breakdown)
    assert breakdown.means() == pytest.approx(
        {"num_objects": 3, "iou": (1 + 1 / 4 + 0) / 3, "cut_iou": (1 + 1 + 2 / 3) / 3}
    )
    groups = breakdown.groups()
    assert {key: list(values) for key, values in groups.items()} == {
        "material": ["metal", "rubber"],
        "weight": ["(none)", "0.5"],
    }
    assert groups["material"]["metal"] == {"num_objects": 1, "iou": 0.25, "cut_iou": 1}
    rubber = {"num_objects": 2, "iou": 1 / 2, "cut_iou": (1 + 2 / 3) / 2}
    assert groups["material"]["rubber"] == pytest.approx(rubber)
    # The same assignment as in mIoU: with the backgrounds 32/44 and 40/64, and the empty image.
    assert scores["miou"] == pytest.approx(((1 + 1 / 4 + 32 / 44) / 3 + (40 / 64) / 2 + 1) / 3)


def test_part_of_a_split_without_cuts(batches):
    breakdown = Breakdown(batches, ["fixed"])
    evaluate(FromColors(cuts=False), batches, CPU, 1, watch=breakdown)
    assert breakdown.groups() == {
        "fixed": {"False": {"num_objects": 1, "iou": 0.25}, "True": {"num_objects": 1, "iou": 1}}
    }


def test_keys_have_few_strings_or_numbers(batches, tmp_path):
    """Also in a split in which no object has a pixel."""
    assert keys(batches) == ["material", "fixed", "weight"]
    scene = rows(), rows(), rows()
    scenes = [(*scene, [{"mass": i / 8, "count": i % 3}]) for i in range(MAX_GROUPS + 1)]
    empty = stored(tmp_path / "many", scenes)
    assert keys(empty) == ["count"]
    breakdown = Breakdown(empty, ["count"])
    evaluate(FromColors(cuts=True), empty, CPU, watch=breakdown)
    assert (breakdown.means(), breakdown.groups()) == ({"num_objects": 0}, {"count": {}})
