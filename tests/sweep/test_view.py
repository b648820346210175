"""A sweep at the terminal: what a person looks for is there, at any size, and nothing that goes wrong in it stops a sweep."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cutslots.sweep.display import (
    SILENT_SECONDS,
    Labels,
    Lines,
    Machine,
    Picture,
    Reading,
    Row,
    Snapshot,
    Trace,
    View,
    about,
    clock,
    gpus,
    one_line,
    score,
    short,
    squeeze,
)
from cutslots.tracking.journal import FILE, Journal, latest

SETTINGS = "gamma 0.{:02}  learning_rate 0.0008  num_slots {}"


def write(run_dir: Path, step: int, rate: float = 812.0, gpu: bool = True) -> None:
    """What a training and its system metrics log at a step."""
    journal = Journal(run_dir / FILE)
    journal.append(
        "metrics", {"step": step, "values": {"train/loss": 12.5, "train/images_per_second": rate}}
    )
    system: dict[str, float] = {
        "system/process_rss_megabytes": 2345.0,
        "system/cpu_utilization_percentage": 50.0,
    }
    if gpu:
        system |= {
            "system/gpu_0_memory_usage_megabytes": 8123.0,
            "system/gpu_0_utilization_percentage": 87.0,
        }
    journal.append("metrics", {"step": 30, "values": system})
    journal.close()


def row(
    number: int, state: str, value: float | None = None, seconds: float | None = None, **more: Any
) -> Row:
    label = SETTINGS.format(number, 5 + number % 3)
    return replace(
        Row(number, label, state, Path("/not/on/this/machine"), 20_000, value, seconds), **more
    )


def sweep(run_dir: Path) -> list[Row]:
    """Two running trials, one of them here; three finished; one pruned; one failed."""
    write(run_dir, 12_340)
    return [
        row(0, "finished", 0.81234, 1900.0, label="paper, seed 0"),
        row(1, "finished", 0.912, 2000.0),
        row(2, "failed", 0.99, 12.0, cause="\x1b[31mRuntimeError\x1b[0m: CUDA\nout of memory"),
        row(3, "pruned", 0.4, 300.0, cause="not among the best 1/3 at step 2000"),
        row(4, "finished", 0.7, 2100.0),
        row(5, "running", 0.85, 700.0, run_dir=run_dir),
        row(6, "running", None, 5.0),
    ]


def screen(view: View, width: int, height: int = 24) -> list[str]:
    console = Console(
        file=io.StringIO(), record=True, force_terminal=True, width=width, height=height
    )
    console.print(Picture(view.snapshot()))
    return console.export_text().rstrip("\n").split("\n")


def shown(rows: list[Row], total: int = 10, **more: bool) -> View:
    return View(
        "gamma search", lambda: rows, total, "ari_fg", console=Console(file=io.StringIO()), **more
    )


@pytest.mark.parametrize("width", [80, 160])
def test_a_person_finds_what_matters(tmp_path: Path, width: int) -> None:
    lines = screen(shown(sweep(tmp_path)), width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("gamma search")
    assert all(
        part in lines[1]
        for part in ("3 of 10 done", "2 running", "3 waiting", "1 pruned", "1 failed")
    )
    assert lines[2].startswith("best ari_fg 0.9120   trial 1   gamma 0.01")
    assert re.search(r"memory \d+% of \d+ GB", lines[3])
    running, ended = lines[5:8], lines[9:]
    assert running[0].split()[0] == ended[0].split()[0] == "#"
    assert {"best", "step", "left"} <= set(running[0].split())
    # The one that is here, with all its numbers; the one elsewhere, with what the driver knows.
    here = running[1].replace("━", "").replace("╸", "").replace("╺", "").split()
    assert here[:5] == ["5", "0.05", "0.0008", "7", "0.8500"]
    assert here[5:] == (
        ["12,340/20,000", "812", "2.3", "GB", "8.1", "GB"]
        if width == 160
        else ["12k/20k", "812", "2.3G", "8.1G"]
    )
    assert running[2].split() == ["6", "0.06", "0.0008", "5"]
    # The ended ones, best first; the failed one last, whatever it had reached, with its cause.
    assert [line.split()[0] for line in ended[1:]] == ["1", "0", "4", "3", "2"]
    assert "0.9120" in ended[1]
    assert "33:20" in ended[1]
    assert "pruned: not among" in ended[4]
    assert "failed: RuntimeError: CUDA out of" in ended[5]
    # Columns stand under each other.
    assert {line.index("0.0008") for line in (running[1], running[2], ended[1])} == {
        running[0].index("lea")
    }


def test_named_settings_stand_among_columns(tmp_path: Path) -> None:
    assert any("0  paper, seed 0 " in line for line in screen(shown(sweep(tmp_path)), 80))


@pytest.mark.parametrize("num_running", [0, 1, 4, 60])
@pytest.mark.parametrize("num_ended", [0, 1, 60])
def test_no_size_of_terminal_is_too_small(tmp_path: Path, num_running: int, num_ended: int) -> None:
    write(tmp_path, 100)
    rows = [row(number, "running", 0.5, 9.0, run_dir=tmp_path) for number in range(num_running)]
    states = ["finished", "failed", "pruned", "interrupted"]
    rows += [
        row(number, states[number % 4], 0.1, 9.0, cause="why")
        for number in range(100, 100 + num_ended)
    ]
    view = shown(rows, 200)
    for width, height in [
        (1, 1),
        (10, 4),
        (20, 8),
        (40, 7),
        (60, 10),
        (80, 12),
        (80, 24),
        (119, 50),
        (120, 30),
        (250, 100),
    ]:
        lines = screen(view, width, height)
        assert len(lines) <= max(1, height - 1), (width, height)
        assert max(map(len, lines)) <= width, (width, height)


def test_more_running_than_lines(tmp_path: Path) -> None:
    rows = [row(number, "running", 0.5, 9.0) for number in range(60)] + [
        row(99, "finished", 0.7, 9.0),
        row(98, "failed"),
    ]
    lines = screen(shown(rows, 100), 80)
    hidden = next(line for line in lines if "more" in line)
    drawn = lines[6 : lines.index(hidden)]
    assert hidden.strip() == f"and {60 - len(drawn)} more"
    assert lines[-2].startswith("99")
    assert lines[-1].startswith("98")


def test_memory_gives_way_to_settings(tmp_path: Path) -> None:
    """Six values tell the trials apart: all are there at 80 columns, the GPU's memory is not."""
    write(tmp_path, 100)
    label = "gamma 0.31  learning_rate 0.0008  num_slots 7  weights net  iterations 3  gamma_terminal 0.0{}"
    rows = [
        row(number, "running", 0.5, 9.0, run_dir=tmp_path, label=label.format(number))
        for number in range(2)
    ]
    lines = screen(shown(rows), 80)
    assert lines[6].split()[:8] == ["0", "0.31", "0.0008", "7", "net", "3", "0.00", "0.5000"]
    assert "left" in lines[5]
    assert "gpu" not in lines[5]
    wide = screen(shown(rows), 160)
    assert wide[5].split()[1:7] == [
        "gamma",
        "learning_rate",
        "num_slots",
        "weights",
        "iterations",
        "gamma_terminal",
    ]
    assert "gpu memory" in wide[5]


