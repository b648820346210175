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


def test_the_card_has_facts_scores_and_use(cells):
    card = model_card("mine", preset("small"), 124_380, FACTS, program=True)
    assert card.startswith("# mine\n\nA `min_cut_slots` of cutslots")
    assert "32 x 32 into at most 4 slots; 124,380 parameters" in card
    assert cells(card) == [
        ["fact", "value"],
        ["run", "demo"],
        ["step", "700"],
        ["run hash", "0123456789ab"],
        ["on", "images", "ARI-FG", "MSE", "cut mIoU"],
        ["validation", "1,000", "0.5000", "12.35", ""],
        ["clevrtex_camo test", "2,000", "0.2500", "", "0.7500"],
    ]
    assert "uint8 (N, 32, 32, 3), on the CPU" in card
    blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize(
    ("name", "program", "text"),
    [
        ("paper-movi", None, "(frames of a clip, 128, 128, 3)"),
        ("small", False, "uint8 (1, 32, 32, 3)"),
        ("slot-attention-small", None, "slot_attention"),
        ("genesis-v2-small", None, "genesis_v2"),
    ],
)
def test_missing_facts_are_left_out(name, program, text):
    card = model_card("mine", preset(name), 1, {"scores": {}}, program)
    assert text in card
    assert "No scores are known." in card
    assert "run hash" not in card
    assert ("model.pt2" in card) == (program is not None)
