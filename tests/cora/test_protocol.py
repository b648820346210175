"""Splits, the choice of settings, the table and the script."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cutslots import cora
from cutslots.cora import protocol, table
from cutslots.cora.learn import Decision, Settings, TwoStage
from cutslots.errors import InputError

ROOT = Path(__file__).parents[2]
SCRIPT, RESULTS = ROOT / "sweeps" / "cora.py", ROOT / "results" / "cora"


def test_no_split_holds_out_what_chose_the_settings():
    tuning = set(protocol.tuning_members(27))
    assert len(tuning) == 15
    found = protocol.splits(27, 30)
    for split in found:
        assert len(split.held_out) == 5
        assert set(split.held_out).isdisjoint(tuning)
        assert sorted(split.train + split.held_out) == list(range(27))
    assert len({split.held_out for split in found}) > 20
    assert found == protocol.splits(27, 30)
    everywhere = protocol.splits(27, 30, everywhere=True)
    assert set().union(*(split.held_out for split in everywhere)) == set(range(27))
    with pytest.raises(InputError, match="too few"):
        protocol.splits(2, 1)


def test_tuning_looks_at_tuning_instances_only(monkeypatch):
    seen: set[int] = set()

    def train(problems, members, settings, seed, stops):
        seen.update(members)
        return [None for _ in stops]

    def values(problems, members, network, settings):
        seen.update(members)
        return [float(settings.hidden) for _ in members]

    monkeypatch.setattr(protocol, "train", train)
    monkeypatch.setattr(protocol, "values", values)
    members = protocol.tuning_members(27)
    found = protocol._cross_validate(
        None, "program", Settings(Decision(), hidden=7), (1, 2), members, 2
    )  # pyright: ignore[reportArgumentType]
    assert seen == set(members)
    assert [(candidate.settings.epochs, candidate.value) for candidate in found] == [
        (1, 7.0),
        (2, 7.0),
    ]


def test_the_settings_in_use_are_those_that_tuning_chose_at_even_effort():
    rows = list(csv.DictReader((RESULTS / "tuning.csv").read_text().splitlines()))
    for method, settings in {
        **protocol.TUNED,
        "inequality program": protocol.PEER["inequality program"],
    }.items():
        tried, stops = protocol.grid(method)
        mine = [row for row in rows if row["method"] == method]
        assert len(mine) == len(tried) * len(stops) == 64
        best = max(mine, key=lambda row: float(row["value"]))
        ours = [
            settings.objective,
            settings.hidden,
            settings.learning_rate,
            settings.epochs,
            settings.swap,
        ]
        assert [
            best[name] for name in ("objective", "hidden", "learning_rate", "epochs", "swap")
        ] == list(map(str, ours))


def test_the_bootstrapped_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = table.bootstrap(generator.normal(3.0, 2.0, 40).tolist(), draws=500)
        inside += low < 3.0 < high
    assert 0.88 <= inside / 200 <= 0.99
    assert table.bootstrap([5.0] * 10) == (5.0, 5.0)
    low, high = table.bootstrap(generator.normal(0.0, 1.0, 2500).tolist())
    assert high - low == pytest.approx(2 * 1.96 / 50, rel=0.1)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(prepared):
    instances = cora.load(prepared)
    chosen, methods = (
        protocol.splits(len(instances), 2),
        {"program": Settings(Decision(), hidden=4, epochs=1)},
    )
    one, two = (
        [(run.method, run.values) for run in protocol.run_all(instances, chosen, methods, workers)]
        for workers in (1, 2)
    )
    assert one == two


def test_runs_become_a_table(prepared):
    instances = cora.load(prepared)
    methods = {
        "program": Settings(Decision(), hidden=4, epochs=1),
        "two-stage": Settings(TwoStage(), hidden=4, epochs=1),
    }
    chosen = protocol.splits(len(instances), 3)
    runs = protocol.run_all(instances, chosen, methods, workers=1)
    assert [(run.split.number, run.method) for run in runs] == list(
        itertools.product(range(3), [*methods, "word overlap", "random", "optimum"])
    )
    optimum = instances.optimum()
    for run in runs:
        best = optimum[list(run.split.held_out)]
        assert (np.array(run.values) <= best).all()
        assert run.method != "optimum" or (np.array(run.values) == best).all()
    text = table.markdown(runs, table.caption(instances, runs, "a command", "0123"))
    mean = np.mean([run.value for run in runs if run.method == "program"])
    assert f"| program | {mean:.2f} |" in text
    assert "| published: NN2-Decision | 6.15 | 5.77 to 6.53 |" in text
    assert "not strictly comparable" in text
    rows = list(csv.DictReader(table.runs_csv(runs).splitlines()))
    assert len(rows) == len(runs)
    assert float(rows[0]["value"]) == pytest.approx(runs[0].value, abs=1e-4)


@pytest.mark.slow
def test_every_method_becomes_a_run_in_mlflow(prepared, tmp_path):
    from mlflow import MlflowClient

    from cutslots.tracking import default_uri

    instances = cora.load(prepared)
    settings = {"program": Settings(Decision(), hidden=4, epochs=1)}
    runs = protocol.run_all(instances, protocol.splits(len(instances), 2), settings, workers=1)
    table.write(tmp_path, runs, "a table\n")
    assert table.log(instances, runs, settings, tmp_path, {"commit": "0123"}) == 0
    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("cora")
    assert experiment is not None
    logged = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(logged) == {"program", "word overlap", "random", "optimum"}
    program = logged["program"]
    assert program.data.params["objective"] == "Decision"
    assert program.data.tags["commit"] == "0123"
    points = client.get_metric_history(program.info.run_id, "value")
    assert [point.value for point in sorted(points, key=lambda point: point.step)] == [
        run.value for run in runs if run.method == "program"
    ]
    assert program.data.metrics["mean"] == pytest.approx(np.mean([point.value for point in points]))


@pytest.mark.slow
def test_the_script_runs(prepared, tmp_path):
    def script(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300
        )

    done = script(
        "--data",
        str(prepared),
        "--smoke",
        "--peer",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout + "\n"
    methods = {
        row["method"]
        for row in csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines())
    }
    assert methods == {*protocol.TUNED, *protocol.PLAIN, *protocol.PEER, *protocol.REFERENCES}
    missing = script("--smoke")
    assert missing.returncode == 2
    assert "cutslots prepare cora" in missing.stderr
    assert "Traceback" not in missing.stderr