def test_smaller_is_better(tmp_path: Path) -> None:
    rows = [
        row(0, "finished", 5.0, 9.0),
        row(1, "finished", 2.0, 9.0),
        row(2, "finished", float("nan"), 9.0),
    ]
    lines = screen(shown(rows, smaller_is_better=True), 80)
    assert lines[2].startswith("best ari_fg 2.0000   trial 1 ")
    assert [line[0] for line in lines[6:]] == ["1", "0", "2"]
    assert screen(shown(rows), 80)[2].startswith("best ari_fg 5.0000   trial 0 ")
    assert screen(shown([]), 80)[2] == "best ari_fg   none yet"


def test_labels() -> None:
    assert squeeze("gamma 0.31  learning_rate 0.0008", 40) == "gamma 0.31  learning_rate 0.0008"
    assert squeeze("gamma 0.31  learning_rate 0.0008", 26) == "gamma 0.31  learni… 0.0008"
    assert squeeze("gamma 0.31  learning_rate 0.0008", 22) == "gam… 0.31  lea… 0.0008"
    assert squeeze("gamma 0.31  learning_rate 0.0008", 12) == "gamma ….0008"
    for width in range(1, 40):
        assert len(squeeze("gamma 0.31  learning_rate 0.0008, [b]1e-4[/b] seed_12", width)) <= width
    heading, cells = Labels(["gamma 0.3  depth 10", "paper", "gamma 0.25  depth 4"]).fit(30)
    assert (heading, cells) == ("gamma  depth", ["0.3    10", "paper", "0.25   4"])
    heading, cells = Labels(["gamma 0.3  depth 10", "paper", "gamma 0.25  depth 4"]).fit(8)
    assert (heading, cells) == ("gam…  de", ["0.3   10", "paper", "0.25  4"])
    heading, cells = Labels(["gamma 0.3  depth 10", "paper", "gamma 0.25  depth 4"]).fit(7)
    assert (heading, cells) == ("trial", ["gam… 10", "paper", "gam…h 4"])
    assert Labels(["paper, seed 1", "paper, seed 2"]).fit(30) == (
        "trial",
        ["paper, seed 1", "paper, seed 2"],
    )
    assert Labels([]).fit(10) == ("trial", [])


