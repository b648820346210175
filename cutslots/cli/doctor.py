"""Check the installation."""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

import click

from cutslots.cli.common import summary
from cutslots.files import home


@dataclass(frozen=True)
class Fact:
    """One line of the report: `mark` is ok, missing or problem; `remedy` is a command."""

    mark: str
    name: str
    text: str
    remedy: str | None = None


@click.command
@click.option("--clear-factors", is_flag=True, help="empty the cache of factorisations")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def command(clear_factors: bool, as_json: bool) -> int:
    """Check the installation and suggest fixes.

    Marks: ok; missing = optional and not installed; problem = broken (exit status 1).
    """
    facts = list(cleared_factors() if clear_factors else collect())
    if as_json:
        click.echo(json.dumps([asdict(fact) for fact in facts], indent=2))
    else:
        for fact in facts:
            click.echo(f"{fact.mark:<9}{fact.name:<16}{fact.text}")
            if fact.remedy:
                click.echo(f"{'':<25}-> {fact.remedy}")
    return int(any(fact.mark == "problem" for fact in facts))


def collect() -> Iterator[Fact]:
    """All facts, in the order of the report; a check that cannot run is itself a problem."""
    yield Fact("ok", "Python", f"{sys.version.split()[0]}, {sys.executable}")
    yield from map(package, ("torch", "pyarrow", "ray", "optuna", "mlflow"))
    checks: tuple[Callable[[], Iterator[Fact]], ...] = (
        *(gpus, cusparse, cholmod, ray_cluster),
        *(home_folder, tracking_store, datasets, factor_cache),
    )
    for check in checks:
        try:
            yield from check()
        except (ImportError, OSError, RuntimeError) as error:
            yield Fact("problem", check.__name__, f"check failed: {error}")


def package(name: str, module: str = "") -> Fact:
    """Whether a package is installed and importable, with its version."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Fact("problem", name, "not installed", f"pip install '{name}'")
    try:
        importlib.import_module(module or name)
    except Exception as error:  # a broken package raises anything
        fix = f"pip install --force-reinstall '{name}=={version}'"
        return Fact("problem", name, f"{version}, import failed: {error}", fix)
    return Fact("ok", name, version)


def gpus() -> Iterator[Fact]:
    """Every GPU with its memory and compute capability, after a computation on it."""
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        fix = "pip install --force-reinstall torch" if shutil.which("nvidia-smi") else None
        yield Fact("missing", "GPU", f"none; torch is {built}, everything runs on the CPU", fix)
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        text = f"cuda:{index} {p.name}, {size(p.total_memory)}, capability {p.major}.{p.minor}"
        torch.ones(2, device=f"cuda:{index}").sum().item()  # raises if the driver does not fit
        yield Fact("ok", "GPU", text)


def cusparse() -> Iterator[Fact]:
    """cuSPARSE through CuPy, by solving with it."""
    import torch
    from scipy.sparse import diags_array

    from cutslots.qp import cusparse
    from cutslots.qp.cholesky import factorise

    install = f"pip install 'cupy-cuda{(torch.version.cuda or '12').split('.')[0]}x[ctk]'"
    if reason := cusparse.missing():
        gpu = torch.cuda.is_available()
        yield Fact("missing", "cuSPARSE", " ".join(reason.split()), install if gpu else None)
        return
    rhs = torch.ones(1, 2, device="cuda")
    factor = factorise(diags_array([1.0, 4.0]))
    solution = cusparse.Substitution(factor, rhs.device, rhs.dtype).solve(rhs)
    right = solution.allclose(rhs / rhs.new_tensor([1, 4]))
    text = f"CuPy {importlib.metadata.version('cupy-cuda12x')}, solution {solution.tolist()}"
    yield Fact("ok" if right else "problem", "cuSPARSE", text, None if right else install)


def cholmod() -> Iterator[Fact]:
    """CHOLMOD through scikit-sparse."""
    fact = package("scikit-sparse", "sksparse.cholmod")
    if fact.remedy:
        missing = fact.text == "not installed"
        text = f"scikit-sparse {fact.text}; SciPy's SuperLU factorises instead"
        fix = "apt-get install libsuitesparse-dev && pip install 'cutslots[cholmod]'"
        yield Fact("missing" if missing else "problem", "CHOLMOD", text, fix)
    else:
        yield Fact("ok", "CHOLMOD", f"scikit-sparse {fact.text}")


def ray_cluster() -> Iterator[Fact]:
    """Whether sweeps would join a cluster, and its resources."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Fact("ok", "Ray cluster", "RAY_ADDRESS is not set: sweeps use this machine")
        return
    # In its own process: joining leaves threads, and a wrong version can end the process.
    code = f"from cutslots.sweep.cluster import room; print(room({address!r}))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        error, output = done.returncode, done.stderr if done.returncode else done.stdout
    except subprocess.TimeoutExpired:
        error, output = 1, "no answer within 120 s"
    lines = output.strip().splitlines() or ["no output"]
    text = f"RAY_ADDRESS={address}: {lines[-1]}"
    fix = "unset RAY_ADDRESS" if address == "auto" else f"ray status --address {quote(address)}"
    yield Fact("problem" if error else "ok", "Ray cluster", text, fix if error else None)


