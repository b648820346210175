"""The live table of a sweep at several widths, and the plain lines without a terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from cutslots.sweep.display import Display, TrialRow
from cutslots.tracking import RunLog


def display(rows: list[TrialRow], width: int, height: int = 24, live: bool = True) -> Display:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=live)
    return Display("demo: data", lambda: rows, lambda: 9, "ari_fg", console)


def printed(shown: Display, rows: list[TrialRow]) -> list[str]:
    plain = Console(file=io.StringIO(), width=shown.console.width)
    plain.print(shown.table(rows))
    return plain.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def rows(tmp_path: Path) -> list[TrialRow]:
    with RunLog(tmp_path / "run", experiment="e", run_name="r") as log:
        log.metrics(500, {"train/loss": 1.0})
    label = "gamma 0.31  learning_rate 0.0008  temperature 0.1  num_slots 5"
    return [
        TrialRow(0, "small", "finished", tmp_path, 2000, 0.8, 600.0),
        TrialRow(1, label, "running", tmp_path / "run", 2000, 0.71, 3725.0),
        TrialRow(2, "slot-attention", "failed", tmp_path, 2000, 0.9, 10.0, "no memory"),
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_table_fits_the_width(rows: list[TrialRow], width: int) -> None:
    lines = printed(display(rows, width), rows)
    assert max(map(len, lines)) <= width
    running = next(line for line in lines if "running" in line and "500/2000" in line)
    assert running.split()[0] == "1"
    assert all(cell in running for cell in ("0.71", "1:02:05"))
    assert ("num_slots 5" in running) == (width == 200), "only a narrow table cuts the settings"
    assert "gamma 0.31" in running
    assert "best ari_fg 0.8 (trial 0)" in " ".join(lines)


def test_table_fits_the_height(tmp_path: Path) -> None:
    many = [TrialRow(n, f"gamma {n}", "finished", tmp_path, 10, n / 100) for n in range(60)]
    lines = printed(display(many, 80, height=20), many)
    assert len(lines) <= 19
    assert "46 more" in lines[-1]


def test_lines_without_a_terminal(rows: list[TrialRow]) -> None:
    shown = display(rows, 80, live=False)
    text = "\n".join(shown.lines(rows))
    assert "trial 1 started" in text
    assert "trial 0" not in text.replace("(trial 0)", "").replace("trial 0 (small)", "")
    finished = [rows[0], TrialRow(1, "gamma 1", "finished", rows[1].run_dir, 2000, 0.95, 60.0)]
    text = "\n".join(shown.lines(finished, last=True))
    assert "trial 1 finished after 1:00, ari_fg 0.95" in text
    assert "2 of 9 done" in text


def test_errors_do_not_reach_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> list[TrialRow]:
        raise OSError("no rows")

    console = Console(file=io.StringIO(), width=80)
    with Display("demo", fail, lambda: 1, "ari_fg", console) as shown:
        shown.say("a line")
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a line" in output
    assert output.count("no rows") == 1
