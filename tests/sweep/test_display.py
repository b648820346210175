"""The table of trials in several sizes, and the summary without a terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from cutslots.sweep.display import Display
from cutslots.sweep.study import Trial
from cutslots.tracking.journal import FILE, Journal
from cutslots.train.config import preset

LABEL = "gamma 0.31  learning_rate 0.0008  temperature 0.1  num_slots 5"


def trial(number: int, state: str, value: float, label: str = LABEL, **more) -> Trial:
    return Trial(number, "search", label, {}, preset("small"), state, value, **more)


def display(trials: list[Trial], width: int, live: bool = True) -> Display:
    console = Console(file=io.StringIO(), width=width, height=20, force_terminal=live)
    return Display("demo: data", lambda: trials, lambda: 90, "ari_fg", console)


def printed(shown: Display) -> list[str]:
    plain = Console(file=io.StringIO(), width=shown.console.width)
    plain.print(shown.table())
    return plain.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 200])
def test_table_fits_the_terminal(tmp_path: Path, width: int) -> None:
    journal = Journal(tmp_path / "run" / FILE)
    journal.append("metrics", {"step": 500, "values": {"train/loss": 1.0}})
    journal.close()
    running = trial(1, "running", 0.71, seconds=3725.0, run_dir=tmp_path / "run")
    failed = trial(2, "failed", 0.9, seconds=10.0, cause="no memory")
    ended = [trial(n, "finished", 0.8 - n / 100, f"gamma {n}") for n in range(3, 63)]
    lines = printed(display([trial(0, "finished", 0.8), running, failed, *ended], width))
    assert max(map(len, lines)) <= width - 2
    assert len(lines) <= 19
    assert "demo: data" in lines[0]
    row = lines[2]
    assert row.split()[0] == "1"
    assert all(cell in row for cell in ("gamma 0.31", "running", "500/2500", "0.71", "1:02:05"))
    assert ("num_slots 5" in row) == (width == 200), "only a narrow table cuts the settings"
    assert "best ari_fg 0.8 (trial 0)" in " ".join(" ".join(lines).split())
    assert any("more" in line for line in lines)


def test_summary_without_a_terminal() -> None:
    trials = [trial(0, "finished", 0.8, seconds=60.0), trial(1, "running", 0.7)]
    shown = display(trials, 80, live=False)
    with shown:
        shown.update()
        shown.update()
    assert shown.console.file.getvalue().strip() == (  # type: ignore[attr-defined]
        "0:00  1 of 90 done, 1 running, 88 waiting, best ari_fg 0.8 (trial 0), about 1:29:00 left"
    )


@pytest.mark.parametrize("live", [True, False])
def test_errors_do_not_reach_the_sweep(live: bool) -> None:
    def fail() -> list[Trial]:
        raise OSError("no rows")

    console = Console(file=io.StringIO(), width=80, force_terminal=live)
    with Display("demo", fail, lambda: 1, "ari_fg", console) as shown:
        shown.update()
        shown.say("a line")
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a line" in output
    assert ("no rows" in output) == live
