"""Factors are right, are made once, and damage is noticed."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from programs import assert_close, on, random_weights, truth, variables
from safetensors.torch import load_file, save_file

from cutslots.errors import InputError
from cutslots.qp import Gamma, Grid, MinCut, cholesky, factors
from cutslots.qp.solvers.vertex import Vertex, vertex_block


def laplacian(height=13, width=9):
    return vertex_block(Grid(height, width, neighbours=8), 2.0)


ways = pytest.mark.parametrize("has_cholmod", [True, False], ids=["cholmod", "superlu"])


@ways
@pytest.mark.parametrize("subtree", [1, 5, 1000])
def test_a_factor_is_a_factor(has_cholmod, subtree, monkeypatch):
    if has_cholmod:
        pytest.importorskip("sksparse.cholmod", reason="scikit-sparse is not installed")
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: has_cholmod)
    monkeypatch.setattr(cholesky, "SUBTREE", subtree)
    matrix = laplacian()
    factor = cholesky.factorise(matrix)
    L, order = factor.lower().toarray(), factor.permutation.numpy()
    np.testing.assert_allclose(np.triu(L, 1), 0)
    np.testing.assert_allclose(L @ L.T, matrix.toarray()[order][:, order], atol=1e-12)
    rhs = torch.randn(4, 117, dtype=torch.float64)
    expected = np.linalg.solve(matrix.toarray(), rhs.numpy().T).T
    np.testing.assert_allclose(factor.solve(rhs).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(factor.solve(rhs.float()).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("invert_up_to", [0, 3, 10_000])
def test_blocks_inverted_or_solved_are_the_same(invert_up_to, monkeypatch):
    monkeypatch.setattr(cholesky, "INVERT_UP_TO", invert_up_to)
    rhs = torch.randn(2, 117, dtype=torch.float64)
    expected = np.linalg.solve(laplacian().toarray(), rhs.numpy().T).T
    np.testing.assert_allclose(
        cholesky.factorise(laplacian()).solve(rhs).numpy(), expected, atol=1e-12
    )


def test_the_whole_inverse_is_the_inverse():
    """What a GPU uses for a moderate number of vertices, here on the CPU."""
    engine = cholesky._Inverse(cholesky.factorise(laplacian()), torch.device("cpu"), torch.float64)
    np.testing.assert_allclose(
        engine.inverse.numpy() @ laplacian().toarray(), np.eye(117), atol=1e-12
    )


@ways
def test_a_matrix_that_is_not_positive_definite_is_refused(has_cholmod, monkeypatch):
    if has_cholmod:
        pytest.importorskip("sksparse.cholmod", reason="scikit-sparse is not installed")
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: has_cholmod)
    with pytest.raises(InputError, match="not positive definite"):
        cholesky.factorise(sp.csc_array(np.array([[1.0, 2.0], [2.0, 1.0]])))


def test_layers_of_one_process_share_a_factor_and_let_it_go():
    first, second = (
        Vertex(Grid(6, 5), Gamma(0.1, 0.1, 0.1)),
        Vertex(Grid(6, 5), Gamma(2.0, 2.0, 2.0)),
    )
    assert first.factor is second.factor
    key = factors.stored()[0].path.stem
    assert key in factors._alive
    del first, second
    assert key not in factors._alive


@pytest.fixture
def file():
    MinCut(6, 5, solver="vertex")
    (entry,) = factors.stored()
    assert entry.problem is None
    assert "6 x 5" in entry.about
    return entry.path


def cut_short(path):
    os.truncate(path, path.stat().st_size - 100)


def altered(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def of_another_version(path):
    save_file(load_file(path), path, {"cutslots_factor": "0"})


def of_another_program(path):
    save_file({"weights": torch.ones(3)}, path)


def emptied(path):
    path.write_bytes(b"")


def of_another_matrix(path):
    MinCut(4, 4, solver="vertex")
    other = next(entry.path for entry in factors.stored() if entry.path != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [cut_short, altered, of_another_version, of_another_program, emptied, of_another_matrix],
)
def test_damage_is_said_and_the_factor_made_anew(damage, file, caplog):
    damage(file)
    with caplog.at_level(logging.WARNING, "cutslots.qp"):
        cut = MinCut(6, 5, solver="vertex")
    assert "computed anew" in caplog.text
    assert str(file) in caplog.text
    weights = random_weights(Grid(6, 5))
    assert_close(variables(cut(weights)), truth(Grid(6, 5), weights, Gamma(0.5, 0.5, 0.5)), 1e-10)
    assert all(entry.problem is None for entry in factors.stored())


def test_damaged_files_are_listed_and_cleared(file):
    altered(file)
    MinCut(4, 4, solver="vertex")
    listed = {entry.path: entry.problem for entry in factors.stored()}
    assert "checksum" in (listed.pop(file) or "")
    assert list(listed.values()) == [None]
    assert len(factors.clear()) == 2
    assert factors.stored() == []
    assert {path.suffix for path in factors.folder().iterdir()} == {".lock"}


def test_what_an_interrupted_write_left_is_cleared(file):
    (file.parent / ".tmpAbCdEf").write_bytes(b"half")
    factors.clear()
    assert not (file.parent / ".tmpAbCdEf").exists()


def test_a_folder_that_others_filled_is_read_without_writing(file, monkeypatch):
    lock = file.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()  # nobody can take this lock
    monkeypatch.setattr(factors, "factorise", lambda *_: pytest.fail("factored again"))
    cut, weights = MinCut(6, 5, solver="vertex"), random_weights(Grid(6, 5))
    assert_close(variables(cut(weights)), truth(Grid(6, 5), weights, Gamma(0.5, 0.5, 0.5)), 1e-10)
    assert file.stat().st_mode & 0o044 == 0o044


FULL = """
import resource
from cutslots.qp import MinCut
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(MinCut(12, 12, solver="kkt").choice.name)
"""


def test_a_full_disk_costs_the_cache_only():
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "kkt\n", done.stderr
    assert "is not kept on disk" in done.stderr
    assert factors.stored() == []


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "cutslots.qp"):
        cut = MinCut(6, 5, solver="kkt")
    assert "CUTSLOTS_FACTORS names another folder" in caplog.text
    weights = random_weights(Grid(6, 5))
    assert_close(variables(cut(weights)), truth(Grid(6, 5), weights, Gamma(0.5, 0.5, 0.5)), 1e-10)


def test_keys_know_the_matrix_and_forgive_rounding():
    matrix = laplacian()
    key = factors.digest("M", matrix.data, matrix.indices)
    assert key == factors.digest("M", matrix.data * (1 + 1e-15), matrix.indices.astype(np.int64))
    assert key != factors.digest("M", matrix.data * (1 + 1e-9), matrix.indices)
    assert key != factors.digest("A A^T", matrix.data, matrix.indices)
    assert key != factors.digest("M", matrix.data, matrix.indices[::-1])
    assert factors.digest(np.zeros(3)) != factors.digest(np.zeros(4))


def test_where_factors_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("CUTSLOTS_FACTORS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert factors.folder() == tmp_path / "cutslots" / "factors"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert factors.folder().parts[-3:] == (".cache", "cutslots", "factors")


WORKER = """
import sys, time
from pathlib import Path
from cutslots.qp import MinCut, factors
made = Path(sys.argv[1])
build = factors.factorise
def counted(*arguments, **options):
    factor = build(*arguments, **options)
    (made / f"{sys.argv[2]}").touch()
    time.sleep(0.5)
    return factor
