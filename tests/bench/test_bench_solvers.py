"""`cutslots bench solvers`: every method is right, every cell is there, and what cannot be measured says why."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from cutslots.bench import _cells, _peers
from cutslots.bench._cells import Cells
from cutslots.bench._methods import METHODS
from cutslots.bench._worker import StoppedError, Worker, errors, inputs
from cutslots.qp import Grid
from cutslots.qp.program import edge_costs
from cutslots.report import plots as benchmarks

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:cvxpylayers", "ignore::PendingDeprecationWarning:osqp"
)
CPU = torch.device("cpu")
EXACT = [name for name, method in METHODS.items() if method.tolerance is not None]


@pytest.fixture(autouse=True)
def own_factors(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path / "factors"))


@pytest.mark.parametrize("name", EXACT)
def test_every_method_is_exact(name):
    method = METHODS[name]
    if method.module:
        pytest.importorskip(method.module)
    weights, upstream = inputs(5, 3, CPU)
    solver = method.build(5, CPU)
    found = errors(weights, upstream, solver.forward(weights), solver.backward(upstream))
    assert set(found) == {"potentials_error", "gradient_error"}
    assert max(found.values()) < 2e-6, found


def test_errors_see_a_wrong_gradient():
    weights, upstream = inputs(5, 3, CPU)
    solver = METHODS["dct"].build(5, CPU)
    potentials, gradient = solver.forward(weights), solver.backward(upstream)
    gradient[-1, 0, 0, 0] += 0.1
    found = errors(weights, upstream, potentials, gradient)
    assert found["gradient_error"] > 1e-3 > found["potentials_error"]
    assert _cells._verdict({"method": "dct", **found})["status"] == "unequal"
    assert (
        _cells._verdict({"method": "dct", "potentials_error": float("nan"), "gradient_error": 0.0})[
            "status"
        ]
        == "unequal"
    )


def test_the_linear_program_is_the_least_cut():
    pytest.importorskip("osqp")
    weights, _ = inputs(6, 1, CPU)
    solver = _peers.Osqp(6, CPU)
    costs = edge_costs(weights.double().numpy(), Grid(6, 6))[:, 0]
    exact = linprog(
        np.concatenate([costs, solver.rest]),
        A_ub=-solver.A,
        b_ub=-solver.lower,
        bounds=(None, None),
    )
    assert _peers.least_cut(costs, Grid(6, 6)) == pytest.approx(exact.fun, rel=1e-5)
    solver.forward(weights)
    found = solver.against_max_flow(weights)
    assert abs(found["objective_gap"]) < 0.05
    assert found["violation"] < 0.01
    assert found["solved"] == 1


def test_a_package_that_is_not_there_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(METHODS, "osqp", replace(METHODS["osqp"], module="no_such_package"))
    cells = Cells(CPU, 10, 10, 1e9)
    cells.measure(["osqp"], 4, [1, 2])
    assert [cell["status"] for cell in cells.done] == ["missing", "missing"]
    assert (
        cells.done[0]["reason"] == "no_such_package is not installed: pip install 'cutslots[peers]'"
    )


def test_what_would_go_over_a_limit_is_not_run_and_says_why():
    cells = Cells(CPU, 10, 10, 1e9)
    cells.measure(["kkt", "dense"], 128, [1])
    kkt, dense = cells.done
    assert kkt["status"] == dense["status"] == "not run"
    assert kkt["reason"].startswith("needs about 2")
    assert "(2V)^2 / 2 = 537 M numbers" in kkt["reason"]
    assert "at most 400 vertices" in dense["reason"]
    cells.done = [
        {
            "method": "dct",
            "size": 8,
            "batch": batch,
            "status": "measured",
            "setup_seconds": 0.1,
            "factor_from_disk": False,
            "seconds": 1.0,
        }
        for batch in (1, 32)
    ]
    cells.measure(["dct"], 16, [128])
    assert cells.done[-1]["status"] == "not run"
    assert cells.done[-1]["reason"] == "a step would take about 16 s, by what 8 x 8, 32 cuts took"


def test_what_takes_too_long_is_stopped_and_stays_stopped():
    cells = Cells(CPU, 1e-6, 60, 1e9)
    cells.measure(["dct"], 8, [1, 2])
    first, second = cells.done
    assert (first["status"], first["reason"]) == ("stopped", "not done after 0 s")
    assert first["setup_seconds"] >= 0
    assert second["status"] == "not run"
    assert second["reason"].startswith("stopped at 8 x 8, 1 cuts")


@pytest.mark.skipif(
    sys.platform != "linux", reason="the limit of a process's memory is the system's"
)
def test_what_takes_too_much_memory_is_stopped():
    worker = Worker("dct", 256, "cpu", memory=60e6)
    worker.ask("build", 60)
    with pytest.raises(StoppedError, match="more than its limit of 0.1 GB"):
        worker.ask("check", 60, batch=64)
    assert not worker.process.is_alive()


def test_a_worker_that_dies_is_said():
    worker = Worker("dct", 4, "cpu", memory=1e9)
    worker.process.kill()
    with pytest.raises(StoppedError, match="died with status -9"):
        worker.ask("build", 60)


def test_memory_of_a_step_is_what_it_allocates():
    worker = Worker("dct", 64, "cpu", memory=1e9)
    try:
        worker.ask("build", 60)
        found = worker.ask("check", 60, batch=64)
    finally:
        worker.close()
    assert found["weights_bytes"] == 64 * 6 * 64 * 64 * 4
    # Weights, upstream, potentials and gradient are held at once whatever the method does.
    assert 2 + 2 / 6 < found["step_bytes"] / found["weights_bytes"] < 5


def test_every_method_has_a_line_of_its_own():
    assert set(benchmarks.STYLES) == set(METHODS)
    assert len(set(benchmarks.STYLES.values())) == len(METHODS)


@pytest.mark.slow
def test_the_quick_benchmark(tmp_path):
    out, figure = tmp_path / "solvers.json", tmp_path / "solvers.png"
    command = [
        sys.executable,
        "-m",
        "cutslots",
        "bench",
        "solvers",
        "--quick",
        "--device",
        "cpu",
        "--json",
        out,
        "--figure",
        figure,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["command"].startswith("cutslots bench solvers --quick")
    assert found["truth"]["gradient_error"] < 1e-10
    assert {"torch", "scipy", "osqp"} <= set(found["versions"])
    assert {(cell["method"], cell["size"], cell["batch"]) for cell in found["cells"]} == {
        (name, size, batch) for name in METHODS for size in (6, 12) for batch in (1, 8)
    }
    for cell in found["cells"]:
        if cell["status"] != "measured":
            assert cell["reason"], cell
        elif cell["method"] == "osqp":
            assert cell["solved"] <= 1
            assert "gradient_error" not in cell
        else:
            assert cell["potentials_error"] < 1e-4
            assert cell["gradient_error"] < 1e-4
            assert 0 < cell["fastest_seconds"] <= cell["seconds"]
            assert cell["repeats"] >= 1
    measured = {cell["method"] for cell in found["cells"] if cell["status"] == "measured"}
    assert {"dct", "vertex", "kkt", "dense", "kkt_splu"} <= measured
    for name, about in found["methods"].items():
        assert (about["missing"] is None) == (_cells.missing(name) is None)
        if about["missing"]:
            assert f"{name}, 1, 8 cuts, missing: {about['missing']}" in done.stdout
        assert name in done.stdout
    assert "Headline" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
