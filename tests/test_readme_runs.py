"""The commands of the README, in its order and in a new folder, as a new user types them.

They run in this process, made cheap by the words in CHEAP. ELSEWHERE names the test of every
command that cannot run here.
"""

import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutslots.cli import main
from cutslots.data import Manifest
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

SUBMIT = "tests/cluster/test_submit.py::test_ray_submit_over_ssh"
ELSEWHERE = {  # commands that take Ray, a server or minutes -> the test that runs them or a like
    r"make ": "tests/test_readme.py::test_make_targets_exist",
    r"cutslots ui": "tests/cli/test_ui.py::test_serves_until_a_signal",
    r"cutslots (best|report) .*clevrtex": "tests/cli/test_report.py::test_all_or_named_sweeps",
    r"cutslots report reach": "tests/cli/test_report.py::test_all_or_named_sweeps",
    r"cutslots bench": "tests/bench/test_bench_solvers.py::test_the_quick_benchmark",
    r"ray submit|python sweeps/(demo|reach)": SUBMIT,
    r"python sweeps/clevrtex.py( --smoke| --resume)?$": SUBMIT,
}


@dataclass
class Done:
    """A command that ran, with its output."""

    words: list[str]
    out: str

    def values(self, option: str) -> list[str]:
        """The values of an option."""
        pairs = zip(self.words, self.words[1:], strict=False)
        return [value for name, value in pairs if name == option]

    @property
    def run(self) -> str:
        """The name of the run that it trained."""
        return re.findall(r"cutslots evaluate (\S+)", self.out)[-1]


def check_dataset(done: Done) -> None:
    paths = [Path(word) for word in done.words[4:] if word.startswith("data/")]
    path = (paths or [home() / "data" / done.words[2]])[0]
    if done.words[2] == "cora":
        options = json.loads((path / "manifest.json").read_text())["options"]
        assert (options["instances"], options["side"]) == (27, 50)
        return
    manifest = Manifest.load(path)
    only_test = {"outd", "camo"} & set(done.words)
    assert set(manifest.splits) == ({"test"} if only_test else {"train", "val", "test"})
    assert manifest.source == done.words[2]


def check_run(done: Done) -> None:
    from cutslots.train import load_model

    folder = home() / "runs" / done.run
    preset = (done.values("--preset") or ["small"])[0]
    default_name = rf"{done.words[2]}-{preset}-[0-9a-f]{{12}}"
    assert done.values("--name") == [done.run] or re.fullmatch(default_name, done.run)
    load_model(folder)
    config = (folder / "config.json").read_text()
    for assignment in done.values("--set"):
        path, value = assignment.split("=")
        assert re.search(rf'"{path.rpartition(".")[2]}": {value}\b', config), assignment
    assert (folder / "checkpoints" / "step-00000004.pt").exists()


def check_scores(done: Done) -> None:
    assert all(fact in done.out for fact in ("ARI-FG", *done.values("--by")))
    for path in map(Path, done.values("--figure")):
        with Image.open(path) as image:
            assert (getattr(image, "n_frames", 1) > 1) == (path.suffix == ".gif")
    for path in map(Path, done.values("--table")):
        assert path.read_text() in done.out


def check_masks(done: Done) -> None:
    (out,) = map(Path, done.values("--out"))
    assert len(list((out / "masks").iterdir())) == len(list((out / "overlays").iterdir())) == 2


def check_export(done: Done) -> None:
    from cutslots.train import load_model, predict

    model = load_model(Path(done.words[3]))
    assert predict(model, np.zeros((2, 32, 32, 3), np.uint8))["masks"].shape == (2, 32, 32)


def check_debug_trial(done: Done) -> None:
    (folder,) = (home() / "runs").glob("debug-*")
    assert json.loads((folder / "config.json").read_text())["model"]["num_slots"] == 10


def check_cora(done: Done) -> None:
    name = "cora-smoke" if "--smoke" in done.words else "cora"
    text = (home() / "results" / name / "runs.csv").read_text()
    assert all(method in text for method in ("program", "two-stage", "random", "optimum"))


def prints(*facts: str) -> Callable[[Done], None]:
    """A check that all facts were printed."""

    def check(done: Done) -> None:
        assert all(fact in done.out for fact in facts), done.out

    return check


def splits(train: str, val: str, test: str) -> str:
    return f"--splits train={train},val={val},test={test} --size 32"


CHEAP: list[tuple[str, str, Callable[[Done], None]]] = [  # pattern, words that make it cheap, check
    ("cutslots prepare scenes", "--count 60 --size 32", check_dataset),
    ("cutslots prepare clevr raw data/clevr6", splits("0:12", "12:18", "18:24"), check_dataset),
    (r"cutslots prepare clevrtex .*--variant", "--splits test=0:4 --size 32", check_dataset),
    ("cutslots prepare (clevr|clevrtex) ", splits("0:8", "8:12", "12:16"), check_dataset),
    ("cutslots prepare movi_a ", splits("0:2", "2:3", "3:4"), check_dataset),
    ("cutslots prepare cora ", "", check_dataset),
    ("cutslots check", "", prints("complete")),
    ("cutslots train", f"{SMALLEST} --steps 4", check_run),
    ("cutslots evaluate", "", check_scores),
    ("cutslots predict", "", check_masks),
    ("cutslots export", "", check_export),
    ("cutslots doctor", "", prints("torch", "CUTSLOTS_HOME", "scenes")),
    ("cutslots best", "", prints("scenes", "g03")),
    ("cutslots baselines import", "", prints("published")),
    (r"python sweeps/\w+\.py --dry-run", "", prints("clevrtex")),
    (r"python sweeps/\w+\.py --debug-trial", f"--smoke {SMALLEST}", check_debug_trial),
    (r"python sweeps/cora\.py", "--splits 1 --workers 1", check_cora),
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
        """Run one command, cheaply, and check what it did."""
        _, cheap, check = next(row for row in CHEAP if re.match(row[0], command))
        self.prepare(command, capsys)
        words = [*self.words(command), *shlex.split(cheap)]
        capsys.readouterr()
        status = run_words(words)
        output = capsys.readouterr()
        assert not status, f"{shlex.join(words)}: {output.err}"
        done = Done(words, output.out)
        check(done)
        if words[1] == "train":
            self.runs.append(done.run)

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
