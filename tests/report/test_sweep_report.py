"""Reports of sweeps in a real store: means over seeds, their order, what stands beside them, and the same bytes twice."""

import csv
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from cutslots.errors import InputError
from cutslots.report import page
from cutslots.report.importance import Analysis, analysis
from cutslots.report.plots import caption, chosen
from cutslots.report.published import records
from cutslots.report.sweep import runs_csv, sweep_names, sweep_runs, tables
from cutslots.report.sweep_report import write_report
from cutslots.tracking import RunLog, find_runs, import_records, last_artifact, metric_histories

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VAL, CAMO = ("clevrtex", "val"), ("clevrtex_camo", "test")
SPACE = {"space/model.cut.gamma": "FloatDistribution(high=2.0, log=True, low=0.1, step=None)"}


def parent(folder: Path, name: str) -> str:
    with RunLog(folder / "sweeps" / name, experiment="e", run_name=name, gather=0.02) as log:
        params = {
            "dataset": "clevrtex",
            "data_digest": "d",
            "preset": "small",
            "set": "train.steps=20",
            "search": "grid",
        }
        log.params({**params, "objective": "ari_fg", **SPACE})
        log.tags(
            {
                "kind": "sweep",
                "sweep": name,
                "dataset": "clevrtex",
                "state": "finished",
                "commit": COMMIT,
            }
        )
        log.close("FINISHED", 60)
    assert log.run_id
    return log.run_id


def trial(
    folder: Path,
    sweep: str,
    number: int,
    gamma: float,
    seed: int,
    scores: dict[str, float],
    **options: Any,
) -> str:
    """A run with two evaluations; `above` is its parent, `state` how it ended, `again` tells runs of one signature apart."""
    state, colour = options.get("state", "finished"), options.get("colour")
    signature = hashlib.sha256(f"{gamma} {seed}".encode()).hexdigest()[:12]
    place = folder / f"{sweep}-{number}{options.get('again', '')}"
    with RunLog(
        place, experiment="e", run_name=place.name, parent_run_id=options.get("above"), gather=0.02
    ) as log:
        log.params(
            {
                "model.cut.gamma": gamma,
                "model.image_size": 128,
                "train.seed": seed,
                "num_parameters": 7,
            }
        )
        label = f"gamma {gamma:.3g}  seed {seed}"
        log.tags(
            {
                "sweep": options.get("of", sweep),
                f"sweep.{sweep}": number,
                "label": label,
                "state": state,
                "train.steps": 20,
            }
        )
        log.tags(
            {
                "dataset": "clevrtex",
                "set": "clevrtex",
                "model": "min_cut_slots",
                "signature": signature,
                "commit": COMMIT,
            }
        )
        if "cause" in options:
            log.tags({"cause": options["cause"]})
        log.metrics(10, {"val/ari_fg": 0.1 * gamma, "train/images_per_second": 50.0 + 2 * seed})
        if state == "finished":
            log.metrics(
                20, {"val/ari_fg": scores["ari_fg"], "best/step": 20, "best/num_images": 100}
            )
            log.metrics(20, {f"best/{name}": value for name, value in scores.items()})
            log.metrics(
                20,
                {
                    "clevrtex_camo/test/ari_fg": scores["ari_fg"] / 2,
                    "clevrtex_camo/test/num_images": 2000,
                },
            )
        for step, size in ((10, 4), (20, 8)) if colour else ():
            path = place / f"step-{step:08d}.png"
            Image.new("RGB", (25 * size, 10 * size), colour).save(path)
            log.artifact(path, "figures")
        status: Literal["FINISHED", "FAILED"] = "FAILED" if state == "failed" else "FINISHED"
        if "examples" in options:
            path = place / "examples" / "step-00000020.png"
            path.parent.mkdir()
            Image.new("RGB", (300, 120), options["examples"]).save(path)
            log.artifact(path, "examples")
        log.close(status, 60)
    assert log.run_id
    return log.run_id


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home with the sweep "gammas", of which one run was taken over from another sweep, and a sweep of one run."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        above = parent(home, "gammas")
        runs = {
            # An attempt that failed, of the configuration that then came to be the best.
            "first": trial(
                home,
                "gammas",
                2,
                0.5,
                0,
                {},
                above=above,
                state="failed",
                cause="killed",
                again="a",
            ),
            "a0": trial(
                home, "gammas", 0, 0.1, 0, {"ari_fg": 0.8, "mse": 90.0}, above=above, colour="blue"
            ),
            "a1": trial(home, "gammas", 1, 0.1, 1, {"ari_fg": 0.6, "mse": 110.0}, above=above),
            "b0": trial(
                home,
                "gammas",
                2,
                0.5,
                0,
                {"ari_fg": 0.9, "mse": 300.0},
                above=above,
                colour="green",
            ),
            "b1": trial(home, "gammas", 3, 0.5, 1, {"ari_fg": 0.7, "mse": 200.0}, of="elsewhere"),
            "c0": trial(
                home, "gammas", 4, 1.0, 0, {"ari_fg": 0.3, "mse": 400.0}, above=above, colour="red"
            ),
            "c1": trial(
                home,
                "gammas",
                5,
                1.0,
                1,
                {},
                above=above,
                state="failed",
                cause="loss is nan\nat step 12 | worker",
            ),
            "d0": trial(
                home,
                "gammas",
                6,
                2.0,
                0,
                {},
                above=above,
                state="pruned",
                cause="not among the best 1/3",
            ),
        }
        runs["lone"] = trial(home, "lone", 0, 0.25, 0, {"ari_fg": 0.5}, above=parent(home, "lone"))
        of_new = parent(home, "scenes")
        runs["e0"] = trial(
            home,
            "scenes",
            0,
            0.3,
            0,
            {"ari_fg": 0.7},
            above=of_new,
            colour="blue",
            examples="yellow",
        )
        runs["e1"] = trial(
            home,
            "scenes",
            1,
            0.6,
            0,
            {"ari_fg": 0.4},
            above=of_new,
            colour="red",
            examples="purple",
        )
        parent(home, "empty")
        import_records("published", records())
    return home, runs