def home_folder() -> Iterator[Fact]:
    """The home folder and the free space on its disk."""
    folder = home()
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    text = f"{folder}, {size(shutil.disk_usage(exists).free)} free"
    writable = exists.is_dir() and os.access(exists, os.W_OK | os.X_OK)
    if writable:
        yield Fact("ok", "CUTSLOTS_HOME", text)
    else:
        text += f"; {exists} is not a writable folder"
        yield Fact("problem", "CUTSLOTS_HOME", text, "export CUTSLOTS_HOME=FOLDER")


def tracking_store() -> Iterator[Fact]:
    """The tracking store, without creating it."""
    from cutslots.tracking import database_of, default_uri, find_runs, without_password

    uri, name = default_uri(), "tracking store"
    shown = without_password(uri)
    database = database_of(uri)
    if uri.startswith("http"):
        address = re.sub(r"//[^/@]*@", "//", uri).rstrip("/")  # /health needs no login
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                yield Fact("ok", name, f"{shown} answers")
        except urllib.error.HTTPError:  # a refusal is an answer
            yield Fact("ok", name, f"{shown} answers")
        except Exception as error:
            text = f"{shown} does not answer: {error}; runs continue and deliver later"
            yield Fact("missing", name, text, "cutslots sync RUN")
    elif database is None:
        yield Fact("ok", name, shown)
    elif not database.exists():
        text = f"{database}, created by the first run"
        yield Fact("missing", name, text, "cutslots train scenes")
    else:
        try:
            text = f"{database}, {size(database.stat().st_size)}, {len(find_runs()):,} runs"
            yield Fact("ok", name, text)
        except Exception as error:
            fix = f"mv {quote(str(database))} {quote(f'{database}.damaged')}"
            text = (
                f"{database} cannot be read: {error}. Without it, cutslots sync RUN restores runs"
            )
            yield Fact("problem", name, text, fix)


def datasets() -> Iterator[Fact]:
    """The prepared datasets that sweeps can find; `cutslots check` reads their shards."""
    from cutslots.data import Manifest, sources
    from cutslots.data.locate import DATA, is_uri
    from cutslots.data.manifest import MANIFEST, PROGRESS

    base = os.environ.get(DATA, "")
    if base and not is_uri(base) and not Path(base).is_dir():
        yield Fact("problem", DATA, f"{base} is not a folder", f"export {DATA}=FOLDER")
    roots = [home() / "data", *([Path(base)] if Path(base).is_dir() and base else [])]
    folders = [p for root in roots for p in sorted(root.glob("*"))]
    folders = [p for p in folders if (p / MANIFEST).exists() or (p / PROGRESS).exists()]
    if not folders:
        yield Fact("missing", "datasets", f"none in {roots[0]}", "cutslots prepare scenes")
    for folder in folders:
        name, source, path = f"data {folder.name}", folder.name, quote(str(folder))
        text, mark, error = f"{folder} is half prepared", "missing", ""
        if (folder / MANIFEST).exists():
            try:
                source = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["source"]
                if source == "cora":
                    from cutslots import cora

                    instances = cora.load(folder)
                    text = f"cora, {len(instances)} instances, digest {instances.digest}"
                else:
                    text = summary(Manifest.load(folder))
                mark = "ok"
            except (ValueError, KeyError, TypeError, OSError) as problem:
                text, mark, error = str(problem), "problem", " --overwrite"
        raw = "" if source in sources.names() and not sources.load(source).NEEDS_RAW else "RAW "
        is_known = source in (*sources.names(), "cora")
        fix = f"cutslots prepare {source if is_known else 'SOURCE'} {raw}{path}{error}"
        yield Fact(mark, name, text, None if mark == "ok" else fix)


def factor_cache() -> Iterator[Fact]:
    """The stored factorisations, all verified."""
    from cutslots.qp import factors

    stored = factors.stored()
    total = size(sum(entry.bytes for entry in stored))
    yield Fact("ok", "factor cache", f"{factors.folder()}, {len(stored)} factors, {total}")
    for entry in stored:
        if entry.problem:
            yield Fact("problem", "factor cache", entry.problem, "cutslots doctor --clear-factors")


def cleared_factors() -> Iterator[Fact]:
    """Delete every stored factorisation; they are computed again on demand."""
    from cutslots.qp import factors

    freed = size(sum(entry.bytes for entry in factors.clear()))
    yield Fact("ok", "factor cache", f"{factors.folder()}, {freed} freed")


def size(count: float) -> str:
    """A number of bytes in powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
