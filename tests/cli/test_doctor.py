"""`cutslots doctor` on machines in every state that a test can make."""

import json
import re
import shlex
import sys

import pytest
import scipy.sparse

from cutslots.cli import doctor, main
from cutslots.files import home, write_text
from cutslots.qp import factors
from cutslots.qp.cholesky import factorise
from tests.commands import parse


def test_fresh_machine_has_no_problem_and_stays_fresh(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    ok = ("Python", "torch", "pyarrow", "ray", "optuna", "mlflow", "CUTSLOTS_HOME", "Ray cluster")
    assert all(facts[name]["mark"] == "ok" for name in ok)
    for name in ("tracking store", "datasets"):
        assert facts[name]["mark"] == "missing"
        parse(shlex.split(facts[name]["remedy"])[1:])
    assert ", 0 factors, " in facts["factor cache"]["text"]
    assert {"GPU", "cuSPARSE", "CHOLMOD"} <= facts.keys()
    assert list(home().iterdir()) == []


def test_damaged_manifest_is_a_problem(capsys):
    assert main(["prepare", "scenes", "--count", "10", "--size", "16"]) == 0
    (fact,) = doctor.datasets()
    assert (fact.mark, "8 train" in fact.text) == ("ok", True)
    path = home() / "data" / "scenes" / "manifest.json"
    write_text(path, re.sub(r'"frame_shape": \[[^]]*\]', "", path.read_text()))
    capsys.readouterr()
    assert main(["doctor"]) == 1
    assert f"{path.parent} --overwrite" in capsys.readouterr().out


def test_datasets_of_the_environment(tmp_path, monkeypatch):
    write_text(tmp_path / "clevr" / "manifest.json", "[]")
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path))
    assert [(fact.mark, fact.name) for fact in doctor.datasets()] == [("problem", "data clevr")]
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path / "missing"))
    assert [fact.mark for fact in doctor.datasets()] == ["problem", "missing"]


def test_package_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    (fact,) = [fact for fact in doctor.collect() if fact.name == "optuna"]
    assert (fact.mark, fact.remedy) == ("problem", "pip install --force-reinstall optuna")


def test_home_that_is_not_writable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "file" / "home"))
    (fact,) = doctor.home_folder()
    assert (fact.mark, fact.remedy) == ("problem", "export CUTSLOTS_HOME=FOLDER")


def test_tracking_stores(copy_database, monkeypatch):
    path = copy_database(home()) / "mlflow.db"
    assert [fact.mark for fact in doctor.tracking_store()] == ["ok"]
    write_text(path, "no database " * 100)
    (damaged,) = doctor.tracking_store()
    assert (damaged.mark, damaged.remedy) == ("problem", f"mv {path} {path}.damaged")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    (silent,) = doctor.tracking_store()
    assert (silent.mark, "secret" in silent.text) == ("missing", False)


@pytest.mark.ray
@pytest.mark.slow
def test_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    (fact,) = doctor.ray_cluster()
    assert (fact.mark, fact.remedy) == ("problem", "ray status --address nonsense")
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS")
    running = ray.init(
        address="local", num_cpus=3, include_dashboard=False, object_store_memory=100 << 20
    )
    try:
        monkeypatch.setenv("RAY_ADDRESS", running.address_info["gcs_address"])
        (fact,) = doctor.ray_cluster()
        assert (fact.mark, "CPUs: 3" in fact.text) == ("ok", True)
    finally:
        ray.shutdown()


def test_remedy_of_a_damaged_factor_clears_the_cache():
    matrix = scipy.sparse.diags_array([2.0, 3.0, 4.0])
    for name in ("intact", "altered"):
        factors.get(name, f"the {name} matrix", lambda: factorise(matrix))
    path = factors.folder() / "altered.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cache, problem = doctor.factor_cache()
    assert (cache.mark, problem.mark) == ("ok", "problem")
    assert "altered.safetensors" in problem.text
    assert main(shlex.split(problem.remedy or "")[1:]) == 0
    (cache,) = doctor.factor_cache()
    assert ", 0 factors, 0 bytes" in cache.text