@pytest.fixture
def ids(made: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The ids of those runs, in a test that works in their home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(made[0]))
    return made[1]


def test_configurations_are_means_over_seeds_best_first(ids):
    sweep = sweep_runs("gammas")
    assert [each.name for each in sweep.configurations] == ["gamma 0.5", "gamma 0.1", "gamma 1"]
    best, second, last = sweep.configurations
    assert [trial.run.run_id for trial in best.trials] == [ids["b0"], ids["b1"]], (
        "with the run of another sweep"
    )
    assert best.mean(VAL, "ari_fg") == pytest.approx(0.8)
    assert best.deviation(VAL, "ari_fg") == pytest.approx(0.02**0.5)
    assert second.mean(VAL, "mse") == pytest.approx(100.0)
    assert (len(last.trials), last.others, last.deviation(VAL, "ari_fg")) == (1, 1, None)
    assert [sweep.value(trial) for trial in sweep.ranked] == [0.9, 0.8, 0.7, 0.6, 0.3]
    assert [trial.run.run_id for trial in sweep.unfinished] == [ids["c1"], ids["d0"]], (
        "not the attempt that was repeated"
    )
    assert sweep.places == [VAL, CAMO]


def test_the_table_has_all_numbers_with_their_origin(ids):
    val, camo, unfinished = tables(sweep_runs("gammas"))
    assert val.header == [
        "rank",
        "configuration",
        "ARI-FG",
        "MSE",
        "n",
        "time",
        "images/s",
        "signatures",
        "commit",
    ]
    lines = [dict(zip(val.header, line, strict=True)) for line in val.lines]
    assert [line["ARI-FG"] for line in lines] == ["0.8000 ± 0.1414", "0.7000 ± 0.1414", "0.3000"]
    assert [line["MSE"] for line in lines] == ["250.00 ± 70.71", "100.00 ± 14.14", "400.00"]
    assert [line["n"] for line in lines] == ["2", "2", "1 of 2"]
    assert [line["images/s"] for line in lines] == ["51.0", "51.0", "50.0"]
    assert {line["commit"] for line in lines} == {"0123456789ab"}
    assert lines[0]["signatures"].split() == [
        hashlib.sha256(f"0.5 {seed}".encode()).hexdigest()[:12] for seed in (0, 1)
    ]
    best = {(line, val.header[column]) for line, column in val.best}
    assert best == {(0, "ARI-FG"), (1, "MSE")}
    assert any("n = 1 are single draws" in note for note in val.notes)
    assert (
        camo.notes[0]
        == "Ranks and order are those on clevrtex val: nothing was chosen by these scores."
    )
    assert [line[2] for line in camo.lines] == ["0.4000 ± 0.0707", "0.3500 ± 0.0707", "0.1500"]
    assert [line[:4] for line in unfinished.lines] == [
        ["failed", "gamma 1", "loss is nan at step 12 | worker", "1"],
        ["pruned", "gamma 2", "not among the best 1/3", "0"],
    ]


