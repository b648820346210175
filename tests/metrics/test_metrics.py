"""Metrics against scikit-learn, a loop over masks, and cases computed by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from cutslots.metrics import ari, ari_fg, miou, miou_fg, mse, object_iou, segmentation, tiles
from cutslots.metrics.registry import better, higher_is_better, title


def label_maps(seed, num_true, num_pred, batch=16, size=24):
    """Blocky random partitions, correlated enough that scores spread over their range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(num_true, (batch, size // 4, size // 4), generator=generator)
    true = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = torch.randint(num_pred, true.shape, generator=generator)
    share = torch.rand(batch, 1, 1, generator=generator)
    keep = torch.rand(true.shape, generator=torch.Generator().manual_seed(seed + 1)) < share
    return true, torch.where(keep, true % num_pred, noise)


def loop_iou(true, pred, num_masks):
    """mIoU of one image by a loop over masks, and the IoU of every true mask with its partner."""
    iou = np.zeros((num_masks, num_masks))
    for i in range(num_masks):
        for j in range(num_masks):
            union = ((true == i) | (pred == j)).sum()
            iou[i, j] = ((true == i) & (pred == j)).sum() / union if union else 0
    matched = list(zip(*linear_sum_assignment(iou, maximize=True), strict=True))
    pairs = sum(bool((true == i).any() or (pred == j).any()) for i, j in matched)
    partners = np.array([iou[pair] for pair in matched])
    foreground = (partners.sum() - partners[0]) / (pairs - 1) if pairs > 1 else 1
    return partners.sum() / pairs, foreground, partners


@pytest.mark.parametrize(("num_true", "num_pred"), [(1, 1), (2, 2), (3, 7), (11, 12), (5, 1)])
def test_ari_equals_scikit_learn(num_true, num_pred):
    true, pred = label_maps(num_true * 31 + num_pred, num_true, num_pred)
    expected = [adjusted_rand_score(t.ravel(), p.ravel()) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(ari(true, pred), expected, atol=1e-12)
    expected = [adjusted_rand_score(t[t > 0], p[t > 0]) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(ari_fg(true, pred), expected, atol=1e-12)


@pytest.mark.parametrize(("num_true", "num_pred"), [(1, 1), (4, 4), (3, 7), (11, 12), (9, 3)])
def test_iou_equals_a_loop_over_masks(num_true, num_pred):
    true, pred = label_maps(num_true * 17 + num_pred, num_true, num_pred)
    size = max(int(true.max()), int(pred.max()), num_pred - 1) + 1
    expected = [loop_iou(t.numpy(), p.numpy(), size) for t, p in zip(true, pred, strict=True)]
    means = [mean for mean, _, _ in expected]
    np.testing.assert_allclose(miou(true, pred, num_pred), means, atol=1e-12)
    means = [foreground for _, foreground, _ in expected]
    np.testing.assert_allclose(miou_fg(true, pred, num_pred), means, atol=1e-12)
    objects = object_iou(true, pred, num_pred)
    assert objects.shape == (len(true), int(true.max()))
    for values, image, (_, _, partners) in zip(objects, true, expected, strict=True):
        visible = [bool((image == k).any()) for k in range(1, 1 + objects.shape[1])]
        partners = np.where(visible, partners[1 : 1 + objects.shape[1]], np.nan)
        np.testing.assert_allclose(values, partners, atol=1e-12)


def test_scores_computed_by_hand():
    true = torch.tensor([[[0, 0, 1, 1, 2, 2]], [[0, 0, 1, 1, 2, 2]]])
    pred = torch.tensor([[[5, 5, 0, 0, 1, 3]], [[0, 1, 1, 1, 2, 2]]])
    # First: of 15 pairs 2 are together in both maps, 3 in true, 2 in pred: (2 - 6/15) / (5/2 -
    # 6/15). Its foreground: of 6 pairs 1, 2 and 1: (1 - 1/3) / (3/2 - 1/3). Second: 2, 3 and 4:
    # (2 - 12/15) / (7/2 - 12/15); its foreground is whole.
    np.testing.assert_allclose(ari(true, pred), [16 / 21, 4 / 9], atol=1e-15)
    np.testing.assert_allclose(ari_fg(true, pred), [4 / 7, 1], atol=1e-15)
    # First: IoUs 1, 1, 1/2, and three spare slots, of which 3 has a pixel. Second: 1/2, 2/3, 1.
    np.testing.assert_allclose(miou(true, pred), [2.5 / 4, (1 / 2 + 2 / 3 + 1) / 3], atol=1e-15)
    np.testing.assert_allclose(miou_fg(true, pred), [1.5 / 3, (2 / 3 + 1) / 2], atol=1e-15)


def test_object_iou_computed_by_hand():
    true = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 2]], [[0, 0, 0, 0, 2, 2, 3, 3]]])
    pred = torch.tensor([[[1, 1, 0, 0, 0, 0, 0, 0]], [[0, 0, 0, 1, 1, 2, 2, 2]]])
    # First: one slot has both objects and is the partner of the larger one, 4 of 6 pixels; the
    # smaller one gets an empty mask. Second: no id 1; ids 2 and 3 share 1 and 2 of 3 pixels.
    expected = [[4 / 6, 0, np.nan], [np.nan, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(object_iou(true, pred), expected, atol=1e-15)


@pytest.mark.parametrize(
    "kinds", [(torch.uint8, torch.int64), (torch.int32, torch.uint8), (torch.int16, torch.int32)]
)
def test_labels_are_any_integers(kinds):
    true, pred = label_maps(5, 6, 9)
    for score in (ari, ari_fg, miou):
        assert torch.equal(score(true.to(kinds[0]), pred.to(kinds[1])), score(true, pred))
    strided = pred.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(ari(true, strided), ari(true, pred))
    shuffled = torch.randperm(9, generator=torch.Generator().manual_seed(0))[pred]
    torch.testing.assert_close(ari(true, pred), ari(true, shuffled))
    torch.testing.assert_close(miou(true, pred, 9), miou(true, shuffled, 9))


def test_degenerate_images():
    empty, one = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.long)
    split = one.clone()
    split[:, :2] = 2
    pairs = ((empty, split), (one, empty), (one, split))
    assert [ari_fg(*pair).item() for pair in pairs] == [1, 1, 0]
    pairs = ((empty, empty), (one, split), (split, one))
    assert [ari(*pair).item() for pair in pairs] == [1, 0, 0]
    assert miou(one, empty).item() == 1
    # A spare slot takes half of the background: IoUs 1/2, 1 and 0 over three pairs.
    true, pred = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 2, 1, 1]]])
    assert miou(true, pred).item() == pytest.approx(0.5)


