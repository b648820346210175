"""The README's commands, one after the other, as a new user types them: each does what the README says of it.

They run in this process and in one new folder, so that later ones find what earlier ones made. What is changed stands in two
places: HERE has the words that make a command cheap, `Place.typed` what stands for the README's placeholders. What cannot run here,
such as all that starts Ray, stands in ELSEWHERE with the test that runs it.
"""

import csv
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

from cutslots.cli import main, parser
from cutslots.data import Manifest
from cutslots.files import home

ROOT = Path(__file__).parents[1]
RENDERED = ROOT.parent / "shared" / "data"
RAW = {"clevr": "clevr_with_masks", "clevrtex": "clevrtex_full", "movi_a": "movi_a", "cora": "cora"}
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
# What `make demo` does after its sweep.
DEMO = re.findall(
    r"^\t\$\(BIN\)/(cutslots .*)",
    (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0],
    re.MULTILINE,
)
COMMANDS = list(dict.fromkeys(COMMANDS))
COMMANDS += [
    command.replace("$${CUTSLOTS_HOME:-cutslots-home}", "cutslots-home") for command in DEMO
]

STEPS = "train.steps=4 train.eval_every=2 checkpoint_every=2 log_every=2 eval_images=8 batch_size=4"
SIZES = "image_size=32 encoder.channels=8 decoder.channels=8"
SMALLEST = " ".join(f"--set {each}" for each in f"{STEPS} {SIZES}".split())

SWEEP = "tests/sweep/test_sweep.py::test_a_sweep_without_any_setting"
SUBMIT = "tests/cluster/test_submit.py::test_ray_submit_over_ssh"
ELSEWHERE = {  # commands that do not run here: why, and the test that runs them or the same on less
    "make demo": ("a sweep on Ray, minutes; what follows it runs here", SUBMIT),
    "make test": ("what runs this test", "tests/test_readme.py::test_make_targets_exist"),
    "cutslots ui": (
        "serves until it is told to end",
        "tests/cli/test_ui.py::test_serves_until_it_is_told_to_end",
    ),
    "python sweeps/demo.py": ("a sweep on Ray, minutes", SUBMIT),
    "python sweeps/clevrtex.py --smoke": ("a sweep on Ray, minutes", SUBMIT),
    "python sweeps/clevrtex.py": ("a sweep on Ray, weeks", SWEEP),
    "python sweeps/clevrtex.py --resume": (
        "the same",
        "tests/sweep/test_survival.py::test_next_driver_continues_after_a_killed_one",
    ),
    "ray submit cluster/gpu.yaml sweeps/clevrtex.py": ("needs a cluster", SUBMIT),
    "cutslots best --dataset clevrtex --metric ari_fg": (
        "needs a sweep's runs",
        "tests/cli/test_best.py::test_published_rows_stand_beside_ours",
    ),
    "cutslots report clevrtex": (
        "needs a sweep's runs",
        "tests/cli/test_report.py::test_all_sweeps_or_those_that_are_named",
    ),
    "python sweeps/reach.py --only reach-plain": (
        "a sweep on Ray, minutes",
        "tests/sweep/test_sweep_cli.py::test_file_with_several_sweeps",
    ),
    "cutslots report reach-plain reach-textured --compare cut.reach": (
        "needs the runs of two sweeps",
        "tests/report/test_compare.py::test_the_command_writes_it",
    ),
    "cutslots bench solvers": (
        "an hour",
        "tests/bench/test_bench_solvers.py::test_the_quick_benchmark",
    ),
    "cutslots bench model": (
        "steps of the paper's models, minutes",
        "tests/bench/test_bench_model.py::test_the_command",
    ),
    "cutslots bench tracking": (
        "makes tracking stores of its own",
        "tests/bench/test_bench_tracking.py::test_figures",
    ),
    "cutslots bench orchestration --sweep sweeps/demo.py": (
        "hundreds of trials on Ray, as one sweep starts them",
        SWEEP,
    ),
}


@dataclass
class Done:
    """A command that ran: its words, and what it said."""

    words: list[str]
    out: str
    err: str

    def given(self, option: str) -> list[str]:
        """The values of an option."""
        return [
            value for name, value in zip(self.words, self.words[1:], strict=False) if name == option
        ]


