"""Imports go down only, and no file of a package imports itself through others."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cutslots"
BASE = {"errors", "exit_status", "files", "options"}
# What each part may import of cutslots, and which outside packages belong to it alone.
ALLOWED = {
    "errors": set(),
    "exit_status": {"errors"},
    "files": set(),
    "options": {"errors"},
    "qp": BASE,
    "data": BASE,
    "metrics": BASE,
    "nn": BASE | {"qp"},
    "models": BASE | {"nn", "qp"},
    "train": BASE | {"data", "metrics", "models", "nn", "qp"},
    "tracking": BASE | {"metrics", "train"},
    "report": BASE | {"data", "metrics", "tracking", "train"},
    "runs": BASE | {"data", "metrics", "report", "tracking", "train"},
    "cora": BASE | {"qp", "report", "tracking"},
    "sweep": BASE | {"data", "metrics", "models", "report", "runs", "tracking", "train"},
    "bench": BASE
    | {"data", "metrics", "models", "nn", "qp", "report", "runs", "sweep", "tracking", "train"},
    "cli": BASE
    | {"bench", "cora", "data", "metrics", "models", "qp", "report", "runs", "sweep"}
    | {"tracking", "train"},
    "runlog": {"tracking"},
    "__main__": {"cli"},
    "__init__": {"qp"},
}
OWNED = {
    "mlflow": {"tracking"},
    "ray": {"data", "sweep"},
    "optuna": {"report", "sweep"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "fsspec": {"data"},
    "filelock": {"files"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "cutslots"
        ):
            found.add(f"cutslots.{node.attr}")
    return found


def inner(names: set[str]) -> set[str]:
    """The parts of cutslots among imported names; `cutslots.MinCut` is part of qp."""
    modules = {child.stem for child in PACKAGE.iterdir()}
    heads = {name.split(".")[1] for name in names if name.startswith("cutslots.")}
    return {
        head if head in modules else "qp"
        for head in heads
        if head in modules or not head.startswith("__")
    }


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_down_only(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imports(path)
    wrong = inner(names) - {part} - ALLOWED[part]
    assert not wrong, f"{part} imports {sorted(wrong)}"
    for package, owner in OWNED.items():
        if any(name.split(".")[0] == package for name in names):
            assert part in owner, f"{part} imports {package}, which only {owner} may"


def test_no_circle_of_imports_between_files():
    """Imports inside functions count too: a file is read with all that it uses."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(["cutslots", *parts]).removesuffix(".__init__")] = path
    graph = {
        name: {
            target
            for imported in imports(path)
            for target in [imported if imported in files else imported.rpartition(".")[0]]
            if target in files and target not in (name, "cutslots")
        }
        for name, path in files.items()
    }
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in or above circles: {sorted(graph)}"
