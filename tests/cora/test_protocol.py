"""Splits, the choice of settings, the tables and the script."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cutslots import cora
from cutslots.cora import experiment, learn, protocol
from cutslots.cora.learn import Decision, Settings, TwoStage
from cutslots.errors import InputError
from cutslots.tracking import find_runs, metric_histories

ROOT = Path(__file__).parents[2]
TINY = {"program": Settings(Decision(), hidden=4, epochs=1)}


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_no_split_holds_out_a_tuning_instance():
    tuning, splits = set(protocol.tuning_members(27)), protocol.splits(27, 30)
    assert len(tuning) == 15
    for split in splits:
        assert len(split.held_out) == 5
        assert set(split.held_out).isdisjoint(tuning)
        assert sorted(split.train + split.held_out) == list(range(27))
    assert len({split.held_out for split in splits}) > 20
    assert splits == protocol.splits(27, 30)
    everywhere = protocol.splits(27, 30, everywhere=True)
    assert set().union(*(split.held_out for split in everywhere)) == set(range(27))
    with pytest.raises(InputError, match="2 instances"):
        protocol.splits(2, 1)


def test_cross_validation_uses_tuning_instances_only(monkeypatch):
    seen: set[int] = set()

    def train(problems, members, settings, seed, stops):
        seen.update(members)
        return [None for _ in stops]

    def evaluate(problems, members, network, settings):
        seen.update(members)
        return [float(settings.hidden) for _ in members]

    monkeypatch.setattr(learn, "train", train)
    monkeypatch.setattr(learn, "evaluate", evaluate)
    problems: Any = SimpleNamespace(instances=range(27))
    candidates = protocol.cross_validate(problems, "program", Settings(Decision(), 7), (1, 2))
    assert seen == set(protocol.tuning_members(27))
    assert [(c.settings.epochs, c.value) for c in candidates] == [(1, 7.0), (2, 7.0)]


@pytest.mark.parametrize("method", ["program", "two-stage", "inequality program"])
def test_the_settings_in_use_won_the_tuning(method):
    settings = {**protocol.TUNED, **protocol.PEER}[method]
    objectives, stops = protocol.GRID[method]
    candidates = len(objectives) * len(protocol.SIZES) * len(protocol.RATES) * len(stops)
    rows = [
        r for r in rows_of((ROOT / "results/cora/tuning.csv").read_text()) if r["method"] == method
    ]
    assert len(rows) == candidates == 64
    best = max(rows, key=lambda row: float(row["value"]))
    for name in ("objective", "hidden", "learning_rate", "epochs", "swap"):
        assert best[name] == str(getattr(settings, name))


@pytest.mark.slow
def test_tuning_scores_every_candidate(prepared, monkeypatch):
    monkeypatch.setattr(protocol, "GRID", {"program": ([Decision(), Decision(3.0)], (1, 2))})
    monkeypatch.setattr(protocol, "SIZES", (4,))
    monkeypatch.setattr(protocol, "RATES", (1e-3,))
    candidates = protocol.tune(cora.load(prepared), TINY, 1)
    assert len(candidates) == 4
    assert [c.value for c in candidates] == sorted((c.value for c in candidates), reverse=True)
    assert len(rows_of(experiment.tuning_csv(candidates))) == 4


def test_the_bootstrapped_interval_covers_its_share():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = experiment.bootstrap(generator.normal(3.0, 2.0, 40).tolist(), draws=500)
        inside += low < 3.0 < high
    assert 0.88 <= inside / 200 <= 0.99
    assert experiment.bootstrap([5.0] * 10) == (5.0, 5.0)
    low, high = experiment.bootstrap(generator.normal(0.0, 1.0, 2500).tolist())
    assert high - low == pytest.approx(2 * 1.96 / 50, rel=0.1)


def test_runs_become_a_table(prepared):
    instances = cora.load(prepared)
    methods = TINY | {"two-stage": Settings(TwoStage(), hidden=4, epochs=1)}
    splits = protocol.splits(len(instances), 3)
    runs = list(protocol.run_all(instances, splits, methods, 1))
    again = protocol.run_all(instances, splits, methods, 2)  # in other processes
    assert [run.values for run in again] == [run.values for run in runs]
    order = list(itertools.product(range(3), [*methods, *protocol.REFERENCES]))
    assert [(run.split.number, run.method) for run in runs] == order
    optimum = instances.optimum()
    for run in runs:
        best = optimum[list(run.split.held_out)]
        assert (np.array(run.values) <= best).all()
        assert run.method != "optimum" or (np.array(run.values) == best).all()
    caption = experiment.caption(instances, runs, "a command", "0123")
    text = " ".join(experiment.markdown(runs, caption).split())
    mean = np.mean([run.value for run in runs if run.method == "program"])
    assert f"| program | {mean:.2f} |" in text
    assert "| published: NN2-Decision | 6.15 | 5.77 to 6.53 |" in text
    assert instances.digest in text
    rows = rows_of(experiment.runs_csv(runs))
    assert len(rows) == len(runs)
    assert float(rows[0]["value"]) == pytest.approx(runs[0].value, abs=1e-4)


@pytest.mark.slow
def test_every_method_becomes_a_run_in_mlflow(prepared, tmp_path, copy_database, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(copy_database(tmp_path / "home")))
    instances = cora.load(prepared)
    runs = list(protocol.run_all(instances, protocol.splits(len(instances), 2), TINY, 1))
    for name in ("table.md", "runs.csv"):
        (tmp_path / name).write_text("a table\n")
    assert experiment.log(instances, runs, TINY, tmp_path, {"commit": "0123"}) == 0
    logged = {run.name: run for run in find_runs()}
    assert set(logged) == {"program", *protocol.REFERENCES}
    program = logged["program"]
    assert program.params["objective"] == "Decision"
    assert program.params["temperature"] == "1.0"
    assert program.tags["commit"] == "0123"
    values = [run.value for run in runs if run.method == "program"]
    histories = metric_histories([program.run_id], "value")
    assert histories[program.run_id] == list(enumerate(values))
    assert program.metrics["mean"] == pytest.approx(np.mean(values))


@pytest.mark.slow
def test_the_script_runs(prepared, tmp_path):
    def script(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "sweeps" / "cora.py"), "--smoke", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    out = tmp_path / "out"
    done = script("--data", str(prepared), "--peer", "--workers", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "table.md").read_text() in done.stdout + "\n"
    methods = {row["method"] for row in rows_of((out / "runs.csv").read_text())}
    assert methods == {*protocol.TUNED, *protocol.PLAIN, *protocol.PEER, *protocol.REFERENCES}
    missing = script()
    assert missing.returncode == 2
    assert "cutslots prepare cora" in missing.stderr
    assert "Traceback" not in missing.stderr
