"""`cutslots best` on a tiny run that was really trained and evaluated."""

import json
import os
import pty
import sys
from pathlib import Path

import pytest

from cutslots.cli import main
from cutslots.report.published import rows
from cutslots.tracking import RunLog, find_runs

SMALLEST = [
    "--set", "encoder.channels=8", "--set", "weights.hidden=8", "--set", "slots.size=8", "--set", "slots.hidden=16",
    "--set", "decoder.channels=8", "--set", "optim.batch_size=8", "--steps", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two runs on built-in scenes, the first scored on their test split, and one logged as of ClevrTex."""
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


def test_the_leaderboard_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "scenes"]) == 0
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == "scenes val (best of training), largest ari_fg first, 2 runs"
    runs = {run.name: run for run in find_runs("tags.dataset = 'scenes'")}
    order = sorted(runs.values(), key=lambda run: -run.metrics["best/ari_fg"])
    for line, run in zip((first, second), order, strict=True):
        assert line.endswith(run.run_id)
        assert line[header.index("ARI-FG") :].startswith(f"{run.metrics['best/ari_fg']:.4f}")
        assert line[header.index("cut ARI-FG") :].startswith(
            f"{run.metrics['best/cut_ari_fg']:.4f}"
        )
        assert line[header.index("settings") :].startswith(
            f"gamma={run.params['model.cut.gamma']} "
        )
        assert line[header.index("run") :].startswith(run.name)
        assert line[header.index("step") :].startswith("3 ")
    # The name it prints is one that other commands take.
    assert main(["evaluate", order[0].run_id, "--data", "scenes", "--images", "1"]) == 0


def test_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--split", "test"]) == 0
    title, _, line = capsys.readouterr().out.splitlines()
    assert title == "scenes test (as evaluated), largest ari_fg first, 1 run"
    assert " low " in line


def test_published_rows_stand_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "clevrtex", "--metric", "mse"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "clevrtex val (best of training), smallest mse first, 1 run"
    assert lines[2].startswith("1 ")
    published = [line for line in lines if line.startswith("- ")]
    assert len(published) == sum("mse" in row.scores for row in rows("clevrtex"))
    assert "146.00" in published[0]
    assert published[0].endswith("published: MONet [a]")
    assert lines[-3:] == [
        "[a] Pervez et al. 2023, Table 1",
        "[b] the checkpoint that Pervez et al. published, evaluated by them",
        "Published rows are not ranked among ours. What differs in ours: split val, published on test.",
    ]


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
def test_a_table_on_a_terminal(width: int, made: Path) -> None:
    """Through a real pseudo-terminal, in another process."""
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
    assert "[tex]" in text, "a name is no markup"
    (run,) = find_runs("tags.dataset = 'clevrtex'")
    assert run.run_id in text, "whole, to be copied"
    assert "published: min-cut slots" in text
    assert ("For want of width without" in text) == (width == 60)


def test_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "--dataset", "clevr"]) == 2
    assert "Sets that have some: clevrtex, scenes." in capsys.readouterr().err
