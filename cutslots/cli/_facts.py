"""What `cutslots doctor` finds: functions that look and return facts, and print nothing."""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Literal

from cutslots.cli._texts import summary
from cutslots.files import home

PROBE_SECONDS, SERVER_SECONDS = 120, 5


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        mark: ok; missing: not there, and nothing is broken by that; problem: broken.
        name: what it is about.
        text: what was found.
        remedy: a command that mends it.
    """

    mark: Literal["ok", "missing", "problem"]
    name: str
    text: str
    remedy: str | None = None


def collect() -> list[Fact]:
    """All facts, in the order of the report."""
    packages = [partial(package, name) for name in ("pyarrow", "ray", "optuna", "mlflow")]
    looks = [
        python,
        torch,
        *packages,
        gpu,
        cusparse,
        cholmod,
        ray_cluster,
        home_folder,
        tracking_store,
        datasets,
        factor_cache,
    ]
    with ThreadPoolExecutor() as pool:  # the time goes into imports, each in a process of its own
        return [fact for found in pool.map(_guarded, looks) for fact in found]


def _guarded(look: Callable[[], list[Fact]]) -> list[Fact]:
    try:
        return look()
    except (
        ImportError,
        OSError,
    ) as error:  # a package that does not load has a line of its own, with the remedy
        return [Fact("problem", "cutslots", f"cannot look further: {error}")]


# ---- packages


def python() -> list[Fact]:
    """The interpreter."""
    return [Fact("ok", "Python", f"{sys.version.split()[0]}, {sys.executable}")]


def torch() -> list[Fact]:
    """PyTorch and what it was built for; that it can be imported is sure, as cutslots was."""
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return [
        _too_old("torch", torch.__version__) or Fact("ok", "torch", f"{torch.__version__}, {built}")
    ]


def package(name: str) -> list[Fact]:
    """A package that cutslots requires: there, new enough, and importable."""
    if importlib.util.find_spec(name) is None:
        return [Fact("problem", name, "not installed", f"pip install '{name}{_floor(name)}'")]
    works, said = probe(f"import {name}; print({name}.__version__)")
    if not works:
        return [
            Fact(
                "problem",
                name,
                f"cannot be imported: {said}",
                f"pip install --force-reinstall '{name}{_floor(name)}'",
            )
        ]
    return [_too_old(name, said) or Fact("ok", name, said)]


def probe(code: str) -> tuple[bool, str]:
    """Whether a program succeeds, and the last line it printed, or else its error.

    It has a process of its own, because a library that does not fit its machine can end the process that loads it.
    """
    command = [sys.executable, "-P", "-c", code]
    # It imports from where this process does, and from nowhere else: -P leaves out the working directory.
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PROBE_SECONDS} s"
    if done.returncode < 0:
        return False, f"it ended the process with {signal.Signals(-done.returncode).name}"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def _floor(distribution: str) -> str:
    """The oldest version that cutslots takes, as `>=1.2`; empty where nothing is known."""
    try:
        required = importlib.metadata.requires("cutslots") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return ""
    found = (
        re.match(rf"{re.escape(distribution)}(?:\[.*?\])?(>=[\d.]+)", line) for line in required
    )
    return next((match[1] for match in found if match), "")


def _too_old(distribution: str, version: str) -> Fact | None:
    floor = _floor(distribution)
    there, least = (
        [int(number) for number in re.findall(r"\d+", text.split("+")[0])]
        for text in (version, floor)
    )
    if there >= least:
        return None
    return Fact(
        "problem",
        distribution,
        f"{version}; cutslots needs {floor}",
        f"pip install --upgrade '{distribution}{floor}'",
    )


# ---- what solves and trains


def gpu() -> list[Fact]:
    """Every GPU with its memory and compute capability, after a computation on it, or why there is none."""
    import torch

    remedy = "nvidia-smi" if torch.version.cuda else "pip install --force-reinstall torch"
    if shutil.which("nvidia-smi") is None:
        remedy = None  # no driver: this is a machine without a GPU, and nothing to mend
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return [
            Fact("missing", "GPU", f"{_first_line(error)}; the CPU does everything, slower", remedy)
        ]
    facts = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        text = f"cuda:{index} {found.name}, {size(found.total_memory)}, compute capability {found.major}.{found.minor}"
        try:
            torch.ones(2, device=f"cuda:{index}").sum().item()
            facts.append(Fact("ok", "GPU", text))
        except RuntimeError as error:
            facts.append(
                Fact("problem", "GPU", f"{text}, does not compute: {_first_line(error)}", remedy)
            )
    return facts


def cusparse() -> list[Fact]:
    """cuSPARSE through CuPy, by solving with it."""
    import torch

    install = f"pip install 'cupy-cuda{(torch.version.cuda or '12').split('.')[0]}x[ctk]'"
    there = importlib.util.find_spec("cupy") is not None
    if not torch.cuda.is_available():
        return [
            Fact("missing", "cuSPARSE", f"needs a GPU; CuPy is {'' if there else 'not '}installed")
        ]
    if not there:
        return [
            Fact(
                "missing",
                "cuSPARSE",
                "CuPy is not installed; large factors are applied as dense panels, slower",
                install,
            )
        ]
    works, said = probe(
        "from cutslots.cli._facts import solve_with_cusparse; print(solve_with_cusparse())"
    )
    return [Fact("ok", "cuSPARSE", said) if works else Fact("problem", "cuSPARSE", said, install)]


def solve_with_cusparse() -> str:
    """Solve a small system on the GPU; returns the versions that did it, or ends the process with the reason why not."""
    import torch
    from scipy.sparse import diags_array

    from cutslots.qp import cusparse
    from cutslots.qp.cholesky import factorise

    reason = cusparse.missing()
    if reason:
        sys.exit(" ".join(reason.split()))
    rhs = torch.ones(1, 2, device="cuda")
    solved = cusparse.Substitution(factorise(diags_array([1.0, 4.0])), rhs.device, rhs.dtype).solve(
        rhs
    )
    if not solved.allclose(rhs / rhs.new_tensor([1, 4])):
        sys.exit(f"cuSPARSE solves wrongly: {solved.tolist()} in place of [[1, 0.25]]")
    import cupy
    from cupy_backends.cuda.libs import cusparse as library

    return f"CuPy {cupy.__version__}, cuSPARSE {library.getVersion(cupy.cuda.device.get_cusparse_handle())}"


def cholmod() -> list[Fact]:
    """CHOLMOD through scikit-sparse."""
    install = "apt-get install libsuitesparse-dev && pip install 'cutslots[cholmod]'"
    if importlib.util.find_spec("sksparse") is None:
        return [
            Fact(
                "missing",
                "CHOLMOD",
                "scikit-sparse is not installed; SciPy's SuperLU factors instead",
                install,
            )
        ]
    works, said = probe("import sksparse, sksparse.cholmod; print(sksparse.__version__)")
    if not works:
        return [Fact("problem", "CHOLMOD", f"scikit-sparse cannot be imported: {said}", install)]
    return [_too_old("scikit-sparse", said) or Fact("ok", "CHOLMOD", f"scikit-sparse {said}")]


def ray_cluster() -> list[Fact]:
    """Whether sweeps would join a cluster, and what it has."""
    address, name = os.environ.get("RAY_ADDRESS"), "Ray cluster"
    if not address:
        return [Fact("ok", name, "RAY_ADDRESS is not set: work stays on this machine")]
    works, said = probe(f"from cutslots.sweep.cluster import room; print(room({address!r}))")
    if works:
        return [Fact("ok", name, f"RAY_ADDRESS={address}: {said}")]
    remedy = "unset RAY_ADDRESS" if address == "auto" else f"ray status --address {quote(address)}"
    return [Fact("problem", name, f"RAY_ADDRESS={address} cannot be joined: {said}", remedy)]


# ---- what lies on disk


def home_folder() -> list[Fact]:
    """The home folder and the room on its disk."""
    folder = home()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    text = f"{folder}, {size(shutil.disk_usage(there).free)} free" + (
        "" if there == folder else "; made when it is needed"
    )
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return [Fact("ok", "CUTSLOTS_HOME", text)]
    return [
        Fact(
            "problem",
            "CUTSLOTS_HOME",
            f"{text}; {there} is no folder you may write to",
            "export CUTSLOTS_HOME=FOLDER",
        )
    ]


def tracking_store() -> list[Fact]:
    """The tracking store, without making it."""
    from cutslots.tracking import database_of, default_uri, without_password

    uri, name = default_uri(), "tracking store"
    shown = without_password(uri)
    if uri.startswith("http"):
        try:
            address = re.sub(r"//[^/@]*@", "//", uri)  # asking for its health takes no login
            with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=SERVER_SECONDS):
                return [Fact("ok", name, f"{shown} answers")]
        except urllib.error.HTTPError:
            return [Fact("ok", name, f"{shown} answers")]  # with a refusal, but somebody is there
        except (OSError, http.client.HTTPException) as error:
            text = f"{shown} does not answer: {error}; runs go on without it and deliver later"
            return [Fact("missing", name, text, "cutslots sync RUN")]
    database = database_of(uri)
    if database is None:
        return [Fact("ok", name, shown)]
    if not database.exists():
        return [
            Fact("missing", name, f"{database} is made by the first run", "cutslots train scenes")
        ]
    try:
        with closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=SERVER_SECONDS)
        ) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"
            ).fetchone()
        return [Fact("ok", name, f"{database}, {size(database.stat().st_size)}, runs: {count:,}")]
    except sqlite3.OperationalError as error:  # locked, no permission, or not MLflow's yet
        return [Fact("missing", name, f"{database} cannot be read now: {error}")]
    except sqlite3.DatabaseError as error:
        text = (
            f"{database} is damaged: {error}; without it, `cutslots sync RUN` delivers a run anew"
        )
        return [
            Fact("problem", name, text, f"mv {quote(str(database))} {quote(str(database))}.damaged")
        ]


def datasets() -> list[Fact]:
    """The prepared datasets where sweeps look for them; their shards are not read, which is for `cutslots check`."""
    from cutslots.data.manifest import MANIFEST, PROGRESS
    from cutslots.data.places import is_uri
    from cutslots.sweep.sets import DATA

    folders, facts = [home() / "data"], []
    if base := os.environ.get(DATA):
        if is_uri(base):
            facts.append(Fact("ok", DATA, f"{base}; a sweep asks there for its set by name"))
        elif Path(base).is_dir():
            folders.insert(0, Path(base).absolute())
        else:
            facts.append(Fact("problem", DATA, f"{base} is no folder", f"export {DATA}=FOLDER"))
    for folder in folders:
        found = [
            path
            for path in sorted(folder.glob("*"))
            if (path / MANIFEST).exists() or (path / PROGRESS).exists()
        ]
        facts += [dataset(path) for path in found] or [
            Fact("missing", "datasets", f"none in {folder}", "cutslots prepare scenes")
        ]
    return facts


def dataset(folder: Path) -> Fact:
    """One prepared folder, by its manifest."""
    from cutslots.data import sources
    from cutslots.data.manifest import MANIFEST

    name, source = f"data {folder.name}", _source(folder)
    again = f"cutslots prepare SOURCE RAW {quote(str(folder))}"
    if source in (*sources.names(), "cora"):
        needs_raw = source == "cora" or sources.load(source).NEEDS_RAW
        again = f"cutslots prepare {source} {'RAW ' if needs_raw else ''}{quote(str(folder))}"
    if not (folder / MANIFEST).exists():
        return Fact("missing", name, f"{folder} is half prepared", again)
    try:
        return Fact("ok", name, _content(folder, source))
    except (ValueError, OSError) as error:  # InputError among them
        return Fact("problem", name, str(error), f"{again} --overwrite")


def _source(folder: Path) -> str:
    """The source that a manifest names; where it cannot be read, the folder's own name, which is the source's by default."""
    from cutslots.data.manifest import MANIFEST

    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name


def _content(folder: Path, source: str) -> str:
    if source == "cora":
        from cutslots import cora

        instances = cora.load(folder)
        return f"cora, {len(instances)} instances, digest {instances.digest}"
    from cutslots.data import Manifest

    return summary(Manifest.load(folder))


def factor_cache() -> list[Fact]:
    """The factors on this node's disk, all verified; each damaged one is a problem."""
    from cutslots.qp import factors

    found, name = factors.stored(), "factor cache"
    text = f"{factors.folder()}, {len(found)} factors, {size(sum(each.bytes for each in found))}"
    problems = [
        Fact("problem", name, each.problem, "cutslots doctor --clear-factors")
        for each in found
        if each.problem
    ]
    return [Fact("ok", name, text), *problems]


def cleared_factors() -> list[Fact]:
    """What was freed by deleting every factor on this node's disk; they are made anew when they are needed."""
    from cutslots.qp import factors

    deleted = factors.clear()
    text = f"{factors.folder()}, {len(deleted)} factors, {size(sum(each.bytes for each in deleted))} freed"
    return [
        Fact("ok", "factor cache", text),
        *(Fact("ok", "freed", f"{each.about}, {size(each.bytes)}") for each in deleted),
    ]


# ---- in words


def size(count: float) -> str:
    """A number of bytes as a person reads it, in powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
