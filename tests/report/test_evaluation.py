"""The published rows: beside which sets they stand, and when they can be compared."""

from typing import Any

import pytest

from cutslots.data import Manifest
from cutslots.report.evaluation import published, scores_table, set_name

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
        ("somebodys", {"variant": "full"}, "somebodys"),
    ],
)
def test_a_set_is_named_by_what_was_chosen(source, settings, name):
    assert set_name(manifest(source, settings)) == name


def test_made_as_published():
    for source, settings, ari_fg in (
        ("clevr", BENCHMARK, 0.9540),
        ("clevrtex", {"variant": "full"}, 0.802),
        ("clevrtex", {"variant": "outd"}, 0.726),
        ("clevrtex", {"variant": "camo"}, 0.755),
    ):
        row = published(
            manifest(source, settings), "test", 15_000, 128, source
        )  # all trained on the full set
        assert row is not None
        assert row["scores"]["ari_fg"] == ari_fg
        assert row["not_comparable"] == []
    assert (
        published(manifest("clevrtex", {"variant": "vbg"}), "test", 2_000, 128, "clevrtex") is None
    )
    assert published(manifest("scenes", {}), "test", 2_000, 128, None) is None


@pytest.mark.parametrize(
    ("data", "split", "images", "side", "trained_on", "reason"),
    [
        (
            manifest("clevr", BENCHMARK),
            "test",
            15_000,
            64,
            None,
            "scored at 64 x 64, published at 128 x 128",
        ),
        (
            manifest("clevr", BENCHMARK | {"max_objects": 6}),
            "test",
            15_000,
            128,
            "clevr",
            "prepared with max_objects 6",
        ),
        (
            manifest("clevr", BENCHMARK | {"crop": 1.0}),
            "test",
            15_000,
            128,
            "clevr",
            "prepared with crop 1.0",
        ),
        (
            manifest("clevr", BENCHMARK, 15_000),
            "test",
            15_000,
            128,
            "clevr",
            "records from 15,000 on, published from the first on",
        ),
        (manifest("clevr", BENCHMARK), "val", 15_000, 128, "clevr", "split val, published on test"),
        (
            manifest("clevr", BENCHMARK),
            "test",
            14_999,
            128,
            "clevr",
            "14,999 images, published on at least 15,000",
        ),
        (
            manifest("clevr", BENCHMARK),
            "test",
            15_000,
            128,
            "scenes",
            "the model was trained on scenes",
        ),
        (
            manifest("clevrtex", {"variant": "camo"}),
            "test",
            2_000,
            128,
            "clevrtex_camo",
            "the model was trained on clevrtex_camo",
        ),
    ],
)
def test_made_otherwise(data, split, images, side, trained_on, reason):
    row = published(data, split, images, side, trained_on)
    assert row is not None
    assert row["not_comparable"] == [reason]


def test_a_table_of_clips_and_of_a_model_without_cuts():
    image = {"ari_fg": 0.5, "ari": 0.25, "miou": 1 / 3, "mse": 12.345, "num_images": 1200.0}
    about = {
        "split": "val",
        "digest": "0" * 12,
        "stored_size": [128, 128],
        "notes": [],
        "by": {},
        "objects": None,
        "published": None,
    }
    sets = [
        about | {"name": "scenes", "scores": image},
        about | {"name": "movi_a", "scores": image | {"video_ari_fg": 0.125}},
    ]
    table = scores_table(
        {"model": "m", "trained_on": None, "commit": None, "image_size": 128, "sets": sets}
    )
    assert table.splitlines()[:4] == [
        "| set    | split | images | ARI-FG |    ARI |   mIoU |   MSE | video ARI-FG |",
        "| ------ | ----- | -----: | -----: | -----: | -----: | ----: | -----------: |",
        "| scenes | val   |  1,200 | 0.5000 | 0.2500 | 0.3333 | 12.35 |              |",
        "| movi_a | val   |  1,200 | 0.5000 | 0.2500 | 0.3333 | 12.35 |       0.1250 |",
    ]
    assert "video is of all frames of a clip" in table
    assert "cut" not in table.replace("cutslots", "")
