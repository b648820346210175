"""The doctor on machines in every state that can be made here."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file

from cutslots.cli import _facts, main, parser
from cutslots.cli._facts import Fact
from cutslots.files import home, write_text
from cutslots.qp import factors
from cutslots.qp.cholesky import factorise
from tests.cora.conftest import graph, write_arrays


@pytest.fixture
def scenes() -> Path:
    folder = home() / "data" / "scenes"
    assert main(["prepare", "scenes", "--count", "10", "--size", "16"]) == 0
    return folder


def only(facts: list[Fact]) -> Fact:
    (fact,) = facts
    return fact


def test_a_fresh_machine_has_no_problem_and_stays_fresh(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    for name in (
        "Python",
        "torch",
        "pyarrow",
        "ray",
        "optuna",
        "mlflow",
        "CUTSLOTS_HOME",
        "Ray cluster",
    ):
        assert facts[name]["mark"] == "ok"
    for name in ("tracking store", "datasets"):
        assert facts[name]["mark"] == "missing"
        assert parser().parse_args(shlex.split(facts[name]["remedy"])[1:])
    assert ", 0 factors, " in facts["factor cache"]["text"]
    assert {"GPU", "cuSPARSE", "CHOLMOD"} <= facts.keys()
    assert list(home().iterdir()) == []


def test_a_damaged_manifest_is_a_problem_that_its_remedy_mends(scenes, capsys):
    assert "8 train" in only(_facts.datasets()).text
    content = (scenes / "manifest.json").read_text()
    (scenes / "manifest.json").write_text(
        re.sub(r'"frame_shape": \[[^]]*\]', '"frame_shape": []', content)
    )
    assert only(_facts.datasets()).mark == "problem"
    (scenes / "manifest.json").write_text(content[:30])
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("problem"))
    assert "data scenes" in lines[place]
    assert "is damaged" in lines[place]
    remedy = lines[place + 1].split("-> cutslots ")[1]
    assert main([*shlex.split(remedy), "--count", "10", "--size", "16"]) == 0
    assert only(_facts.datasets()).mark == "ok"


def test_a_half_prepared_set_is_not_broken(scenes):
    (scenes / "manifest.json").rename(scenes / "progress.json")
    fact = only(_facts.datasets())
    assert fact == Fact(
        "missing", "data scenes", f"{scenes} is half prepared", f"cutslots prepare scenes {scenes}"
    )


def test_the_remedy_for_a_set_names_its_raw_data():
    folder = home() / "data" / "clevr"
    write_text(folder / "manifest.json", "[]")
    assert _facts.dataset(folder).remedy == f"cutslots prepare clevr RAW {folder} --overwrite"
    write_text(home() / "data" / "mine" / "manifest.json", "{}")
    assert (
        _facts.dataset(home() / "data" / "mine").remedy
        == f"cutslots prepare SOURCE RAW {home() / 'data' / 'mine'} --overwrite"
    )


def test_instances_of_cora_are_told_too(tmp_path):
    raw = write_arrays(tmp_path / "raw", *graph())
    assert (
        main(["prepare", "cora", str(raw), "--instances", "6", "--side", "5", "--starts", "1"]) == 0
    )
    fact = only(_facts.datasets())
    assert fact.mark == "ok"
    assert fact.text.startswith("cora, 6 instances, digest ")
    (home() / "data" / "cora" / "instances.npz").write_bytes(b"")
    fact = only(_facts.datasets())
    assert (fact.mark, fact.remedy) == (
        "problem",
        f"cutslots prepare cora RAW {home() / 'data' / 'cora'} --overwrite",
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('noise'); print('1.2')", (True, "1.2")),
        ("import no_such_module", (False, "ModuleNotFoundError: No module named 'no_such_module'")),
        ("import os; os.abort()", (False, "it ended the process with SIGABRT")),
    ],
)
def test_a_library_that_does_not_load_is_told_and_ends_nothing(code, expected):
    assert _facts.probe(code) == expected


def test_what_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(_facts, "PROBE_SECONDS", 1)
    assert _facts.probe("import time; time.sleep(60)") == (False, "no answer within 1 s")


def test_cusparse_says_why_it_cannot_be_used():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    works, said = _facts.probe(
        "from cutslots.cli._facts import solve_with_cusparse; print(solve_with_cusparse())"
    )
    assert not works
    assert "CuPy" in said
    assert only(_facts.cusparse()).mark == "missing"


@pytest.mark.gpu
def test_cusparse_solves():
    pytest.importorskip("cupy")
    assert only(_facts.gpu()).mark == "ok"
    assert only(_facts.cusparse()).mark == "ok"


def test_a_package_is_there_and_new_enough():
    assert only(_facts.package("no_such_package")).remedy == "pip install 'no_such_package'"
    old = _facts._too_old("ray", "2.9.3")
    assert old is not None
    assert old.mark == "problem"
    assert old.text == "2.9.3; cutslots needs >=2.55"
    assert old.remedy == "pip install --upgrade 'ray>=2.55'"
    assert _facts._too_old("ray", "2.55.0") is None
    assert _facts._too_old("torch", "2.13.0+cpu") is None


def test_a_missing_package_leaves_the_other_facts():
    script = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from cutslots.cli import _facts, parser\n"
        "parser().parse_args(['doctor'])\n"
        "print([_facts._guarded(look)[0].mark for look in (_facts.python, _facts.home_folder, _facts.datasets)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['ok', 'ok', 'problem']\n"


def test_a_home_nobody_can_write_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "file" / "home"))
    fact = only(_facts.home_folder())
    assert (fact.mark, fact.remedy) == ("problem", "export CUTSLOTS_HOME=FOLDER")


def test_a_damaged_store_is_a_problem():
    write_text(home() / "mlflow.db", "no database " * 100)
    fact = only(_facts.tracking_store())
    assert fact.mark == "problem"
    assert fact.remedy == f"mv {home() / 'mlflow.db'} {home() / 'mlflow.db'}.damaged"


def test_a_server_that_answers_and_one_that_does_not(monkeypatch):
    class Login(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Login)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
    fact = only(_facts.tracking_store())
    server.shutdown()
    server.server_close()
    assert fact.mark == "ok"
    assert "secret" not in fact.text
    fact = only(_facts.tracking_store())
    assert (fact.mark, fact.remedy) == ("missing", "cutslots sync RUN")
    assert "secret" not in fact.text


def test_an_address_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:port")
    assert "does not answer" in only(_facts.tracking_store()).text


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_asked_what_it_has(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "not set" in only(_facts.ray_cluster()).text
    ray = pytest.importorskip("ray")
    running = ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    try:
        monkeypatch.setenv("RAY_ADDRESS", running.address_info["gcs_address"])
        fact = only(_facts.ray_cluster())
        assert fact.mark == "ok"
        assert "nodes: 1, CPUs: 3, GPUs: " in fact.text
    finally:
        ray.shutdown()


def test_a_cluster_that_cannot_be_joined_is_a_problem(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    fact = only(_facts.ray_cluster())
    assert (fact.mark, fact.remedy) == ("problem", "ray status --address nonsense")
    assert "RAY_ADDRESS=nonsense cannot be joined" in fact.text


def test_sets_are_told_where_sweeps_look_for_them(scenes, tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    shutil.copytree(scenes, tmp_path / "sets" / "mine")
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path / "sets"))
    assert "data mine" in [fact.name for fact in _facts.datasets()]
    monkeypatch.setenv("CUTSLOTS_DATA", "s3://bucket/sets")
    assert "s3://bucket/sets" in _facts.datasets()[0].text
    monkeypatch.setenv("CUTSLOTS_DATA", str(tmp_path / "gone"))
    assert _facts.datasets()[0].mark == "problem"


def test_damaged_factors_are_problems_that_their_remedy_mends(capsys):
    for name in ("whole", "altered", "old"):
        factors.get(
            name, f"the {name} matrix", lambda: factorise(scipy.sparse.diags_array([2.0, 3.0, 4.0]))
        )
    content = bytearray((factors.folder() / "altered.safetensors").read_bytes())
    content[-1] ^= 1
    (factors.folder() / "altered.safetensors").write_bytes(content)
    save_file(
        {"values": torch.ones(1)}, factors.folder() / "old.safetensors", {"cutslots_factor": "0"}
    )
    cache, *problems = _facts.factor_cache()
    assert ", 3 factors, " in cache.text
    assert [fact.mark for fact in (cache, *problems)] == ["ok", "problem", "problem"]
    assert "altered.safetensors is damaged" in problems[0].text
    assert "old.safetensors has version 0" in problems[1].text
    remedy = problems[0].remedy
    assert remedy is not None
    assert main(shlex.split(remedy)[1:]) == 0
    said = capsys.readouterr().out
    assert "3 factors" in said
    assert "the whole matrix" in said
    assert ", 0 factors, 0 bytes" in only(_facts.factor_cache()).text