def is_prepared(done: Done) -> None:
    names = (
        {"train", "val", "test"}
        if "outd" not in done.words and "camo" not in done.words
        else {"test"}
    )
    out = next(
        (Path(word) for word in done.words[4:] if word.startswith("data/")),
        home() / "data" / done.words[2],
    )
    manifest = Manifest.load(out)
    assert set(manifest.splits) == names
    assert manifest.source == done.words[2]
    assert f"{out}: " in done.out


def has_instances(done: Done) -> None:
    assert (home() / "data" / "cora" / "instances.npz").exists()
    manifest = json.loads((home() / "data" / "cora" / "manifest.json").read_text())
    assert (manifest["options"]["instances"], manifest["options"]["side"]) == (27, 50)


def is_sound(done: Done) -> None:
    assert done.words[2] in done.out


def is_trained(done: Done) -> None:
    from cutslots.train import load_model

    name, folder = _run(done)
    assert folder == home() / "runs" / name
    assert done.given("--name") in ([], [name])
    preset = (done.given("--preset") or ["small"])[0]
    assert done.given("--name") or re.fullmatch(rf"{done.words[2]}-{preset}-[0-9a-f]{{12}}", name)
    load_model(folder)
    stored = _leaves(json.loads((folder / "config.json").read_text()))
    for assignment in done.given("--set"):  # those of the README among them
        option, value = assignment.split("=")
        assert float(value) in [found for path, found in stored if path.endswith(f".{option}")], (
            assignment
        )
    assert (folder / "checkpoints" / "step-00000004.pt").exists()
    assert list((folder / "figures").iterdir())


def _leaves(tree: dict, above: str = "") -> list[tuple[str, object]]:
    pairs = [(f"{above}.{name}", value) for name, value in tree.items()]
    return [
        leaf
        for path, value in pairs
        for leaf in (_leaves(value, path) if isinstance(value, dict) else [(path, value)])
    ]


def is_evaluated(done: Done) -> None:
    assert "ARI-FG" in done.out
    for where in map(Path, done.given("--data")):
        assert f"| {where.name} " in done.out
    for path in map(Path, done.given("--figure")):
        with Image.open(path) as picture:
            assert picture.width > 100
            assert (getattr(picture, "n_frames", 1) > 1) == (path.suffix == ".gif")
    for path in map(Path, done.given("--table")):
        assert path.read_text() in done.out
        for where in map(Path, done.given("--data")):
            assert re.search(
                rf"^\| {where.name} .*\n\| fixed tiles: {where.name} .*\n\| published: {where.name} ",
                done.out,
                re.MULTILINE,
            )
    for key in done.given("--by"):
        assert key in done.out


def has_masks(done: Done) -> None:
    (out,) = map(Path, done.given("--out"))
    listed = json.loads((out / "predictions.json").read_text())
    assert len(list((out / "overlays").iterdir())) == 2
    masks = list((out / "masks").iterdir())
    assert len(masks) == 2
    size = listed["model"]["image_size"]
    for path in masks:
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("P", (size, size))


def is_exported(done: Done) -> None:
    from cutslots.train import load_model, predict

    folder = Path(done.words[3])
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "weights.safetensors",
    }
    found = predict(load_model(folder), np.zeros((2, 32, 32, 3), np.uint8))
    assert found["masks"].shape == (2, 32, 32)


def says(*parts: str) -> Callable[[Done], None]:
    """A check that all of this was printed."""

    def check(done: Done) -> None:
        for part in parts:
            assert part in done.out, done.out

    return check


def is_planned(done: Done) -> None:
    says("clevrtex", "trials in all", "each trial takes", "finished so far: nothing")(done)
    assert not (home() / "sweeps").exists()


def is_debugged(done: Done) -> None:
    name, folder = _run(done)
    assert name.startswith("debug-")
    assert json.loads((folder / "config.json").read_text())["model"]["num_slots"] == 10


def has_table(done: Done) -> None:
    from cutslots.tracking import find_runs

    folder = home() / "results" / ("cora-smoke" if "--smoke" in done.words else "cora")
    methods = {
        row["method"] for row in csv.DictReader((folder / "runs.csv").read_text().splitlines())
    }
    assert {"program", "two-stage", "random", "optimum"} <= methods
    assert ("inequality program" in methods) == ("--peer" in done.words)
    assert (folder / "table.md").read_text() in done.out + "\n"
    assert methods <= {run.name for run in find_runs()} or "--smoke" in done.words


