"""The benchmark of the metrics compares like with like."""

import argparse

from cutslots.bench import metrics


def test_batch_and_loop_agree_on_what_is_timed(capsys):
    figures = metrics.run(argparse.Namespace(images=3, size=20, masks=5))
    assert figures["scores"].keys() == {"ARI", "ARI-FG", "mIoU"}
    assert all(score["difference"] < 1e-6 for score in figures["scores"].values())
    assert "3 images of 20 x 20, 5 masks" in capsys.readouterr().out
