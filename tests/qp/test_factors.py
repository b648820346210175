"""Factors are correct and computed once, and damaged files are detected."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from ground_truth import assert_exact, random_weights
from safetensors.torch import load_file, save_file

from cutslots.errors import InputError
from cutslots.qp import Gamma, Grid, MinCut, cholesky, cusparse, factors, substitution
from cutslots.qp.solvers.vertex import Vertex, vertex_block


def laplacian(height=13, width=9):
    return vertex_block(Grid(height, width, neighbours=8), 2.0)


def solved(rhs):
    return np.linalg.solve(laplacian().toarray(), rhs.numpy().T).T


@pytest.fixture(params=["cholmod", "superlu"])
def library(request, monkeypatch):
    if request.param == "cholmod":
        pytest.importorskip("sksparse.cholmod", reason="scikit-sparse is not installed")
    monkeypatch.setattr(cholesky, "has_cholmod", lambda: request.param == "cholmod")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("subtree", [1, 5, 1000])
def test_factor_and_substitution(subtree, monkeypatch):
    monkeypatch.setattr(cholesky, "SUBTREE", subtree)
    factor = cholesky.factorise(laplacian())
    L, order = factor.lower().toarray(), factor.permutation.numpy()
    np.testing.assert_allclose(np.triu(L, 1), 0)
    np.testing.assert_allclose(L @ L.T, laplacian().toarray()[order][:, order], atol=1e-12)
    rhs = torch.randn(4, 117, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = substitution.apply(factor, rhs.to(dtype))
        np.testing.assert_allclose(x.numpy(), solved(rhs), atol=tolerance)


@pytest.mark.usefixtures("library")
def test_indefinite_matrix_is_refused():
    with pytest.raises(InputError, match="not positive definite"):
        cholesky.factorise(sp.csc_array(np.array([[1.0, 2.0], [2.0, 1.0]])))


@pytest.mark.parametrize("limit", [0, 3, 10_000])
def test_inverted_blocks_give_the_same(limit, monkeypatch):
    monkeypatch.setattr(substitution, "INVERT_UP_TO", limit)
    rhs = torch.randn(2, 117, dtype=torch.float64)
    x = substitution.apply(cholesky.factorise(laplacian()), rhs)
    np.testing.assert_allclose(x.numpy(), solved(rhs), atol=1e-12)


def test_whole_inverse():
    """The engine of a GPU for moderate n, here on the CPU."""
    factor, rhs = cholesky.factorise(laplacian()), torch.randn(2, 117, dtype=torch.float64)
    engine = substitution.Inverse(factor, torch.device("cpu"), torch.float64)
    np.testing.assert_allclose(engine.solve(rhs).numpy(), solved(rhs), atol=1e-12)


def test_layers_of_one_process_share_a_factor_and_release_it():
    gammas = (Gamma(0.1, 0.1, 0.1), Gamma(2.0, 2.0, 2.0))
    first, second = (Vertex(Grid(6, 5), gamma) for gamma in gammas)
    assert first.factor is second.factor
    first.solve(torch.ones(1, 6, 5), torch.ones(1, 2))
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


def assert_cut_is_exact(solver="vertex"):
    assert_exact(MinCut(6, 5, solver=solver), random_weights(Grid(6, 5)))


def altered(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def of_another_matrix(path):
    MinCut(4, 4, solver="vertex")
    other = next(entry.path for entry in factors.stored() if entry.path != path)
    path.write_bytes(other.read_bytes())


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 100),
    "checksum": altered,
    "version": lambda path: save_file(load_file(path), path, {"cutslots_factor": "0"}),
    "None": lambda path: save_file({"weights": torch.ones(3)}, path),
    "not a factor file": lambda path: path.write_bytes(b""),
    "contains the factor": of_another_matrix,
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_damaged_file_is_reported_and_computed_again(file, problem, caplog):
    DAMAGE[problem](file)
    with caplog.at_level(logging.WARNING, "cutslots.qp"):
        assert_cut_is_exact()
    assert str(file) in caplog.text
    assert problem in caplog.text
    assert all(entry.problem is None for entry in factors.stored())


def test_damaged_files_are_listed_and_cleared(file):
    altered(file)
    (file.parent / ".tmpAbCdEf").write_bytes(b"half")  # an interrupted write
    MinCut(4, 4, solver="vertex")
    listed = {entry.path: entry.problem for entry in factors.stored()}
    assert "checksum" in (listed.pop(file) or "")
    assert list(listed.values()) == [None]
    assert len(factors.clear()) == 2
    assert factors.stored() == []
    assert {path.suffix for path in factors.folder().iterdir()} == {".lock"}


def test_read_only_folder_is_read(file, monkeypatch):
    lock = file.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()  # nobody can take this lock
    monkeypatch.setattr(factors, "factorise", lambda *_: pytest.fail("factored again"))
    assert_cut_is_exact()
    assert file.stat().st_mode & 0o044 == 0o044


FULL_DISK = """
import resource
from cutslots.qp import MinCut
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(MinCut(12, 12, solver="kkt").choice.name)
"""


def test_full_disk_disables_only_the_cache():
    command = [sys.executable, "-c", FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "kkt\n", done.stderr
    assert "not kept on disk" in done.stderr
    assert factors.stored() == []


def test_unwritable_folder_disables_only_the_cache(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "cutslots.qp"):
        assert_cut_is_exact("kkt")
    assert "CUTSLOTS_FACTORS" in caplog.text


def test_digest_depends_on_the_matrix_up_to_rounding():
    matrix = laplacian()
    data, indices = matrix.data, matrix.indices
    key = factors.digest("M", data, indices)
    assert key == factors.digest("M", data * (1 + 1e-15), indices.astype(np.int64))
    assert key != factors.digest("M", data * (1 + 1e-9), indices)
    assert key != factors.digest("A A^T", data, indices)
    assert key != factors.digest("M", data, indices[::-1])
    assert factors.digest(np.zeros(3)) != factors.digest(np.zeros(4))


def test_digest_is_that_of_existing_caches(file):
    """Files of earlier versions are found by this name."""
    assert file.stem == "760558e4ffe2d381f2c93f8f7e609429"


def test_folder_of_factors(monkeypatch, tmp_path):
    monkeypatch.delenv("CUTSLOTS_FACTORS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert factors.folder() == tmp_path / "cutslots" / "factors"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert factors.folder().parts[-3:] == (".cache", "cutslots", "factors")


WORKER = """
import sys, time
from pathlib import Path
from cutslots.qp import MinCut, factors
folder, number, build = Path(sys.argv[1]), int(sys.argv[2]), factors.factorise
def counted(*arguments, **options):
    factor = build(*arguments, **options)
    (folder / f"made-{number}").touch()
    time.sleep(0.5)
    return factor
