"""`cutslots doctor` on machines in every state that a test can make."""

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import scipy.sparse

from cutslots.cli import doctor, main
from cutslots.files import home, write_text
from cutslots.qp import factors
from cutslots.qp.cholesky import factorise
from tests.commands import parse


@pytest.fixture
def scenes() -> Path:
    assert main(["prepare", "scenes", "--count", "10", "--size", "16"]) == 0
    return home() / "data" / "scenes"


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


def test_remedy_of_a_damaged_manifest_repairs_it(scenes, capsys):
    (fact,) = doctor.datasets()
    assert (fact.mark, "8 train" in fact.text) == ("ok", True)
    content = (scenes / "manifest.json").read_text()
    write_text(scenes / "manifest.json", re.sub(r'"frame_shape": \[[^]]*\]', "", content))
    assert main(["doctor"]) == 1
    remedy = capsys.readouterr().out.split("-> cutslots prepare scenes")[1].splitlines()[0]
    arguments = [*shlex.split(remedy), "--count", "10", "--size", "16"]
    assert main(["prepare", "scenes", *arguments]) == 0
    assert [fact.mark for fact in doctor.datasets()] == ["ok"]
    (scenes / "manifest.json").rename(scenes / "progress.json")
    assert [fact.mark for fact in doctor.datasets()] == ["missing"]


def test_datasets_of_the_environment(tmp_path, monkeypatch):
    write_text(tmp_path / "clevr" / "manifest.json", "[]")
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path))
    (fact,) = doctor.datasets()
    assert fact.mark == "problem"
    assert fact.remedy == f"cutslots prepare clevr RAW {tmp_path / 'clevr'} --overwrite"
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path / "missing"))
    assert [fact.mark for fact in doctor.datasets()] == ["problem", "missing"]


@pytest.mark.gpu
def test_cusparse_solves():
    pytest.importorskip("cupy")
    assert [fact.mark for fact in doctor.cusparse()] == ["ok"]


def test_packages(monkeypatch):
    assert doctor.package("no_such_package").remedy == "pip install 'no_such_package'"
    monkeypatch.setitem(doctor.sys.modules, "ray", None)
    assert doctor.package("ray").mark == "problem"


def test_home_that_is_not_writable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "file" / "home"))
    (fact,) = doctor.home_folder()
    assert (fact.mark, fact.remedy) == ("problem", "export CUTSLOTS_HOME=FOLDER")


def test_damaged_store_is_a_problem():
    write_text(home() / "mlflow.db", "no database " * 100)
    (fact,) = doctor.tracking_store()
    path = home() / "mlflow.db"
    assert (fact.mark, fact.remedy) == ("problem", f"mv {path} {path}.damaged")


def test_servers(monkeypatch):
    class Login(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Login)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
    (answering,) = doctor.tracking_store()
    server.shutdown()
    server.server_close()
    (silent,) = doctor.tracking_store()
    assert (answering.mark, silent.mark) == ("ok", "missing")
    assert "secret" not in answering.text + silent.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:port")
    assert [fact.mark for fact in doctor.tracking_store()] == ["missing"]


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


def test_remedy_of_a_damaged_factor_clears_the_cache(capsys):
    matrix = scipy.sparse.diags_array([2.0, 3.0, 4.0])
    for name in ("whole", "altered"):
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
