"""The README and the pages beside the code: code runs, commands parse, links exist."""

import re
import shlex
from pathlib import Path

import pytest

from cutslots.sweep.cli import parse as parse_sweep
from cutslots.train.config import PRESETS
from tests.commands import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"cutslots/{room}/README.md" for room in ("qp", "data", "models"))]
PAGES += ["sweeps/README.md", "cluster/README.md", "results/README.md"]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
BLOCKS = [
    (page, language, code)
    for page, text in TEXTS.items()
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
]
COMMANDS = list(
    dict.fromkeys(
        line.split("#")[0].strip()
        for page, language, code in BLOCKS
        if language == "sh" and not page.startswith("cluster/")
        for line in code.splitlines()
    )
)


def test_readme_fits_a_screen_width_and_200_lines():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert not [line for line in lines if len(line) > 120]


@pytest.mark.parametrize(
    "code",
    [code for _, language, code in BLOCKS if language == "python"],
    ids=lambda code: code.splitlines()[0],
)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cutslots ")])
def test_commands_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()  # predict refuses a folder that is not there
    parse(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python sweeps/")])
def test_sweep_commands_parse(command):
    _, file, *words = shlex.split(command)
    assert (ROOT / file).is_file()
    if "Sweep(" in (ROOT / file).read_text():
        assert parse_sweep(words)


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.py")), ids=lambda file: file.stem)
def test_commands_in_sweep_files_parse(file):
    for line in re.findall(r"^    cutslots (.*)$", file.read_text(), re.MULTILINE):
        parse(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_links_into_the_project_exist(page):
    text = TEXTS[page]
    for link in re.findall(r'src="([^"]+)"', text) + re.findall(r"\]\(([^)#]+)", text):
        path = ROOT / Path(page).parent / link
        assert link.startswith("http") or path.exists(), f"{page} links to {link}"


def test_parameter_counts_of_presets():
    lines = TEXTS["cutslots/models/README.md"].splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert set(rows) == set(PRESETS)
    for name, function in PRESETS.items():
        model = function().model.build()
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in rows[name]


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"(?:`|^)make ([a-z-]+)", "\n".join(TEXTS.values()), re.MULTILINE)
    assert set(used) <= set(targets)


def test_layout_names_every_room():
    (layout,) = [code for _, language, code in BLOCKS if language == "text"]
    rooms = {path.parent.name for path in (ROOT / "cutslots").glob("*/__init__.py")}
    assert set(re.findall(r"cutslots/(\w+)", layout)) == rooms
