"""`cutslots best` on tiny runs that were really trained and evaluated."""

import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from cutslots.cli import main
from cutslots.report.published import rows
from cutslots.tracking import find_runs

pytestmark = pytest.mark.usefixtures("trained")


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines that the command prints."""
    assert main(["best", *options]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_lines_best_first(capsys):
    lines = printed(capsys, "--dataset", "scenes")
    assert all(fact in lines[0] for fact in ("scenes", "val", "ari_fg", "2 runs"))
    runs = sorted(find_runs("tags.dataset = 'scenes'"), key=lambda run: -run.metrics["best/ari_fg"])
    for line, run in zip(lines[2:], runs, strict=True):
        cells = line.split()
        assert cells[1] == f"{run.metrics['best/ari_fg']:.4f}"
        assert {run.name, run.run_id, f"gamma={run.params['model.cut.gamma']}"} <= set(cells)
    # Other commands take the printed id.
    assert main(["evaluate", runs[0].run_id, "--data", "scenes", "--images", "1"]) == 0


def test_scores_of_evaluate(capsys):
    words = " ".join(printed(capsys, "--split", "test")).split()
    assert "low" in words
    assert "high" not in words


def test_published_rows_have_no_rank(capsys):
    lines = printed(capsys, "--dataset", "clevrtex", "--metric", "mse")
    assert lines[2].split()[0] == "1"
    published = [line for line in lines if line.split()[0] == "-"]
    assert len(published) == sum("mse" in row.scores for row in rows("clevrtex"))
    assert all(fact in published[0] for fact in ("146.00", "MONet", "[a]"))
    assert any(line.startswith("[a] Pervez et al. 2023, Table 1") for line in lines)


def test_json(capsys):
    scenes, tex = json.loads("\n".join(printed(capsys, "--json", "--limit", "1")))
    assert (scenes["dataset"], scenes["num_runs"], len(scenes["entries"])) == ("scenes", 2, 1)
    keys = {"rank", "value", "scores", "model", "settings", "run_id", "name", "step", "seconds"}
    assert keys <= scenes["entries"][0].keys()
    assert tex["published"][1]["source"].startswith("Miyato")


@pytest.mark.parametrize("width", [160, 60])
def test_table_on_a_terminal(width: int, trained: Path):
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "cutslots", "best", "--dataset", "clevrtex"]
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    pid = os.posix_spawn(sys.executable, command, env, file_actions=actions)
    os.close(writer)
    output = b""
    try:
        while part := os.read(reader, 4096):
            output += part
    except OSError:  # the other side is closed
        pass
    os.close(reader)
    assert os.waitpid(pid, 0)[1] == 0
    text = output.decode()
    assert "\x1b[1m" in text, "the best run is bold"
    assert "[tex]" in text, "a name is not markup"
    (run,) = find_runs("tags.dataset = 'clevrtex'")
    assert run.run_id in text, "complete, to be copied"
    assert "published: min-cut slots" in text
    assert ("--json" in text) == (width == 60), "columns are hidden"
    assert all(len(line) <= width for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[:3])


def test_unknown_dataset(capsys):
    assert main(["best", "--dataset", "clevr"]) == 2
    assert "clevrtex, scenes" in capsys.readouterr().err