def test_numbers() -> None:
    assert [clock(seconds) for seconds in (7.9, 760, 4805)] == ["0:07", "12:40", "1:20:05"]
    assert [about(seconds) for seconds in (40, 59.7, 760, 3590, 4805, 86_390, 273_600)] == [
        "40s", "1m", "13m", "1h00m", "1h20m", "1d0h", "3d4h",
    ]  # fmt: skip
    assert [score(value) for value in (None, 0.5, 12.345678, 1e-5, 123456.0, float("nan"))] == [
        "", "0.5000", "12.35", "1e-05", "1.235e+05", "nan",
    ]  # fmt: skip
    assert [short(number) for number in (950, 1000, 1999, 19_999, 20_000, 1_500_000)] == [
        "950",
        "1k",
        "1.9k",
        "19k",
        "20k",
        "1.5M",
    ]
    assert one_line("\x1b[31mno\x1b[0m\n  way") == "no way"


def test_time_left_of_a_trial(tmp_path: Path) -> None:
    trace = Trace()
    assert trace.look(latest(tmp_path), 1000, 0.0) == Reading()  # no journal
    write(tmp_path, 100)
    assert trace.look(latest(tmp_path), 1000, 10.0).left is None  # one step seen tells no pace
    write(tmp_path, 200)
    assert trace.look(latest(tmp_path), 1000, 30.0).left == pytest.approx(160.0)
    assert trace.look(latest(tmp_path), 1000, 35.0).left == pytest.approx(
        155.0
    )  # it counts down between two lines
    write(tmp_path, 150)  # its process died, another one went on from an earlier checkpoint
    assert trace.look(latest(tmp_path), 1000, 60.0).left is None
    write(tmp_path, 250)
    found = trace.look(latest(tmp_path), 1000, 80.0)
    assert (found.step, found.left) == (250, pytest.approx(150.0))


def test_a_process_that_says_nothing_any_more(tmp_path: Path) -> None:
    write(tmp_path, 100)
    trace = Trace()
    assert not trace.look(latest(tmp_path), 1000, 0.0).silent
    assert trace.look(latest(tmp_path), 1000, SILENT_SECONDS + 1).silent
    write(tmp_path, 200)
    assert not trace.look(latest(tmp_path), 1000, SILENT_SECONDS + 2).silent


def snapshot(
    rows: list[Row],
    readings: dict[int, Reading] | None = None,
    total: int = 10,
    elapsed: float = 0.0,
) -> Snapshot:
    known = {
        each.number: (readings or {}).get(each.number, Reading())
        for each in rows
        if each.state == "running"
    }
    return Snapshot("gamma search", "ari_fg", False, total, rows, known, ["cpu 9%"], elapsed)


