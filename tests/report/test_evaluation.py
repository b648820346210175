"""Evaluation tables, and when published rows can be compared with ours."""

from typing import Any

import pytest

from cutslots.data import Manifest, dataset_name
from cutslots.report.evaluation import published, scores_table

BENCHMARK = {"size": 128, "crop": 0.8, "protocol": "benchmark", "max_objects": None}


def manifest(source: str, settings: dict[str, Any], first: int = 0) -> Manifest:
    return Manifest(source, {}, settings, {"test": (first, first + 15_000)})


@pytest.mark.parametrize(
    ("source", "settings", "name"),
    [
        ("clevr", BENCHMARK, "clevr"),
        ("clevr", BENCHMARK | {"protocol": "slot-attention"}, "clevr_slot-attention"),
        ("clevr", BENCHMARK | {"max_objects": 6}, "clevr"),
        ("clevrtex", {"variant": "full"}, "clevrtex"),
        ("clevrtex", {"variant": "camo", "size": 64}, "clevrtex_camo"),
        ("scenes", {"style": "textured", "count": 10}, "scenes_textured"),
        ("scenes", {}, "scenes"),
        ("unknown", {"variant": "full"}, "unknown"),
    ],
)
def test_dataset_names_have_the_changed_choices(source, settings, name):
    assert dataset_name(manifest(source, settings)) == name


@pytest.mark.parametrize(
    ("source", "settings", "ari_fg"),
    [
        ("clevr", BENCHMARK, 0.9540),
        ("clevrtex", {"variant": "full"}, 0.802),
        ("clevrtex", {"variant": "camo"}, 0.755),
        ("clevrtex", {"variant": "vbg"}, None),
        ("scenes", {}, None),
    ],
)
def test_the_published_protocol_is_comparable(source, settings, ari_fg):
    # All models were trained on the full dataset.
    row = published(manifest(source, settings), "test", 15_000, 128, source)
    assert (row and (row["scores"]["ari_fg"], row["not_comparable"])) == (ari_fg and (ari_fg, []))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image_size": 64}, "scored at 64 x 64, published at 128 x 128"),
        ({"options": {"max_objects": 6}}, "prepared with max_objects 6"),
        ({"options": {"crop": 1.0}}, "prepared with crop 1.0"),
        ({"first": 15_000}, "records from 15,000 on, published from the first on"),
        ({"split": "val"}, "split val, published on test"),
        ({"num_images": 14_999}, "14,999 images, published on at least 15,000"),
        ({"trained_on": "scenes"}, "the model was trained on scenes"),
    ],
)
def test_a_different_protocol_is_named(changed, reason):
    settings = BENCHMARK | changed.pop("options", {})
    data = manifest("clevr", settings, changed.pop("first", 0))
    ours = {"split": "test", "num_images": 15_000, "image_size": 128, "trained_on": "clevr"}
    row = published(data, **(ours | changed))
    assert row is not None
    assert row["not_comparable"] == [reason]


def test_the_table_has_scores_tiles_published_rows_and_groups(cells):
    image = {"ari_fg": 0.5, "ari": 0.25, "miou": 1 / 3, "mse": 12.345, "num_images": 1200.0}
    about = {"split": "val", "digest": "0" * 12, "stored_size": [128, 128], "notes": [], "by": {}}
    about |= {"objects": None, "published": None}
    paper = {"scores": {"ari_fg": 0.95}, "split": "test", "source": "P", "not_comparable": ["x"]}
    groups = {"red": {"num_objects": 3, "iou": 0.5}, "blue": {"num_objects": 2000, "iou": 0.25}}
    total = {"num_objects": 2003, "iou": 0.3}
    scenes = about | {"name": "scenes", "scores": image, "tiles": {"ari_fg": 0.4}}
    scenes |= {"published": paper, "objects": total, "by": {"color": groups}}
    clips = about | {"name": "movi_a", "scores": image | {"video_ari_fg": 0.125}}
    result = {"model": "m", "trained_on": None, "commit": None, "image_size": 64}
    table = scores_table({**result, "sets": [scenes, clips]})
    rows = cells(table)
    assert rows[0] == ["dataset", "split", "images", "ARI-FG", "ARI", "mIoU", "MSE", "video ARI-FG"]
    assert rows[1:5] == [
        ["scenes", "val", "1,200", "0.5000", "0.2500", "0.3333", "12.35", ""],
        ["fixed tiles: scenes", "val", "1,200", "0.4000", "", "", "", ""],
        ["published: scenes", "test", "", "0.95", "", "", "", ""],
        ["movi_a", "val", "1,200", "0.5000", "0.2500", "0.3333", "12.35", "0.1250"],
    ]
    assert rows[5] == ["color", "objects", "IoU"]
    assert [row[0] for row in rows[6:]] == ["blue", "red", "all objects"]  # the worst first
    assert "Published: P; not comparable: x." in table
    assert "128 x 128, scored at 64 x 64" in table
    assert "cut" not in table.replace("cutslots", "")