def test_published_rows_are_marked_and_never_ranked(ids):
    val, camo, _ = tables(sweep_runs("gammas"))
    assert {line[0] for line in val.published} == {"-"}
    assert all(line[1].startswith("published: ") for line in val.published)
    assert not any("published" in cell for line in val.lines for cell in line)
    paper = next(
        line for line in val.published if line[1] == "published: min-cut slots (the paper) [c]"
    )
    assert paper[2:4] == ["0.802", "207"]
    methods = [line[1].removeprefix("published: ")[:-4] for line in val.published]
    assert methods[:3] == [
        "Large AKOrN",
        "min-cut slots, the authors' checkpoint",
        "min-cut slots (the paper)",
    ], "best first"
    assert val.published[0][2] == "0.885 +- 0.009"
    text = " ".join(val.notes)
    assert "[c] Pervez et al. 2023, Table 1. Protocol: the ClevrTex benchmark's preparation" in text
    assert (
        "What differs in ours: split val, published on test; 100 images, published on at least 5,000."
        in text
    )
    assert "split" not in camo.notes[-1], "the evaluation on test is of the published split"


def test_the_report_is_the_same_twice_and_complete(ids, tmp_path):
    first, second = (write_report("gammas", tmp_path / name, analysis) for name in "ab")
    names = ["curves.png", "figure.png", "index.html", "runs.csv", "slices.png", "table.md"]
    assert [path.name for path in sorted(first.iterdir())] == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    before = (first / "index.html").read_bytes()
    assert write_report("gammas", tmp_path / "a", analysis) == first
    assert (first / "index.html").read_bytes() == before
    table = (first / "table.md").read_text()
    assert "# Sweep gammas\n" in table
    assert "Trials: 1 failed, 5 finished, 1 pruned. 1 further run of the same signatures" in table
    assert f"MLflow run {sweep_runs('gammas').parents[0].run_id}" in table
    assert "**0.8000 ± 0.1414**" in table
    assert re.search(r"\| -+:? \|", table)
    assert (
        "## Importance of settings\n\nNothing is told of importance from 5 finished runs in the space"
        in table
    )
    assert "loss is nan at step 12 \\| worker" in table


def test_runs_csv_has_a_line_a_run(ids):
    found = list(csv.DictReader(runs_csv(sweep_runs("gammas")).splitlines()))
    assert [line["run_id"] for line in found[:5]] == [
        ids[name] for name in ("b0", "b1", "a0", "a1", "c0")
    ]
    assert [line["rank"] for line in found] == ["1", "1", "2", "2", "3", "", "", ""]
    assert {line["run_id"] for line in found[5:]} == {ids["first"], ids["c1"], ids["d0"]}
    assert found[0]["clevrtex/val/ari_fg"] == "0.9"
    assert found[0]["clevrtex_camo/test/ari_fg"] == "0.45"
    assert (found[0]["gamma"], found[0]["seed"], found[0]["commit"], found[0]["state"]) == (
        "0.5",
        "0",
        COMMIT,
        "finished",
    )
    assert (
        next(line for line in found if line["run_id"] == ids["d0"])["cause"]
        == "not among the best 1/3"
    )
    assert "model.image_size" not in found[0], "what is alike in all runs is no column"


def test_the_figure_shows_scenes_of_the_best_run(ids, tmp_path):
    folder = write_report("scenes", tmp_path)
    picture = Image.open(folder / "figure.png")
    assert picture.size == (300, 44 + 120)
    assert picture.getpixel((150, 100)) == (255, 255, 0)
    text = (folder / "index.html").read_text()
    assert (
        "Scenes of the validation split with the best, the median and the worst ARI-FG of the best run"
        in text
    )
    signature = hashlib.sha256(b"0.3 0").hexdigest()[:12]
    assert (
        f"Best run: ARI-FG 0.7000, gamma 0.3, seed 0, signature {signature}, commit 0123456789ab."
        in text
    )


def test_without_such_scenes_it_shows_best_median_and_worst_runs(ids, tmp_path):
    sweep = sweep_runs("gammas")
    assert [(each.role, sweep.value(each.trial)) for each in chosen(sweep)] == [
        ("best", 0.9),
        ("median", 0.7),
        ("worst", 0.3),
    ]
    assert caption(sweep, chosen(sweep)[0])[0] == "Best run: ARI-FG 0.9000, gamma 0.5"
    folder = write_report("gammas", tmp_path)
    assert (
        "The best run has logged no scenes by their scores" in (folder / "index.html").read_text()
    )
    picture = Image.open(folder / "figure.png")
    # The median run has no figure; the last ones of the others are 200 x 80, below a caption of 44 pixels.
    assert picture.size == (416, 124)
    assert picture.getpixel((100, 84)) == (0, 128, 0)
    assert picture.getpixel((316, 84)) == (255, 0, 0)


