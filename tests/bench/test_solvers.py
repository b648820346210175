"""`cutslots bench solvers`: results are checked, and every cell has a result or a reason."""

import json
import sys

import pytest
import torch

from cutslots.bench import peers, solvers, timing
from cutslots.bench.solvers import METHODS
from cutslots.cli import main
from cutslots.qp.solvers import BACK_ENDS
from cutslots.report.plots import solvers_figure

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_factors(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path / "factors"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exact(name):
    assert set(BACK_ENDS) < set(METHODS)
    if module := METHODS[name].module:
        pytest.importorskip(module)
    result = solvers.measure_cell(name, 5, 3, CPU)
    assert max(result["potentials_error"], result["gradient_error"]) < 2e-6
    assert 0 < result["fastest_seconds"] <= result["seconds"]
    assert result["weights_bytes"] == 3 * 6 * 5 * 5 * 4


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_wrong_gradient_is_refused(wrong, monkeypatch):
    class Wrong(peers.BackEnd):
        def backward(self, upstream):
            gradient = super().backward(upstream)
            gradient[-1, 0, 0, 0] += wrong
            return gradient

    method = peers.Method(lambda size, device: Wrong("dct", size, device))
    monkeypatch.setitem(METHODS, "dct", method)
    with pytest.raises(ArithmeticError, match="gradient_error"):
        solvers.measure_cell("dct", 5, 3, CPU)


def test_a_missing_package_is_named_with_its_install_command(monkeypatch):
    method = peers.Method(peers.Qpth, module="no_such_package", install="pip install it")
    monkeypatch.setitem(METHODS, "qpth", method)
    cell = solvers.not_run({"method": "qpth", "size": 4, "batch": 1}, [])
    assert cell is not None
    assert cell["status"] == "missing"
    assert "no_such_package" in cell["reason"]
    assert "pip install it" in cell["reason"]


@pytest.mark.parametrize(
    ("method", "size", "batch", "runs"),
    [("dct", 8, 4, False), ("dct", 16, 8, False), ("dct", 16, 2, True), ("dense", 16, 8, True)],
)
def test_a_stopped_method_does_not_run_at_more_work(method, size, batch, runs):
    stopped = {"method": "dct", "size": 8, "batch": 4, "status": "stopped", "reason": "limit"}
    cell = solvers.not_run({"method": method, "size": size, "batch": batch}, [stopped])
    assert (cell is None) == runs
    if cell:
        assert cell["status"] == "not run"
        assert "8 x 8" in cell["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "timeout", "reason"),
    [
        (("dct", 8, 1, "cpu", 10**9), 0.01, "0.01 s"),
        (("dct", 256, 64, "cpu", 6 * 10**7), 60, "memory"),
        (("dense", 64, 1, "cpu", 10**9), 60, "400"),
    ],
    ids=["time", "memory", "refused"],
)
def test_a_failing_cell_has_its_reason(arguments, timeout, reason):
    result = timing.isolated("cutslots.bench.solvers", *arguments, timeout=timeout)
    assert result["status"] == "stopped"
    assert reason in result["reason"]


def test_a_killed_process_is_reported(tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = timing.isolated("killed", timeout=60)
    assert result["status"] == "stopped"
    assert "signal 9" in result["reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is of Linux")
def test_peak_memory_is_what_a_call_allocates():
    peak = timing.peak_memory(lambda: torch.ones(2**24).add_(1).sum(), CPU)
    assert 0.95 * 2**26 < peak < 1.2 * 2**26


@pytest.mark.slow
def test_the_quick_benchmark(tmp_path, capsys):
    out, figure = tmp_path / "solvers.json", tmp_path / "solvers.png"
    command = ["bench", "solvers", "--quick", "--device", "cpu", "--figure", str(figure)]
    assert main([*command, "--methods", "dct,vertex,kkt_cholmod", "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    cells = {(cell["method"], cell["size"], cell["batch"]): cell for cell in results["cells"]}
    assert len(cells) == len(results["cells"]) == 3 * 2 * 2
    for (method, _, _), cell in cells.items():
        missing = results["methods"][method]["missing"]
        assert cell["status"] == ("missing" if missing else "measured")
        assert cell.get("reason") == missing
    assert results["limits"]["memory_bytes"] > 1e8
    assert "vertex" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_results_of_earlier_versions_are_drawn(tmp_path):
    method = {"title": "closed form (ours)", "exact": True, "missing": None}
    cells = [
        {"method": name, "size": size, "batch": 1, "status": "measured", "seconds": 0.1}
        | {"memory_bytes": 10}
        for name in ("dct", "osqp")
        for size in (8, 16)
    ]
    machine = {"gpu": None, "processor": "a processor", "threads": 2}
    methods = {"dct": method, "osqp": method | {"exact": False}}
    solvers_figure({"cells": cells, "methods": methods, "machine": machine}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
