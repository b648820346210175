"""Check the installation."""

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import click
from rich.filesize import decimal

from cutslots.cli.common import summary
from cutslots.errors import InputError
from cutslots.files import home


class Fact(NamedTuple):
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
    facts = list(factor_cache(clear=True) if clear_factors else collect())
    if as_json:
        click.echo(json.dumps([fact._asdict() for fact in facts], indent=2))
    else:
        for fact in facts:
            click.echo(f"{fact.mark:<9}{fact.name:<16}{fact.text}")
            if fact.remedy:
                click.echo(f"{'':<25}-> {fact.remedy}")
    return int(any(fact.mark == "problem" for fact in facts))


def collect() -> Iterator[Fact]:
    """All facts, in the order of the report; a check that cannot run is itself a problem."""
    yield Fact("ok", "Python", f"{sys.version.split()[0]}, {sys.executable}")
    for name in ("torch", "pyarrow", "ray", "optuna", "mlflow"):
        try:
            importlib.import_module(name)
            yield Fact("ok", name, importlib.metadata.version(name))
        except Exception as error:  # a broken package raises anything
            fix = f"pip install --force-reinstall {name}"
            yield Fact("problem", name, f"cannot be imported: {error}", fix)
    for check in (accelerators, ray_cluster, home_folder, tracking_store, datasets, factor_cache):
        try:
            yield from check()
        except Exception as error:
            yield Fact("problem", check.__name__, f"check failed: {error}")


def accelerators() -> Iterator[Fact]:
    """Every GPU after a computation on it; cuSPARSE and CHOLMOD, which factorisations can use."""
    import torch

    from cutslots.qp import cusparse
    from cutslots.qp.cholesky import has_cholmod

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Fact("missing", "GPU", f"none; torch is {built}, everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        torch.ones(2, device=f"cuda:{index}").sum().item()  # raises if the driver does not fit
        text = f"cuda:{index} {p.name}, {decimal(p.total_memory)}, capability {p.major}.{p.minor}"
        yield Fact("ok", "GPU", text)
    reason = " ".join((cusparse.missing() or "").split())  # includes what to install
    yield Fact("missing" if reason else "ok", "cuSPARSE", reason or "CuPy sees a GPU")
    if has_cholmod():
        yield Fact("ok", "CHOLMOD", "scikit-sparse is installed")
    else:
        fix = "apt-get install libsuitesparse-dev && pip install 'cutslots[cholmod]'"
        text = "scikit-sparse is not installed; SciPy's SuperLU factorises instead"
        yield Fact("missing", "CHOLMOD", text, fix)


def ray_cluster() -> Iterator[Fact]:
    """Whether sweeps would join a cluster, and its resources."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Fact("ok", "Ray cluster", "RAY_ADDRESS is not set: sweeps use this machine")
        return
    # In its own process: joining leaves threads, and a wrong version can end the process.
    code = f"from cutslots.sweep.cluster import room; print(room({address!r}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        fix = f"ray status --address {quote(address)}"
        yield Fact("problem", "Ray cluster", f"RAY_ADDRESS={address}: {reason}", fix)
    else:
        yield Fact("ok", "Ray cluster", f"RAY_ADDRESS={address}: {done.stdout.strip()}")


def home_folder() -> Iterator[Fact]:
    """The home folder and the free space on its disk."""
    folder, name = home(), "CUTSLOTS_HOME"
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if exists.is_dir() and os.access(exists, os.W_OK | os.X_OK):
        yield Fact("ok", name, f"{folder}, {decimal(shutil.disk_usage(exists).free)} free")
    else:
        text = f"{folder}: {exists} is not a writable folder"
        yield Fact("problem", name, text, "export CUTSLOTS_HOME=FOLDER")


def tracking_store() -> Iterator[Fact]:
    """The tracking store, without creating it."""
    from cutslots.tracking import database_of, default_uri, experiments, without_password

    database, name = database_of(default_uri()), "tracking store"
    if database is not None and not database.exists():
        text = f"{database}, created by the first run"
        yield Fact("missing", name, text, "cutslots train scenes")
        return
    try:
        text = f"{without_password(default_uri())}, experiments: {len(experiments())}"
        yield Fact("ok", name, text)
    except InputError as error:
        if database is None:
            text = f"{error} Runs continue without it and deliver later"
            yield Fact("missing", name, text, "cutslots sync RUN")
        else:
            fix = f"mv {quote(str(database))} {quote(f'{database}.damaged')}"
            text = f"{error} Without the database, cutslots sync RUN restores runs"
            yield Fact("problem", name, text, fix)


def datasets() -> Iterator[Fact]:
    """The prepared datasets that sweeps can find; `cutslots check` reads their shards."""
    from cutslots import cora
    from cutslots.data import Manifest
    from cutslots.data.locate import DATA, is_uri

    roots, base = [home() / "data"], os.environ.get(DATA, "")
    if base and not is_uri(base):
        roots.append(Path(base))
        if not Path(base).is_dir():
            yield Fact("problem", DATA, f"{base} is not a folder", f"export {DATA}=FOLDER")
    manifests = [path for root in roots for path in sorted(root.glob("*/manifest.json"))]
    if not manifests:
        yield Fact("missing", "datasets", f"none in {roots[0]}", "cutslots prepare scenes")
    for path in manifests:
        folder = path.parent
        try:
            if '"source": "cora"' in path.read_text(encoding="utf-8"):
                instances = cora.load(folder)
                text = f"cora, {len(instances)} instances, digest {instances.digest}"
            else:
                text = summary(Manifest.load(folder))
            yield Fact("ok", f"data {folder.name}", text)
        except (InputError, OSError) as error:
            fix = f"cutslots prepare SOURCE RAW {quote(str(folder))} --overwrite"
            yield Fact("problem", f"data {folder.name}", str(error), fix)


def factor_cache(clear: bool = False) -> Iterator[Fact]:
    """The stored factorisations, all verified."""
    from cutslots.qp import factors

    if clear:
        factors.clear()
    stored = factors.stored()
    total = decimal(sum(entry.bytes for entry in stored))
    yield Fact("ok", "factor cache", f"{factors.folder()}, {len(stored)} factors, {total}")
    for entry in stored:
        if entry.problem:
            yield Fact("problem", "factor cache", entry.problem, "cutslots doctor --clear-factors")