class Page(HTMLParser):
    """What a page refers to, and the texts of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.classes: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.references += [
            value for name, value in values.items() if name in ("src", "href") and value
        ]
        self.classes += [name for name in [values.get("class")] if name]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_stands_alone(ids, tmp_path):
    told = Analysis(
        {"model.cut.gamma": 0.75, "<b>": 0.25}, "by <chance>", analysis(sweep_runs("gammas")).slices
    )
    folder = write_report("gammas", tmp_path, lambda sweep: told)
    text = (folder / "index.html").read_text()
    found = Page(text)
    assert found.open == [], "every element is closed"
    assert set(found.references) == {
        "table.md",
        "runs.csv",
        "figure.png",
        "curves.png",
        "slices.png",
    }
    assert all((folder / name).is_file() for name in found.references)
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert {"0.8000 ± 0.1414", "1 of 2", "loss is nan at step 12 | worker", "0.75", "<b>"} <= set(
        found.cells
    )
    assert found.classes.count("published") == 2
    assert "by &lt;chance&gt;" in text
    assert "| <b>             |  0.25 |" in (folder / "table.md").read_text()
    assert len(text) < 40_000


def test_slices_are_of_the_space_and_mark_what_was_pruned(ids):
    (found,) = analysis(sweep_runs("gammas")).slices
    assert (found.setting, found.logarithmic, found.range, found.choices) == (
        "model.cut.gamma",
        True,
        (0.1, 2.0),
        None,
    )
    assert found.finished == [(0.5, 0.9), (0.1, 0.8), (0.5, 0.7), (0.1, 0.6), (1.0, 0.3)], (
        "best first"
    )
    assert found.pruned == [(2.0, pytest.approx(0.2))]
    assert analysis(sweep_runs("lone")).slices == [], "of one value there is no slice"


def test_a_long_table_is_cut_on_the_page(ids, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_LINES", 1)
    folder = write_report("gammas", tmp_path)
    text = (folder / "index.html").read_text()
    shown = Page(text).cells
    assert "gamma 0.5" in shown
    assert "gamma 0.1" in shown, "it has the best MSE"
    assert "0.3000" not in shown
    assert "1 more line is in table.md, and every run is in runs.csv." in text
    assert "0.3000" in (folder / "table.md").read_text()


def test_what_the_runs_have_nothing_for_is_left_out(ids, tmp_path):
    stale = tmp_path / "lone" / "figure.png"
    write_report("lone", tmp_path)
    stale.write_bytes(b"of an earlier report")
    folder = write_report("lone", tmp_path)
    assert not stale.exists(), "no run of it has a figure"
    assert "figure.png" not in (folder / "index.html").read_text()
    assert "0.5000" in (folder / "table.md").read_text()


def test_what_cannot_be_reported(ids, tmp_path):
    assert sweep_names() == ["empty", "gammas", "lone", "scenes"]
    with pytest.raises(
        InputError,
        match="no sweep 'gamma' in the tracking store. Known: empty, gammas, lone, scenes.",
    ):
        write_report("gamma", tmp_path)
    with pytest.raises(InputError, match="sweep 'empty' has no trials yet."):
        write_report("empty", tmp_path)
    (tmp_path / "gammas").mkdir()
    (tmp_path / "gammas" / "table.md").write_text("# A table made by hand\n")
    with pytest.raises(InputError, match="is of something else than a report of sweep 'gammas'"):
        write_report("gammas", tmp_path)
    assert (tmp_path / "gammas" / "table.md").read_text() == "# A table made by hand\n"
    assert not (tmp_path / "empty").exists()


def test_history_and_artifacts_of_a_run(ids):
    none = "0" * 32
    found = metric_histories([ids["b0"], none, ids["a0"]], "val/ari_fg")
    assert found == {
        ids["b0"]: [(10, pytest.approx(0.05)), (20, 0.9)],
        none: [],
        ids["a0"]: [(10, pytest.approx(0.01)), (20, 0.8)],
    }
    assert metric_histories([ids["b0"]], "val/none") == {ids["b0"]: []}
    assert last_artifact(ids["a1"], "figures") is None
    assert last_artifact("0" * 32, "figures") is None
    content = last_artifact(ids["b0"], "figures")
    assert content is not None
    assert content.startswith(b"\x89PNG")
    assert len(find_runs("tags.`sweep.gammas` LIKE '%'")) == 8
