"""The commands of the README, in its order and in a new folder, as a new user types them.

They run in this process, made cheap by the words in CHEAP. ELSEWHERE names the test of every
command that cannot run here.
"""

import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from cutslots.cli import main
from cutslots.files import home
from tests.test_readme import COMMANDS as LISTED
from tests.test_readme import ROOT

RENDERED = ROOT.parent / "shared" / "data"
RAW = {"clevr": "clevr_with_masks", "clevrtex": "clevrtex_full", "movi_a": "movi_a", "cora": "cora"}
MAKEFILE = (ROOT / "Makefile").read_text()
DEMO = re.findall(r"^\t\$\(BIN\)/(cutslots .*)", MAKEFILE, re.MULTILINE)
COMMANDS = LISTED + [c.replace("$${CUTSLOTS_HOME:-cutslots-home}", "cutslots-home") for c in DEMO]
COMMANDS = [c for c in COMMANDS if re.match(r"(cutslots|python sweeps|ray submit|make) ?", c)]

STEPS = "train.steps=4 train.eval_every=2 checkpoint_every=2 log_every=2 eval_images=8 batch_size=4"
SIZES = "image_size=32 encoder.channels=8 decoder.channels=8"
SMALLEST = " ".join(f"--set {assignment}" for assignment in f"{STEPS} {SIZES}".split())

IMPORT = "tests/cli/test_import_published.py::test_an_imported_run_is_used_like_a_trained_one"
SUBMIT = "tests/cluster/test_submit.py::test_ray_submit_over_ssh"
ELSEWHERE = {  # commands that take Ray, a server or minutes -> the test that runs them or a like
    r"make ": "tests/test_readme.py::test_make_targets_exist",
    r"cutslots ui": "tests/cli/test_ui.py::test_serves_until_a_signal",
    r"cutslots (best|report) .*clevrtex": "tests/cli/test_report.py::test_all_or_named_sweeps",
    r"cutslots report reach": "tests/cli/test_report.py::test_all_or_named_sweeps",
    r"cutslots (import-published|evaluate) published": IMPORT,
    r"cutslots bench": "tests/bench/test_bench_solvers.py::test_the_quick_benchmark",
    r"ray submit|python sweeps/(demo|reach)": SUBMIT,
    r"python sweeps/clevrtex.py( --smoke| --resume)?$": SUBMIT,
}


CLEVR6_SPLITS = "--splits train=0:12,val=12:18,test=18:24 --size 32"
CHEAP = [  # pattern, words that make the command cheap, facts that it prints
    ("cutslots prepare scenes", "--count 60 --size 32", "6 test,48 train,32 x 32"),
    ("cutslots prepare clevr raw data/clevr6", CLEVR6_SPLITS, "at most 6 objects"),
    ("cutslots prepare clevrtex .*--variant", "--splits test=0:4 --size 32", "4 test"),
    ("cutslots prepare clevrtex", "--splits train=0:8,val=8:12,test=12:16 --size 32", "4 test"),
    ("cutslots prepare clevr ", "--splits train=0:8,val=8:12,test=12:16 --size 32", "4 test"),
    ("cutslots prepare movi_a ", "--splits train=0:2,val=2:3,test=3:4 --size 32", "1 test"),
    ("cutslots prepare cora ", "", "27 instances of 50 x 50"),
    ("cutslots check", "", "complete"),
    ("cutslots train", f"{SMALLEST} --steps 4", "at step,of 4,cutslots evaluate"),
    ("cutslots evaluate", "", "ARI-FG,fixed tiles"),
    ("cutslots predict", "", "2 images predicted"),
    ("cutslots export", "", "verified"),
    ("cutslots doctor", "", "torch,CUTSLOTS_HOME,scenes"),
    ("cutslots best", "", "scenes,g03"),
    ("cutslots baselines import", "", "published"),
    (r"python sweeps/\w+\.py --dry-run", "", "clevrtex"),
    (r"python sweeps/\w+\.py --debug-trial", f"--smoke {SMALLEST}", "at step"),
    (r"python sweeps/cora\.py", "--splits 1 --workers 1", "program,two-stage,random,optimum"),
]


