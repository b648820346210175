"""The card of an exported model: what is known stands in it, and nothing else."""

import pytest

from cutslots.report.card import model_card
from cutslots.train.config import preset

KNOWN = {
    "run": "demo",
    "signature": "0123456789ab",
    "step": 700,
    "scores": {
        "validation": {"ari_fg": 0.5, "mse": 12.345, "num_images": 1000.0},
        "clevrtex_camo test": {
            "ari_fg": 0.25,
            "cut_miou": 0.75,
            "num_images": 2000.0,
            "num_clips": 1.0,
        },
    },
}


def test_everything_that_is_known():
    card = model_card("mine", preset("small"), 124_380, KNOWN, program=True)
    assert card.startswith(
        "# mine\n\nA `min_cut_slots` of cutslots that divides images of 32 x 32 into at most 4 slots; 124,380 "
    )
    for line in (
        "| run | demo |",
        "| step | 700 |",
        "| signature of configuration and data | 0123456789ab |",
        "| on | images | ARI-FG | MSE | cut mIoU |",
        "| validation | 1,000 | 0.5000 | 12.35 |  |",
        "| clevrtex_camo test | 2,000 | 0.2500 |  | 0.7500 |",
        "found = program(images)  # uint8 (N, 32, 32, 3), on the CPU",
    ):
        assert line in card.splitlines()


def test_nothing_that_is_not():
    card = model_card("mine", preset("paper-movi"), 1, {"scores": {}})
    assert "None are known." in card
    assert "model.pt2" not in card
    assert "signature" not in card
    assert "(frames of a clip, 128, 128, 3)" in card
    assert "uint8 (1, 32, 32, 3)" in model_card("mine", preset("small"), 1, {}, program=False)


def test_its_python_is_python():
    card = model_card("mine", preset("small"), 1, KNOWN, program=True)
    blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("name", ["slot-attention-small", "genesis-v2-small"])
def test_of_every_kind_of_model(name):
    assert preset(name).model_name in model_card("mine", preset(name), 1, KNOWN)
