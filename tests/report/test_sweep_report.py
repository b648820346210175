"""Reports of sweeps in a real store: means over seeds, order, published rows, equal bytes."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from optuna import create_study
from optuna.distributions import FloatDistribution, distribution_to_json
from PIL import Image

from cutslots.errors import InputError
from cutslots.report.importance import Analysis, analysis
from cutslots.report.pages import write_report
from cutslots.report.published import records
from cutslots.report.scored_run import sweep_names
from cutslots.report.sweep import runs_csv, sections, sweep_runs
from cutslots.tracking import import_records

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = {"dataset": "clevrtex", "set": "clevrtex", "commit": COMMIT}
VAL, CAMO = ("clevrtex", "val"), ("clevrtex_camo", "test")
SPACE = FloatDistribution(0.1, 2.0, log=True)
# Run -> trial, gamma, seed, ARI-FG, MSE (None: no result) and other tags of the sweep "gammas".
# c: its first attempt at trial 2 failed; b1 is adopted from another sweep.
GAMMAS = {
    "first": (2, 0.5, 0, None, None, {"state": "failed", "cause": "killed"}),
    "a0": (0, 0.1, 0, 0.8, 90.0, {}),
    "a1": (1, 0.1, 1, 0.6, 110.0, {}),
    "b0": (2, 0.5, 0, 0.9, 300.0, {}),
    "b1": (3, 0.5, 1, 0.7, 200.0, {"sweep": "elsewhere"}),
    "c0": (4, 1.0, 0, 0.3, 400.0, {}),
    "c1": (5, 1.0, 1, None, None, {"state": "failed", "cause": "loss is nan\nat step 12 | worker"}),
    "d0": (6, 2.0, 0, None, None, {"state": "pruned", "cause": "not among the best 1/3"}),
}
FIGURES = {"a0": "blue", "b0": "green", "c0": "red"}


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_run, copy_database) -> tuple[Path, dict[str, str]]:
    """Sweeps "gammas", "lone" with one run, "scenes" with logged examples and "empty"; run ids."""
    home = copy_database(tmp_path_factory.mktemp("home"))

    def image(run: str, folder: str, size: tuple[int, int], color: str) -> dict[str, Path]:
        path = home / run / folder / "step-00000020.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", size, color).save(path)
        return {folder: path}

    def parent(sweep: str, space: str) -> str:
        params = {"dataset": "clevrtex", "data_digest": "d", "preset": "small", "search": "grid"}
        params |= {"set": "train.steps=20", "objective": "ari_fg", "space/model.cut.gamma": space}
        tags = {"kind": "sweep", "sweep": sweep, "state": "finished"} | DATA
        return make_run(home / sweep, params=params, tags=tags)

    def trial(run, sweep, above, values, artifacts=None) -> str:
        number, gamma, seed, ari_fg, mse, tags = values
        params = {"model.cut.gamma": gamma, "model.image_size": 128}
        params |= {"train.seed": seed, "num_parameters": 7}
        label = f"gamma {gamma:.3g}  seed {seed}"
        own = {"sweep": sweep, f"sweep.{sweep}": number, "label": label, "state": "finished"}
        own |= {"train.steps": 20, "model": "min_cut_slots", "signature": f"hash-{gamma}-{seed}"}
        metrics = {}
        if ari_fg is not None:
            metrics = {"val/ari_fg": ari_fg, "best/step": 20, "best/num_images": 100}
            metrics |= {"best/ari_fg": ari_fg, "best/mse": mse}
            metrics |= {"clevrtex_camo/test/ari_fg": ari_fg / 2}
            metrics |= {"clevrtex_camo/test/num_images": 2000}
        return make_run(
            home / run,
            parent=above,
            params=params,
            tags=own | DATA | tags,
            history={10: {"val/ari_fg": 0.1 * gamma, "train/images_per_second": 50 + 2 * seed}},
            metrics=metrics,
            step=20,
            artifacts=artifacts,
            status="FAILED" if tags.get("state") == "failed" else "FINISHED",
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        above = parent("gammas", str(SPACE))
        runs = {}
        for name, values in GAMMAS.items():
            art = image(name, "figures", (200, 80), FIGURES[name]) if name in FIGURES else None
            runs[name] = trial(name, "gammas", None if name == "b1" else above, values, art)
        trial("lone-0", "lone", parent("lone", "?"), (0, 0.25, 0, 0.5, 1.0, {}))
        above = parent("scenes", distribution_to_json(SPACE))
        for i, (gamma, ari_fg, color) in enumerate(((0.3, 0.7, "yellow"), (0.6, 0.4, "purple"))):
            art = image(f"e{i}", "examples", (300, 120), color)
            trial(f"e{i}", "scenes", above, (i, gamma, 0, ari_fg, 1.0, {}), art)
        parent("empty", "?")
        import_records("published", records())
    return home, runs


@pytest.fixture
def ids(home, monkeypatch) -> dict[str, str]:
    """The ids of the runs of "gammas", in a test with their home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(home[0]))
    return home[1]