def _run(done: Done) -> tuple[str, Path]:
    """Name and folder of the run that a command trained."""
    found = re.search(
        r"^run (\S+) (?:is finished already, )?in ([^\s;]+)", done.err + done.out, re.MULTILINE
    )
    assert found, done.err + done.out
    return found[1], Path(found[2])


HERE: list[
    tuple[str, str, Callable[[Done], None]]
] = [  # how a command begins, words that make it cheap, and what it must do
    ("cutslots prepare scenes", "--count 60 --size 32", is_prepared),
    (
        "cutslots prepare clevr raw data/clevr6",
        "--splits train=0:12,val=12:18,test=18:24 --size 32",
        is_prepared,
    ),
    ("cutslots prepare clevr ", "--splits train=0:8,val=8:12,test=12:16 --size 32", is_prepared),
    (r"cutslots prepare clevrtex .*--variant", "--splits test=0:4 --size 32", is_prepared),
    ("cutslots prepare clevrtex ", "--splits train=0:8,val=8:12,test=12:16 --size 32", is_prepared),
    ("cutslots prepare movi_a ", "--splits train=0:2,val=2:3,test=3:4 --size 32", is_prepared),
    ("cutslots prepare cora ", "", has_instances),
    ("cutslots check", "", is_sound),
    ("cutslots train", f"{SMALLEST} --steps 4", is_trained),
    ("cutslots evaluate", "", is_evaluated),
    ("cutslots predict", "", has_masks),
    ("cutslots export", "", is_exported),
    ("cutslots doctor", "", says("torch", "CUTSLOTS_HOME", "scenes")),
    ("cutslots best", "", says("scenes", "g03")),
    ("cutslots baselines import", "", says("runs made")),
    (r"python sweeps/\w+\.py --dry-run", "", is_planned),
    (r"python sweeps/\w+\.py --debug-trial", f"--smoke {SMALLEST}", is_debugged),
    (r"python sweeps/cora\.py --peer", "--smoke --workers 1", has_table),
    (r"python sweeps/cora\.py", "--splits 1 --workers 1", has_table),
    (
        "cutslots bench layer",
        "--size 8 --cuts 4 --preset small",
        says("layer (closed form)", "of which the cuts"),
    ),
    ("cutslots bench prepare", "--splits train=0:4", says("images/s")),
    ("cutslots bench transform", "--numbers 4096", says("FFT")),
    ("cutslots bench metrics", "--images 3 --size 20 --masks 5", says("ARI-FG")),
    ("cutslots bench batches", "--count 320 --epochs 1", says("images/s")),
    ("cutslots bench fit", "--steps 100 --preset slot-attention-small", says("waiting for data")),
]


def how(command: str) -> tuple[str, Callable[[Done], None]] | None:
    """The cheap words and the check of a command, if it runs here."""
    return next((rest for begin, *rest in HERE if re.match(begin, command)), None)  # pyright: ignore[reportReturnType]