factors.factorise = counted
(made / f"ready-{sys.argv[2]}").touch()
while len(list(made.glob("ready-*"))) < 8:
    time.sleep(0.01)
cut = MinCut(12, 12, gamma=0.1 + int(sys.argv[2]), solver="kkt")
"""


@pytest.mark.slow
def test_eight_processes_starting_at_once_make_one_factor(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(number)])
        for number in range(8)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0] * 8
    made = [path.name for path in tmp_path.iterdir() if not path.name.startswith("ready-")]
    assert len(made) == 1, "one process factors, the others wait and read"
    assert [entry.problem for entry in factors.stored()] == [None]
    weights = random_weights(Grid(12, 12))
    found = variables(on(Grid(12, 12), solver="kkt")(weights))
    assert_close(found, truth(Grid(12, 12), weights, Gamma(0.5, 0.5, 0.5)), 1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cusparse_substitutes_like_the_panels(dtype):
    """Directly, since small graphs use the whole inverse; more batch sizes than plans are kept, and two streams."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from cutslots.qp import cusparse

    factor, tolerance = (
        cholesky.factorise(laplacian(40, 30)),
        1e-10 if dtype == torch.float64 else 1e-5,
    )
    engine = cusparse.Substitution(factor, torch.device("cuda", 0), dtype)
    other = torch.cuda.Stream()
    for batch in [*range(1, cusparse.Substitution.KEPT + 4), 1, 2]:
        rhs = torch.randn(
            batch, 1200, dtype=torch.float64, generator=torch.Generator().manual_seed(batch)
        )
        expected = factor.solve(rhs)
        on_gpu = rhs.to("cuda", dtype)
        found = engine.solve(on_gpu)
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            again = engine.solve(on_gpu)
        torch.cuda.synchronize()
        for each in (found, again):
            torch.testing.assert_close(
                each.cpu().double(), expected, atol=tolerance, rtol=tolerance
            )


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["dct", "vertex", "kkt", "dense"])
def test_no_step_waits_for_the_gpu(solver):
    cut = MinCut(12, 10, solver=solver)
    weights = torch.rand(4, 6, 12, 10, device="cuda", requires_grad=True)
    upstream = torch.ones(4, 12, 10, device="cuda")
    cut(weights).potentials.backward(upstream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        cut(weights).potentials.backward(upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