def test_time_left_of_the_sweep() -> None:
    done, running = (
        [row(0, "finished", 0.5, 80.0), row(1, "pruned", 0.5, 120.0)],
        [row(2, "running"), row(3, "running")],
    )
    readings = {2: Reading(left=10.0), 3: Reading(left=40.0)}
    # Places are free after 10 and 40 s; of three waiting trials of 100 s, two go to the first place.
    assert snapshot([*done, *running], readings, total=7).left() == pytest.approx(210.0)
    assert snapshot([*done, *running], readings, total=4).left() == pytest.approx(40.0)
    # Nothing is known of a trial elsewhere but when it started.
    assert snapshot([*done, row(2, "running", seconds=30.0)], total=3).left() == pytest.approx(70.0)
    # Before the first has ended, the running ones tell how long one takes.
    assert snapshot(
        [row(0, "running", seconds=20.0)], {0: Reading(left=30.0)}, total=2
    ).left() == pytest.approx(80.0)
    assert snapshot([row(0, "running", seconds=20.0)], total=2).left() is None
    assert snapshot([]).left() is None
    assert snapshot(done, total=2).left() is None
    assert snapshot(
        [*done, row(2, "running", seconds=0.0)], {2: Reading(step=10_000)}, total=5
    ).done() == pytest.approx(0.5)


def test_plain_lines() -> None:
    lines = Lines()
    known = [
        row(0, "finished", 0.5, 80.0, label="paper"),
        row(1, "running", label="b"),
        row(2, "waiting", label="c"),
    ]
    assert lines.new(snapshot(known)) == [
        "trial 1 starts: b",
        "best ari_fg so far: 0.5000, trial 0 (paper)",
        "0:00  1 of 10 done, 1 running, 8 waiting, best 0.5000 (trial 0), about 12m left, cpu 9%",
    ]
    assert lines.new(snapshot(known, elapsed=29.0)) == []
    known = [
        known[0],
        replace(known[1], state="pruned", value=0.4, seconds=25.0, cause="hopeless"),
        replace(known[2], state="running"),
    ]
    assert lines.new(snapshot(known, elapsed=29.5)) == [
        "trial 1 pruned after 0:25, ari_fg 0.4000: hopeless",
        "trial 2 starts: c",
    ]
    failed = replace(known[2], state="failed", value=0.99, seconds=3.0, cause="ValueError:\nno")
    known = [*known[:2], failed, row(3, "finished", 0.6, 1.0, label="d")]
    assert lines.new(snapshot(known, elapsed=31.0)) == [
        "trial 2 failed after 0:03, ari_fg 0.9900: ValueError: no",
        "trial 3 starts: d",
        "trial 3 finished after 0:01, ari_fg 0.6000",
        "best ari_fg so far: 0.6000, trial 3 (d)",
        "0:31  2 of 10 done, 6 waiting, 1 pruned, 1 failed, best 0.6000 (trial 3), cpu 9%",
    ]
    assert lines.new(snapshot(known, elapsed=32.0), last=True) == [
        "0:32  2 of 10 done, 6 waiting, 1 pruned, 1 failed, best 0.6000 (trial 3), cpu 9%"
    ]


def test_plain_lines_of_trials_that_never_ran() -> None:
    lines = Lines()
    lines.new(snapshot([row(0, "running", 0.4, 1.0)]))
    known = [row(0, "failed", 0.4, 2.0), row(1, "failed", cause="the same settings as trial 0")]
    assert lines.new(snapshot(known)) == [
        "trial 0 failed after 0:02, ari_fg 0.4000",
        "trial 1 failed: the same settings as trial 0",
    ]