@dataclass
class Place:
    """A new folder in which somebody goes through the README.

    Attributes:
        tried: how many of the commands ran, or were left out.
        runs: the names of the runs that were trained, the last one last.
    """

    folder: Path
    tried: int = 0
    runs: list[str] = field(default_factory=list)

    def typed(self, command: str) -> list[str]:
        """The words of a command, with what its placeholders stand for."""
        words = shlex.split(command)
        last = self.runs[-1] if self.runs else "none"
        stands_for = {"RUN": last, "NAME": last}
        if "DIR" in words:
            stands_for["DIR"] = json.loads((home() / "runs" / last / "run.json").read_text())[
                "data"
            ]
        if "raw" in words:
            source = words[words.index("raw") - 1]
            variant = words[words.index("--variant") + 1] if "--variant" in words else ""
            stands_for["raw"] = str(RENDERED / (f"{source}_{variant}" if variant else RAW[source]))
        for word in words:
            if named := re.fullmatch(r"(\S+-)0123456789ab", word):
                stands_for[word] = next(run for run in self.runs if run.startswith(named[1]))
        return [
            stands_for.get(word, word) for word in words if word != "--torch"
        ]  # tests/cli/test_export.py makes programs

    def run(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Run one of the README's commands, cheaply, and check what it did."""
        found = how(command)
        assert found, command
        more, check = found
        self.before(command, capsys)
        words = [*self.typed(command), *shlex.split(more)]
        capsys.readouterr()
        assert not started(words), f"{shlex.join(words)}: {capsys.readouterr().err}"
        said = capsys.readouterr()
        done = Done(words, said.out, said.err)
        check(done)
        if words[1] == "train":
            self.runs.append(_run(done)[0])

    def before(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What the README only says in passing, or takes from a sweep, which does not run here."""
        from cutslots.tracking import find_runs, register

        if (
            command.startswith("cutslots train scenes")
            and not (home() / "data" / "scenes").exists()
        ):
            self.run("cutslots prepare scenes", capsys)  # training makes them itself, 4,000 of them
        if "--data data/clevrtex_camo" in command:  # "also camo"
            self.run("cutslots prepare clevrtex raw data/clevrtex_camo --variant camo", capsys)
        if command.startswith("cutslots predict"):
            (self.folder / "photos").mkdir()
            for number, size in enumerate(((48, 40), (30, 64))):
                Image.effect_noise(size, 50).convert("RGB").save(
                    self.folder / "photos" / f"{number}.png"
                )
            (run,) = (run for run in find_runs() if run.name == "g03")
            register("cutslots-scenes", run.run_id, "ari_fg", run.metrics["best/ari_fg"])


def started(words: list[str]) -> int | str | None:
    """The exit status of a command, run in this process, which keeps its environment."""
    before = dict(os.environ)
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
        os.environ.update(before)
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("somewhere"))


@pytest.fixture
def there(place: Place, own_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The new folder, where nothing is set: everything lies in ./cutslots-home."""
    for name in [
        name
        for name in os.environ
        if name.startswith(("CUTSLOTS_", "MLFLOW_TRACKING", "RAY_ADDRESS"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(
        "CUTSLOTS_FACTORS", str(place.folder / "factors")
    )  # else in the cache of who runs this
    monkeypatch.chdir(place.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small gain from no more
    yield place
    torch.set_num_threads(threads)


WANTED = [command for command in COMMANDS if command not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("number", range(len(WANTED)), ids=WANTED)
def test_a_command_does_what_the_readme_says(
    number: int, there: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    there.tried, first = max(number + 1, there.tried), there.tried
    for command in WANTED[first : number + 1]:  # one test alone runs what comes before it too
        left_out = re.search(r" raw\b| data/|sweeps/cora", command) and not RENDERED.is_dir()
        if not left_out:
            there.run(command, capsys)
        elif command == WANTED[number]:
            pytest.skip(f"no {RENDERED}")


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
@pytest.mark.skipif(not RENDERED.is_dir(), reason=f"no {RENDERED}")
def test_sweeps_find_what_was_prepared(
    there: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("data/clevrtex").exists():
        there.run("cutslots prepare clevrtex raw data/clevrtex", capsys)
    monkeypatch.setenv("CUTSLOTS_DATA", "data")
    for variant in ("", " --variant outd"):
        words = there.typed(f"cutslots prepare clevrtex raw{variant}")
        assert main([*words[1:], "--splits", "test=0:2", "--size", "32"]) == 0
    assert {path.name for path in (home() / "data").iterdir()} >= {"clevrtex", "clevrtex_outd"}
    for data in ("data", ""):
        monkeypatch.setenv("CUTSLOTS_DATA", data)
        capsys.readouterr()
        assert started(["python", "sweeps/clevrtex.py", "--dry-run"]) == 0
        assert (
            f"data: {(Path(data) if data else home() / 'data').absolute() / 'clevrtex'}"
            in capsys.readouterr().out
        )


def test_every_command_runs_here_or_elsewhere() -> None:
    neither = [command for command in WANTED if not how(command)]
    assert not neither, f"no test runs {neither}: give each a line in HERE or in ELSEWHERE"
    for command, (_, test) in ELSEWHERE.items():
        assert command in COMMANDS, f"the README has no {command!r} any more"
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), test
    unused = [
        begin for begin, *_ in HERE if not any(re.match(begin, command) for command in WANTED)
    ]
    assert not unused, f"the README has no such commands any more: {unused}"


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.py")), ids=lambda file: file.stem)
def test_commands_in_sweep_files_parse(file: Path) -> None:
    for line in re.findall(r"^    cutslots (.*)$", file.read_text(), re.MULTILINE):
        assert parser().parse_args(shlex.split(line, comments=True))