def test_images_without_objects():
    """In a batch with others: a perfect foreground, and the background as one mask."""
    true = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    pred = torch.tensor([[[2, 2, 2, 2]], [[2, 0, 1, 1]], [[2, 0, 0, 0]]])
    scores = segmentation(true, pred, 4)
    assert scores["ari_fg"].tolist() == [1, 1, 1]
    # Of six pairs one is together in both maps of the second image, two in its true one.
    np.testing.assert_allclose(scores["ari"], [1, 4 / 7, 0], atol=1e-15)
    np.testing.assert_allclose(scores["miou"], [1, (1 / 2 + 1) / 3, (3 / 4) / 2], atol=1e-15)
    np.testing.assert_allclose(scores["miou_fg"], [1, 1 / 2, 0], atol=1e-15)
    np.testing.assert_array_equal(object_iou(true, pred, 4), [[np.nan], [1], [np.nan]])
    assert object_iou(true[:1], pred[:1], 4).shape == (1, 0)


@pytest.mark.parametrize("num_slots", [None, 5, 9])
def test_segmentation_equals_the_single_scores(num_slots):
    maps = label_maps(7, 4, 5)
    single = {"ari_fg": ari_fg(*maps), "ari": ari(*maps)}
    single |= {"miou": miou(*maps, num_slots), "miou_fg": miou_fg(*maps, num_slots)}
    torch.testing.assert_close(segmentation(*maps, num_slots), single, atol=0, rtol=0)


def test_mse_is_summed_over_an_image():
    image = torch.zeros(2, 3, 4, 5)
    off = image + torch.tensor([0.1, 0.5])[:, None, None, None]
    expected = torch.tensor([0.01, 0.25]).double() * 60
    torch.testing.assert_close(mse(image, off), expected, rtol=1e-6, atol=0)


def test_tiles_are_a_square_grid():
    expected = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    assert torch.equal(tiles(4, 4), expected)
    assert torch.equal(tiles(8, 16), tiles(4, 16))
    labels, counts = tiles(11, 32).unique(return_counts=True)
    assert labels.tolist() == list(range(9))
    assert counts.float().std() < 0.1 * 32 * 32 / 9
    assert tiles(1, 8).unique().tolist() == [0]


def test_direction_and_title_of_scores():
    assert higher_is_better("val/video_cut_ari_fg")
    assert not higher_is_better("best/mse")
    assert (better("ari", 0.2, 0.1), better("mse", 0.2, 0.1)) == (True, False)
    assert not better("ari", float("nan"), 0.1)
    assert title("video_ari_fg") == "video ARI-FG"
