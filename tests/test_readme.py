"""What the README says can be run, runs; what it says is there, is there."""

import re
import shlex
from pathlib import Path

import pytest

from cutslots.cli import parser
from cutslots.report.results import main as draw
from cutslots.report.results import put_table, results_table
from cutslots.sweep.cli import parse as parse_sweep
from cutslots.train.config import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    "code",
    [code for language, code in BLOCKS if language == "python"],
    ids=lambda code: code.splitlines()[0],
)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def lines() -> list[str]:
    """The commands of all shell blocks, without their comments."""
    return [
        line.split("#")[0].strip()
        for language, code in BLOCKS
        if language == "sh"
        for line in code.splitlines()
    ]


def commands() -> list[str]:
    return [line for line in lines() if line.startswith("cutslots ")]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    """Every command line is one that the program takes (the demo and test_cli run them)."""
    assert parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [line for line in lines() if line.startswith("python sweeps/")])
def test_sweep_commands_parse(command):
    _, file, *arguments = shlex.split(command)
    assert (ROOT / file).is_file()
    if "SWEEP = " in (ROOT / file).read_text():
        assert parse_sweep(arguments)


def test_links_into_the_project_exist():
    links = re.findall(r'src="([^"]+)"', README) + re.findall(r"\]\(([^)]+)\)", README)
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), (
            f"README points at {link}, which is not there"
        )


def test_the_parameter_counts_are_the_models():
    for name, function in PRESETS.items():
        count = sum(parameter.numel() for parameter in function().model.build().parameters())
        assert f"{count:,}" in next(
            line for line in README.splitlines() if line.startswith(f"| `{name}`")
        )


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"`make ([a-z-]+)`", README))
        | set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
        <= targets
    )


def test_the_table_of_results_is_drawn_from_results():
    assert put_table(README, results_table(ROOT / "results")) == README, (
        "python -m cutslots.report.results README.md"
    )


def test_the_table_needs_a_text_with_its_marks(tmp_path, capsys):
    bare = tmp_path / "README.md"
    bare.write_text("no marks")
    with pytest.raises(SystemExit):
        draw([])
    assert "usage: python -m cutslots.report.results" in capsys.readouterr().err
    assert draw([str(bare)]) == 2
    assert draw([str(tmp_path / "none.md")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert bare.read_text() == "no marks"


def test_the_tree_is_the_tree():
    tree = next(
        code for language, code in BLOCKS if language == "text" and code.startswith("cutslots/")
    )
    folders: list[str] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        assert (ROOT / Path(*folders)).exists(), (
            f"README names {'/'.join(folders)}, which is not there"
        )
    named = set(re.findall(r"^  (\w+)", tree, re.MULTILINE))
    there = {path.stem for path in (ROOT / "cutslots").iterdir() if not path.name.startswith("_")}
    assert there <= named, f"the README's tree lacks {sorted(there - named)}"