def test_configurations_are_means_over_seeds_best_first(ids):
    sweep = sweep_runs("gammas")
    assert [c.label for c in sweep.configurations] == ["gamma 0.5", "gamma 0.1", "gamma 1"]
    best, second, last = sweep.configurations
    assert [trial.run_id for trial in best.trials] == [ids["b0"], ids["b1"]]
    assert best.mean(VAL, "ari_fg") == pytest.approx(0.8)
    assert second.mean(VAL, "mse") == pytest.approx(100.0)
    assert (len(last.trials), last.num_others) == (1, 1)
    assert [sweep.value(trial) for trial in sweep.ranked] == [0.9, 0.8, 0.7, 0.6, 0.3]
    # Without the failed attempt whose configuration was finished later.
    assert [trial.run_id for trial in sweep.unfinished] == [ids["c1"], ids["d0"]]
    assert sweep.splits == [VAL, CAMO]


def test_tables_have_all_numbers_with_their_origin(ids):
    val, camo, unfinished = sections(sweep_runs("gammas"))
    columns = dict(zip(val.table.columns, zip(*val.table.rows, strict=True), strict=True))
    assert columns["rank"] == ("1", "2", "3")
    assert columns["ARI-FG"] == ("0.8000 ± 0.1414", "0.7000 ± 0.1414", "0.3000")
    assert columns["MSE"] == ("250.00 ± 70.71", "100.00 ± 14.14", "400.00")
    assert columns["n"] == ("2", "2", "1 of 2")
    assert columns["images/s"] == ("51.0", "51.0", "50.0")
    assert set(columns["commit"]) == {"0123456789ab"}
    assert columns["run hashes"][0] == "hash-0.5-0 hash-0.5-1"
    best = {(row, val.table.columns[column]) for row, column in val.best}
    assert best == {(0, "ARI-FG"), (1, "MSE")}
    assert any("n = 1" in note for note in val.notes)
    assert "clevrtex val" in camo.notes[0]
    assert [row[2] for row in camo.table.rows] == ["0.4000 ± 0.0707", "0.3500 ± 0.0707", "0.1500"]
    assert [row[:4] for row in unfinished.table.rows] == [
        ["failed", "gamma 1", "loss is nan at step 12 | worker", "1"],
        ["pruned", "gamma 2", "not among the best 1/3", "0"],
    ]


def test_published_rows_are_marked_and_not_ranked(ids):
    val, camo, _ = sections(sweep_runs("gammas"))
    assert [row[:3] for row in val.published[:4]] == [
        ["-", "published: ISA-TS [a]", "0.929"],
        ["-", "published: Large AKOrN [b]", "0.885 +- 0.009"],
        ["-", "published: min-cut slots, the authors' checkpoint [c]", "0.8025"],
        ["-", "published: min-cut slots (the paper) [d]", "0.802"],
    ]
    assert any(note.startswith("[d] Pervez et al. 2023, Table 1. Protocol: ") for note in val.notes)
    assert "split val, published on test; 100 images, published on at least 5,000" in val.notes[-1]
    assert "split" not in camo.notes[-1]


def test_the_report_is_complete_and_the_same_twice(ids, tmp_path):
    first, second = (write_report("gammas", tmp_path / name) for name in "ab")
    names = ["curves.png", "figure.png", "index.html", "runs.csv", "slices.png", "table.md"]
    assert [path.name for path in sorted(first.iterdir())] == names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    table = (first / "table.md").read_text()
    assert "# Sweep gammas\n" in table
    assert "Trials: 1 failed, 5 finished, 1 pruned. 1 more" in table
    assert f"MLflow run {sweep_runs('gammas').parent.run_id}" in table
    assert "**0.8000 ± 0.1414**" in table
    assert "loss is nan at step 12 / worker" in table
    assert re.search(r"10 finished runs with different scores; there are 5\.", table)


