"""`cutslots best` on a tiny run that was really trained and evaluated."""

import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from cutslots.cli import main
from cutslots.report.published import rows
from cutslots.tracking import RunLog, find_runs

SMALLEST = [
    "--set",
    "encoder.channels=8",
    "--set",
    "weights.hidden=8",
    "--set",
    "slots.size=8",
    "--set",
    "slots.hidden=16",
    "--set",
    "decoder.channels=8",
    "--set",
    "optim.batch_size=8",
    "--steps",
    "3",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two runs on built-in scenes, one scored on their test split, one on ClevrTex."""
    home = tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["prepare", "scenes", "--count", "50", "--size", "32"]) == 0
        for name, gamma in (("low", "0.3"), ("high", "0.7")):
            assert (
                main(["train", "scenes", "--name", name, "--set", f"cut.gamma={gamma}", *SMALLEST])
                == 0
            )
        assert main(["evaluate", "low", "--data", "scenes"]) == 0
        with RunLog(home / "runs" / "tex", experiment="tex", run_name="[tex]") as log:
            log.tags({"dataset": "clevrtex", "set": "clevrtex", "model": "min_cut_slots"})
            log.metrics(1, {"best/ari_fg": 0.5, "best/mse": 200})
    return home


@pytest.fixture(autouse=True)
def at_home(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSLOTS_HOME", str(made))


def test_lines_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "scenes"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert all(fact in lines[0] for fact in ("scenes", "val", "ari_fg", "2 runs"))
    runs = sorted(find_runs("tags.dataset = 'scenes'"), key=lambda run: -run.metrics["best/ari_fg"])
    for line, run in zip(lines[2:], runs, strict=True):
        cells = line.split()
        assert cells[1] == f"{run.metrics['best/ari_fg']:.4f}"
        assert {run.name, run.run_id, f"gamma={run.params['model.cut.gamma']}"} <= set(cells)
    # Other commands take the printed id.
    assert main(["evaluate", runs[0].run_id, "--data", "scenes", "--images", "1"]) == 0


def test_scores_of_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--split", "test"]) == 0
    words = capsys.readouterr().out.split()
    assert "low" in words
    assert "high" not in words


def test_published_rows_have_no_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "clevrtex", "--metric", "mse"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[2].split()[0] == "1"
    published = [line for line in lines if line.split()[0] == "-"]
    assert len(published) == sum("mse" in row.scores for row in rows("clevrtex"))
    assert all(fact in published[0] for fact in ("146.00", "MONet", "[a]"))
    assert any(line.startswith("[a] Pervez et al. 2023, Table 1") for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--json", "--limit", "1"]) == 0
    scenes, tex = json.loads(capsys.readouterr().out)
    assert (scenes["dataset"], scenes["num_runs"], len(scenes["entries"])) == ("scenes", 2, 1)
    assert {
        "rank",
        "value",
        "scores",
        "model",
        "settings",
        "run_id",
        "name",
        "step",
        "seconds",
    } <= scenes["entries"][0].keys()
    assert tex["published"][0]["source"].startswith("Miyato")


@pytest.mark.parametrize("width", [160, 60])
def test_table_on_a_terminal(width: int, made: Path) -> None:
    """On a pseudo-terminal."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "cutslots", "best", "--dataset", "clevrtex"]
    env = {**os.environ, "CUTSLOTS_HOME": str(made), "COLUMNS": str(width), "TERM": "xterm"}
    pid = os.posix_spawn(
        sys.executable, command, env, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)]
    )
    os.close(writer)
    printed = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        printed += part
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    text = printed.decode()
    assert "\x1b[1m" in text, "the best run is bold"
    assert "[tex]" in text, "a name is not markup"
    (run,) = find_runs("tags.dataset = 'clevrtex'")
    assert run.run_id in text, "whole, to be copied"
    assert "published: min-cut slots" in text
    assert ("--json" in text) == (width == 60), "columns are hidden"
    assert all(len(line) <= width for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[:3])


def test_unknown_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "clevr"]) == 2
    assert "clevrtex, scenes" in capsys.readouterr().err