@dataclass
class Walk:
    """A new folder in which someone follows the README, with the number of commands done."""

    folder: Path
    position: int = 0
    runs: list[str] = field(default_factory=list)

    def words(self, command: str) -> list[str]:
        """The words of a command, with values for its placeholders."""
        words = shlex.split(command)
        last = self.runs[-1] if self.runs else "none"
        values: dict[str, str] = {"RUN": last, "NAME": last}
        if "raw" in words:
            source = words[words.index("raw") - 1]
            variant = words[words.index("--variant") + 1] if "--variant" in words else ""
            values["raw"] = str(RENDERED / (f"{source}_{variant}" if variant else RAW[source]))
        for word in words:
            if prefix := re.fullmatch(r"(\S+-)0123456789ab", word):
                values[word] = next(run for run in self.runs if run.startswith(prefix[1]))
        # tests/cli/test_export.py exports programs.
        return [values.get(word, word) for word in words if word != "--torch"]

    def run(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Run one command, cheaply, and check what it prints and that it writes its files."""
        _, cheap, facts = next(row for row in CHEAP if re.match(row[0], command))
        self.prepare(command, capsys)
        words = [*self.words(command), *shlex.split(cheap)]
        capsys.readouterr()
        status = run_words(words)
        output = capsys.readouterr()
        assert not status, f"{shlex.join(words)}: {output.err}"
        assert all(fact in output.out for fact in facts.split(",")), output.out
        for option, path in pairwise(words):
            assert option not in ("--figure", "--table", "--out") or Path(path).exists(), path
        if words[1] == "train":
            self.runs += re.findall(r"cutslots evaluate (\S+)", output.out)

    def prepare(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What the README takes from a sweep, or mentions without a command."""
        from cutslots.tracking import find_runs, register

        if command.startswith("cutslots train scenes") and not (home() / "data/scenes").exists():
            self.run("cutslots prepare scenes", capsys)  # training would generate 4,000
        for name in re.findall(r"data/(clevrtex\w*)", command):
            if not command.startswith("cutslots prepare") and not Path("data", name).exists():
                variant = f" --variant {name[9:]}" if name[9:] else ""
                self.run(f"cutslots prepare clevrtex raw data/{name}{variant}", capsys)
        if command.startswith("cutslots predict"):
            (self.folder / "photos").mkdir()
            for number, size in enumerate(((48, 40), (30, 64))):
                image = Image.effect_noise(size, 50).convert("RGB")
                image.save(self.folder / "photos" / f"{number}.png")
            (run,) = find_runs("tags.mlflow.runName LIKE '%g03%'")
            register("cutslots-scenes", run.run_id, "ari_fg", run.metrics["best/ari_fg"])


def run_words(words: list[str]) -> int | str | None:
    """Run a command in this process, whose environment stays; returns the exit status."""
    environment = dict(os.environ)
    try:
        if words[0] == "cutslots":
            return main(words[1:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / words[1]), *words[2:]])
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return Walk(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def walk(folder: Walk, own_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    """The new folder with no environment variable set: everything is in ./cutslots-home."""
    for name in list(os.environ):
        if name.startswith(("CUTSLOTS_", "MLFLOW_TRACKING", "RAY_ADDRESS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUTSLOTS_FACTORS", str(folder.folder / "factors"))
    monkeypatch.chdir(folder.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more do not help steps of this size
    yield folder
    torch.set_num_threads(threads)


HERE = [c for c in COMMANDS if not any(re.match(pattern, c) for pattern in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("number", range(len(HERE)), ids=HERE)
def test_command(number: int, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    first, walk.position = walk.position, max(number + 1, walk.position)
    for command in HERE[first : number + 1]:  # a single test runs the commands before it too
        if RENDERED.is_dir() or not re.search(r" raw\b| data/|sweeps/cora", command):
            walk.run(command, capsys)
        elif command == HERE[number]:
            pytest.skip(f"no {RENDERED}")


def test_every_command_has_a_test() -> None:
    assert not [c for c in HERE if not any(re.match(row[0], c) for row in CHEAP)]
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), test