def test_runs_csv_has_a_line_per_run(ids):
    lines = list(csv.DictReader(runs_csv(sweep_runs("gammas")).splitlines()))
    counting = [ids[name] for name in ("b0", "b1", "a0", "a1", "c0")]
    assert [line["run_id"] for line in lines[:5]] == counting
    assert [line["rank"] for line in lines] == ["1", "1", "2", "2", "3", "", "", ""]
    assert {line["run_id"] for line in lines[5:]} == {ids["first"], ids["c1"], ids["d0"]}
    best, pruned = lines[0], next(line for line in lines if line["run_id"] == ids["d0"])
    assert (best["clevrtex/val/ari_fg"], best["clevrtex_camo/test/ari_fg"]) == ("0.9", "0.45")
    assert (best["gamma"], best["seed"], best["state"]) == ("0.5", "0", "finished")
    assert (best["commit"], best["signature"]) == (COMMIT, "hash-0.5-0")
    assert pruned["cause"] == "not among the best 1/3"
    assert "model.image_size" not in best  # equal in all runs


@pytest.mark.parametrize(
    ("sweep", "size", "color", "origin"),
    [
        ("scenes", (300, 120), (255, 255, 0), "ARI-FG 0.7000, gamma 0.3, seed 0"),
        ("gammas", (200, 80), (0, 128, 0), "ARI-FG 0.9000, gamma 0.5, seed 0"),
    ],
    ids=["scenes by score", "older runs: their last figure"],
)
def test_the_figure_is_of_the_best_run(sweep, size, color, origin, ids, tmp_path):
    folder = write_report(sweep, tmp_path)
    image = Image.open(folder / "figure.png")
    assert (image.size, image.getpixel((150, 50))) == (size, color)
    assert f"Best run: {origin}, run hash hash-" in (folder / "index.html").read_text()


class Page(HTMLParser):
    """The references, table cells and unclosed tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: set[str] = set()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.references |= {value for name, value in attrs if name in ("src", "href") and value}
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_needs_no_other_files_and_escapes_text(ids, tmp_path, monkeypatch):
    results = Analysis({"model.cut.gamma": 0.75, "<b>": 0.25}, "", create_study(), [])
    monkeypatch.setattr("cutslots.report.pages.analysis", lambda sweep: results)
    folder = write_report("gammas", tmp_path)
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.references == {"table.md", "runs.csv", "figure.png", "curves.png"}
    assert "http" not in text
    cells = {"0.8000 ± 0.1414", "1 of 2", "loss is nan at step 12 | worker", "0.75", "<b>"}
    assert cells <= set(page.cells)
    assert text.count('<tbody class="published">') == 2
    assert re.search(r"\| <b> +\|  0\.25 \|", (folder / "table.md").read_text())
    assert len(text) < 40_000


def test_slices_are_of_the_search_space(ids):
    gammas = analysis(sweep_runs("gammas"))
    assert gammas.varied == ["model.cut.gamma"]
    assert [(t.params["model.cut.gamma"], t.value) for t in gammas.study.trials] == [
        (0.5, 0.9), (0.1, 0.8), (0.5, 0.7), (0.1, 0.6), (1.0, 0.3),
    ]  # fmt: skip
    assert analysis(sweep_runs("scenes")).varied == ["model.cut.gamma"]
    assert analysis(sweep_runs("lone")).varied == []


def test_a_report_without_figures_removes_an_earlier_one(ids, tmp_path):
    folder = write_report("lone", tmp_path)
    (folder / "figure.png").write_bytes(b"of an earlier report")
    write_report("lone", tmp_path)
    assert not (folder / "figure.png").exists()
    assert "figure.png" not in (folder / "index.html").read_text()
    assert "0.5000" in (folder / "table.md").read_text()


def test_what_cannot_be_reported(ids, tmp_path):
    assert sweep_names() == ["empty", "gammas", "lone", "scenes"]
    with pytest.raises(InputError, match="'gamma'.*empty, gammas, lone, scenes"):
        write_report("gamma", tmp_path)
    with pytest.raises(InputError, match="'empty'"):
        write_report("empty", tmp_path)
    assert not (tmp_path / "empty").exists()
    (tmp_path / "gammas").mkdir()
    (tmp_path / "gammas" / "table.md").write_text("# A table written by hand\n")
    with pytest.raises(InputError, match=r"table\.md is not a report of sweep 'gammas'"):
        write_report("gammas", tmp_path)
    assert (tmp_path / "gammas" / "table.md").read_text() == "# A table written by hand\n"
