"""The control of every evaluation: what a grid that is the same on every image scores."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cutslots.data import Batches
from cutslots.train import evaluate
from cutslots.train.tiles import tiles, tiles_scores


class Tiler(nn.Module):
    """A model that answers every image with the same masks."""

    def __init__(self, labels: Tensor, num_slots: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=len(labels), num_slots=num_slots)
        self.alpha = nn.functional.one_hot(labels, num_slots).permute(2, 0, 1).float()

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(
            alpha=self.alpha.expand(len(images), -1, -1, -1), reconstruction=images
        )


def test_a_square_of_at_most_as_many_tiles_as_slots():
    assert tiles(1, 8).unique().tolist() == [0]
    assert torch.equal(
        tiles(4, 4), torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    )
    assert torch.equal(tiles(8, 16), tiles(4, 16))
    nine = tiles(11, 32)
    assert nine.shape == (32, 32)
    assert nine.unique().tolist() == list(range(9))
    assert nine.unique(return_counts=True)[1].float().std() < 0.1 * 32 * 32 / 9, "about equal ones"


@pytest.mark.parametrize(("num_slots", "limit"), [(4, None), (7, 3), (11, None)])
def test_they_score_what_a_model_that_paints_them_would(num_slots, limit, data_dir, clips_dir):
    for folder in (data_dir, clips_dir):
        batches = Batches(folder, "val", 4, shuffle=False, drop_last=False)
        model = Tiler(tiles(num_slots, 32), num_slots)
        found, _ = evaluate(model, batches, torch.device("cpu"), limit)
        scores = tiles_scores(batches, num_slots, 32, limit)
        assert scores == pytest.approx({name: found[name] for name in scores})
        assert {name for name in found if "ari" in name or "miou" in name} == scores.keys()