def test_without_a_terminal(tmp_path: Path) -> None:
    rows, out = (
        [row(0, "running", run_dir=tmp_path, label="[red]all of a long label[/red]," * 5)],
        io.StringIO(),
    )
    with View("gamma search", lambda: rows, lambda: 2, "ari_fg", console=Console(file=out)) as view:
        until(lambda: "starts" in out.getvalue())
        view.say("[bold]said[/bold]")
        rows[:] = [row(0, "finished", 0.75, 12.0), row(1, "finished", 0.5, 3.0)]
    lines = out.getvalue().splitlines()
    assert lines[0] == "trial 0 starts: " + "[red]all of a long label[/red]," * 5
    assert "[bold]said[/bold]" in lines
    assert "trial 0 finished after 0:12, ari_fg 0.7500" in lines
    assert lines[-1].startswith("0:00  2 of 2 done") or lines[-1].startswith("0:01  2 of 2 done")
    assert "\x1b" not in out.getvalue()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_on_a_terminal(tmp_path: Path) -> None:
    rows, out = sweep(tmp_path), io.StringIO()
    with View(
        "gamma search",
        lambda: rows,
        10,
        "ari_fg",
        console=Console(file=out, force_terminal=True, width=80),
    ) as view:
        until(lambda: "12k/20k" in out.getvalue())
        view.say("[bold]said[/bold]")
        rows[:] = [row(number, "finished", number / 10, 9.0) for number in range(10)]
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue())
    assert "[bold]said[/bold]" in text
    last = text[text.rindex("gamma search") :]
    assert "10 of 10 done" in last
    assert "running" not in last
    assert [line.split()[0] for line in last.splitlines()[6:]] == [
        str(number) for number in range(9, -1, -1)
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_fault_is_said_once_and_stops_nothing(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, out = [], io.StringIO()

    def rows() -> list[Row]:
        calls.append(len(calls))
        if len(calls) < 4:
            raise RuntimeError("no\nrows")
        return [row(0, "finished", 0.5, 1.0)]

    monkeypatch.setattr("cutslots.sweep.display.REFRESH_SECONDS", 0.01)
    with View(
        "gamma search",
        rows,
        1,
        "ari_fg",
        console=Console(file=out, force_terminal=terminal, width=120),
    ) as view:
        until(lambda: len(calls) > 3)
        view.say("still here")
    assert out.getvalue().count("fault") == 1
    assert (
        "the view of the sweep has a fault, the sweep goes on: RuntimeError: no rows"
        in out.getvalue()
    )
    assert "still here" in out.getvalue()
    assert "1 of 1 done" in out.getvalue()  # it recovers


def test_what_cannot_be_drawn_keeps_no_line_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutslots.sweep.display.REFRESH_SECONDS", 0.01)
    out = io.StringIO()
    wrong: list[Any] = [row(0, "finished", 0.5, 1.0, label=None)]
    with View(
        "gamma search",
        lambda: wrong,
        1,
        "ari_fg",
        console=Console(file=out, force_terminal=True, width=120),
    ) as view:
        until(lambda: "fault" in out.getvalue())
        for number in range(20):
            view.say(f"still here {number}.")
            time.sleep(0.01)
    assert all(f"still here {number}." in out.getvalue() for number in range(20))
    assert out.getvalue().count("fault") == 1


def test_a_closed_pipe_stops_nothing() -> None:
    code = """
import time
from cutslots.sweep.display import View
with View("sweep", lambda: [], 1, "ari_fg") as view:
    for _ in range(3):
        view.say("a line " * 1000)
        time.sleep(0.1)
open("/dev/fd/3", "w").write("went on")
"""
    read, write = os.pipe()
    reader, closed = os.pipe()
    os.close(reader)
    command = f"exec 3>&{write}; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", command], stderr=closed, pass_fds=[write], timeout=60)
    os.close(write)
    os.close(closed)
    with open(read) as said:
        assert said.read() == "went on"
    assert done.returncode in (0, 120)  # 120: Python could not flush standard error


def test_a_build_server_that_wants_colours_gets_lines() -> None:
    code = (
        "from cutslots.sweep.display import View\nwith View('sweep', lambda: [], 1, 'ari_fg'): pass"
    )
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.startswith("0:00  0 of 1 done, 1 waiting, memory ")
    assert "\x1b[2K" not in done.stderr


def test_gpus() -> None:
    one = gpus("87, 12288, 24576\n")
    assert one is not None
    assert (one.number, one.use, round(one.memory), round(one.size)) == (1, 87.0, 12885, 25770)
    two = gpus("0, 4, 81559\n100, 40000, 81559\n")
    assert two is not None
    assert (two.number, two.use, round(two.memory)) == (2, 50.0, 41947)
    split = gpus("[N/A], 100, 81559\n")
    assert split is not None
    assert split.use is None
    assert gpus("No devices were found\n") is None
    assert gpus("[N/A], [N/A], [N/A]\n") is None


def test_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi: what the trials tell
    facts = Machine().facts([Reading(gpu_use=80.0), Reading(), Reading(gpu_use=60.0)])
    assert facts[-1] == "gpu of the trials 70%"
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 87, 12288, 24576\n")
    script.chmod(0o755)
    machine = Machine()
    machine.facts([])
    cpu, memory, gpu = machine.facts([])
    assert re.fullmatch(r"cpu \d+%", cpu)
    assert re.fullmatch(r"memory \d+% of \d+ GB", memory)
    assert gpu == "gpu 87%, 12.9 of 26 GB"
