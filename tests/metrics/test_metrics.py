"""Metrics against scikit-learn, the benchmark's per-image loop, and cases worked by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from cutslots.metrics import ari, ari_fg, miou, mse, object_iou, segmentation


def label_maps(seed, num_true, num_pred, batch=16, size=24):
    """Blocky random partitions: correlated enough that scores spread over their range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(num_true, (batch, size // 4, size // 4), generator=generator)
    true = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = torch.randint(num_pred, true.shape, generator=generator)
    keep = torch.rand(true.shape, generator=generator) < torch.rand(
        batch, 1, 1, generator=generator
    )
    return true, torch.where(keep, true % num_pred, noise)


def benchmark_iou(true, pred, num_masks):
    """One image, the definitions written as a loop over masks: mIoU, and the IoU of every true mask with its partner."""
    iou = np.zeros((num_masks, num_masks))
    for i in range(num_masks):
        for j in range(num_masks):
            union = ((true == i) | (pred == j)).sum()
            iou[i, j] = ((true == i) & (pred == j)).sum() / union if union else 0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    pairs = sum(
        bool((true == i).any() or (pred == j).any()) for i, j in zip(rows, columns, strict=True)
    )
    return iou[rows, columns].sum() / pairs, iou[rows, columns]


@pytest.mark.parametrize(("num_true", "num_pred"), [(1, 1), (2, 2), (3, 7), (11, 12), (5, 1)])
def test_ari_equals_scikit_learn(num_true, num_pred):
    true, pred = label_maps(num_true * 31 + num_pred, num_true, num_pred)
    expected = [adjusted_rand_score(t.ravel(), p.ravel()) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(ari(true, pred), expected, atol=1e-12)
    expected = [adjusted_rand_score(t[t > 0], p[t > 0]) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(ari_fg(true, pred), expected, atol=1e-12)


@pytest.mark.parametrize(("num_true", "num_pred"), [(1, 1), (4, 4), (3, 7), (11, 12), (9, 3)])
def test_miou_equals_the_loop_over_masks(num_true, num_pred):
    true, pred = label_maps(num_true * 17 + num_pred, num_true, num_pred)
    size = max(int(true.max()), int(pred.max()), num_pred - 1) + 1
    expected = [benchmark_iou(t.numpy(), p.numpy(), size) for t, p in zip(true, pred, strict=True)]
    np.testing.assert_allclose(
        miou(true, pred, num_pred), [image[0] for image in expected], atol=1e-12
    )
    objects = object_iou(true, pred, num_pred)
    assert objects.shape == (len(true), int(true.max()))
    for found, image, (_, matched) in zip(objects, true, expected, strict=True):
        there = [k for k in range(1, 1 + objects.shape[1]) if (image == k).any()]
        np.testing.assert_allclose(found[[k - 1 for k in there]], matched[there], atol=1e-12)
        assert found.isnan().sum() == objects.shape[1] - len(there)


def test_values_worked_by_hand():
    true = torch.tensor([[[0, 0, 1, 1, 2, 2]], [[0, 0, 1, 1, 2, 2]]])
    pred = torch.tensor([[[5, 5, 0, 0, 1, 3]], [[0, 1, 1, 1, 2, 2]]])
    # First: of 15 pairs 2 are together in both, 3 in the true map, 2 in the other: (2 - 6/15) / (5/2 - 6/15). Its foreground: of 6
    # pairs 1, 2 and 1: (1 - 1/3) / (3/2 - 1/3). Second: 2, 3 and 4: (2 - 12/15) / (7/2 - 12/15); its foreground is whole.
    np.testing.assert_allclose(ari(true, pred), [16 / 21, 4 / 9], atol=1e-15)
    np.testing.assert_allclose(ari_fg(true, pred), [4 / 7, 1], atol=1e-15)
    # First: IoUs 1, 1 and 1/2, and three spare slots of which one, 3, has a pixel. Second: 1/2, 2/3 and 1.
    np.testing.assert_allclose(miou(true, pred), [2.5 / 4, (1 / 2 + 2 / 3 + 1) / 3], atol=1e-15)


@pytest.mark.parametrize(
    "kinds", [(torch.uint8, torch.int64), (torch.int32, torch.uint8), (torch.int16, torch.int32)]
)
def test_any_integers_are_labels(kinds):
    true, pred = label_maps(5, 6, 9)
    for score in (ari, ari_fg, miou):
        assert torch.equal(score(true.to(kinds[0]), pred.to(kinds[1])), score(true, pred))
    strided = pred.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(ari(true, strided), ari(true, pred))


def test_degenerate_images():
    empty = torch.zeros(1, 4, 4, dtype=torch.long)
    one = torch.ones(1, 4, 4, dtype=torch.long)
    split = one.clone()
    split[:, :2] = 2
    assert ari_fg(empty, split).item() == 1
    assert ari_fg(one, empty).item() == 1
    assert ari_fg(one, split).item() == 0
    assert ari(empty, empty).item() == 1
    assert ari(one, split).item() == 0
    assert ari(split, one).item() == 0
    assert miou(one, empty).item() == 1


def test_an_image_without_objects_counts_like_any_other():
    """Among others: its foreground is perfect whatever was predicted, its background is one mask like any."""
    true = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    pred = torch.tensor([[[2, 2, 2, 2]], [[2, 0, 1, 1]], [[2, 0, 0, 0]]])
    found = segmentation(true, pred, 4)
    assert found["ari_fg"].tolist() == [1, 1, 1]
    # Of six pairs one is together in both maps of the second image, two in its true one: (1 - 2/6) / (3/2 - 2/6).
    np.testing.assert_allclose(found["ari"], [1, 4 / 7, 0], atol=1e-15)
    np.testing.assert_allclose(found["miou"], [1, (1 / 2 + 1) / 3, (3 / 4) / 2], atol=1e-15)
    np.testing.assert_array_equal(object_iou(true, pred, 4), [[np.nan], [1], [np.nan]])
    assert object_iou(true[:1], pred[:1], 4).shape == (1, 0)


def test_objects_worked_by_hand():
    true = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 2]], [[0, 0, 0, 0, 2, 2, 3, 3]]])
    pred = torch.tensor([[[1, 1, 0, 0, 0, 0, 0, 0]], [[0, 0, 0, 1, 1, 2, 2, 2]]])
    # First: one slot took both objects. It is the larger one's partner, 4 of 6 pixels; the smaller one lies in it too, but is left
    # with an empty mask. Second: no id 1; id 2 has 1 of 3 pixels in common with its partner, id 3 has 2 of 3.
    expected = [[4 / 6, 0, np.nan], [np.nan, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(object_iou(true, pred), expected, atol=1e-15)


def test_a_spare_slot_lowers_miou():
    true = torch.tensor([[[0, 0, 1, 1]]])
    assert miou(true, true).item() == 1
    # The second half of the background went to a slot of its own: IoUs 1/2, 1 and 0 over three pairs.
    assert miou(true, torch.tensor([[[0, 2, 1, 1]]])).item() == pytest.approx(0.5)


@pytest.mark.parametrize("num_slots", [None, 5, 9])
def test_scores_together_are_the_scores_apart(num_slots):
    true, pred = label_maps(7, 4, 5)
    together = segmentation(true, pred, num_slots)
    apart = {
        "ari_fg": ari_fg(true, pred),
        "ari": ari(true, pred),
        "miou": miou(true, pred, num_slots),
    }
    assert together.keys() == apart.keys()
    for name, score in apart.items():
        assert torch.equal(together[name], score)


def test_labels_are_names_only():
    true, pred = label_maps(3, 4, 5)
    shuffled = torch.tensor([3, 0, 4, 1, 2])[pred]
    torch.testing.assert_close(ari(true, pred), ari(true, shuffled))
    torch.testing.assert_close(miou(true, pred, 5), miou(true, shuffled, 5))


def test_mse_sums_over_an_image():
    image = torch.zeros(2, 3, 4, 5)
    off = image + torch.tensor([0.1, 0.5])[:, None, None, None]
    torch.testing.assert_close(
        mse(image, off), torch.tensor([0.01, 0.25]).double() * 60, rtol=1e-6, atol=0
    )
