"""Presets keep their identity: a finished run must still be found by the version that follows."""

import pytest

from cutslots.train.config import PRESETS, preset, run_hash


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper-clevr", "6bd864aff5ff"),
        ("paper-clevrtex", "71bcb1026770"),
        ("small", "5dd18148dc6f"),
    ],
)
def test_signatures_stay(name, expected):
    assert run_hash(preset(name), "data") == expected


def test_every_preset_is_another_run():
    assert len({run_hash(preset(name), "data") for name in PRESETS}) == len(PRESETS)