factors.factorise = counted
(folder / f"ready-{number}").touch()
while len(list(folder.glob("ready-*"))) < 8:
    time.sleep(0.01)
MinCut(12, 12, gamma=0.1 + number, solver="kkt")
"""


@pytest.mark.slow
def test_eight_processes_starting_at_once_make_one_factor(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(number)]) for number in range(8)]
    assert [worker.wait(timeout=300) for worker in workers] == [0] * 8
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert [entry.problem for entry in factors.stored()] == [None]
    assert_exact(MinCut(12, 12, solver="kkt"), random_weights(Grid(12, 12)))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cusparse_equals_the_panels(dtype, tolerance):
    """Directly, since small graphs use the whole inverse; many batch sizes, and two streams."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    factor = cholesky.factorise(laplacian(40, 30))
    engine = cusparse.Substitution(factor, torch.device("cuda", 0), dtype)
    other = torch.cuda.Stream()
    for batch in [*range(1, cusparse.Substitution.KEPT + 4), 1, 2]:
        rhs = torch.randn(batch, 1200, dtype=torch.float64)
        expected, on_gpu = substitution.apply(factor, rhs), rhs.to("cuda", dtype)
        results = [engine.solve(on_gpu)]
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            results.append(engine.solve(on_gpu))
        torch.cuda.synchronize()
        for x in results:
            limit = {"atol": tolerance, "rtol": tolerance}
            torch.testing.assert_close(x.cpu().double(), expected, **limit)


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
