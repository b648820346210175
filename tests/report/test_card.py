"""The card of an exported model."""

import pytest

from cutslots.report.pages import model_card
from cutslots.train.config import preset

FACTS = {
    "run": "demo",
    "signature": "0123456789ab",
    "step": 700,
    "scores": {
        "validation": {"ari_fg": 0.5, "mse": 12.345, "num_images": 1000.0},
        "clevrtex_camo test": {"ari_fg": 0.25, "cut_miou": 0.75, "num_images": 2000.0},
    },
}


def test_the_card_has_facts_scores_and_use():
    card = model_card("mine", preset("small"), 124_380, FACTS, program=True)
    assert card.startswith("# mine\n\nA `min_cut_slots` of cutslots")
    assert "32 x 32 into at most 4 slots; 124,380 parameters" in card
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in card.splitlines()]
    for row in (
        ["run", "demo"],
        ["step", "700"],
        ["run hash", "0123456789ab"],
        ["on", "images", "ARI-FG", "MSE", "cut mIoU"],
        ["validation", "1,000", "0.5000", "12.35", ""],
        ["clevrtex_camo test", "2,000", "0.2500", "", "0.7500"],
    ):
        assert row in rows
    assert "uint8 (N, 32, 32, 3), on the CPU" in card
    assert "\n\n\n" not in card


def test_missing_facts_are_left_out():
    card = model_card("mine", preset("paper-movi"), 1, {"scores": {}})
    assert "No scores are known." in card
    assert "model.pt2" not in card
    assert "hash" not in card
    assert "(frames of a clip, 128, 128, 3)" in card
    assert "uint8 (1, 32, 32, 3)" in model_card("mine", preset("small"), 1, {}, program=False)


def test_its_python_compiles():
    card = model_card("mine", preset("small"), 1, FACTS, program=True)
    blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("name", ["slot-attention-small", "genesis-v2-small"])
def test_every_kind_of_model_has_a_card(name):
    assert preset(name).model_name in model_card("mine", preset(name), 1, FACTS)
