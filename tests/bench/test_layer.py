"""The benchmark of the cut layer: which presets it takes."""

import pytest

from cutslots.cli import main


@pytest.mark.parametrize("preset", ["slot-attention-small", "small-video", "smal"])
def test_a_preset_without_cuts_of_images_is_refused(preset, capsys):
    assert main(["bench", "layer", "--preset", preset]) == 2
    message = f"error: --preset is '{preset}'; for images with cuts there are: paper-clevr, paper-clevrtex, small.\n"
    assert capsys.readouterr().err == message
