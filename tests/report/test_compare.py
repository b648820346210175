"""One setting in several sweeps, from a real store."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cutslots.__main__ import main
from cutslots.errors import InputError
from cutslots.report.plots import write_comparison
from cutslots.tracking import RunLog

REACH = "model.cut.reach"


def log(
    folder: Path,
    sweep: str,
    number: int,
    params: dict[str, object],
    scores: dict[str, float],
    parent: str | None,
    dataset: str | None = None,
) -> str:
    """A finished run, or the sweep's own where it has no parent."""
    with RunLog(
        folder / f"{sweep}-{number}",
        experiment="e",
        run_name=f"{sweep}-{number}",
        parent_run_id=parent,
        gather=0.02,
    ) as run:
        run.params(params)
        tags = {
            "state": "finished",
            "dataset": dataset or sweep,
            "set": dataset or sweep,
            "commit": "0" * 40,
        }
        if parent is None:
            run.tags({"kind": "sweep", "sweep": sweep, **tags})
        else:
            model = "min_cut_slots" if REACH in params else "slot_attention"
            run.tags(
                {
                    "sweep": sweep,
                    f"sweep.{sweep}": number,
                    "model": model,
                    "signature": f"{sweep}{number}",
                    **tags,
                }
            )
            run.metrics(
                5, {"best/step": 5, **{f"best/{name}": value for name, value in scores.items()}}
            )
        run.close("FINISHED", 60)
    assert run.run_id
    return run.run_id


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweeps "one" and "two" over two reaches with two seeds, "one" with another model beside it; "flat" has one reach only."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for sweep, lift, reaches in (
            ("one", 0.0, (0.7, 10.0)),
            ("two", 0.5, (0.7, 10.0)),
            ("flat", 0.0, (0.7,)),
        ):
            parent = log(home, sweep, 99, {"dataset": sweep, "objective": "ari_fg"}, {}, None)
            for at, reach in enumerate(reaches):
                for seed in (0, 1):
                    scores = {"ari_fg": lift + 0.1 * (at + seed), "cut_ari_fg": 0.4}
                    log(
                        home,
                        sweep,
                        2 * at + seed,
                        {REACH: reach, "train.seed": seed},
                        scores,
                        parent,
                    )
            if sweep == "one":
                log(home, sweep, 8, {"train.seed": 0}, {"ari_fg": 0.9}, parent)
    return home


def test_means_over_seeds_stand_beside_each_other(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))
    table, figure = write_comparison(["one", "two"], "cut.reach", tmp_path)
    text = table.read_text()
    assert (
        "| 0.7 | 0.050 ± 0.071 (2) | 0.550 ± 0.071 (2) |\n| 10 | 0.150 ± 0.071 (2) | 0.650 ± 0.071 (2) |"
        in text
    )
    assert "| slot_attention | 0.900 (1) | - |" in text
    assert "| 10 | 0.400 ± 0.000 (2) | 0.400 ± 0.000 (2) |" in text, "by cut masks"
    assert len(re.findall(r"^\| (one|two) \|", text, re.MULTILINE)) == 9, (
        "every run by its signature"
    )
    assert Image.open(figure).width > 800
    before = table.read_bytes(), figure.read_bytes()
    write_comparison(["one", "two"], REACH.removeprefix("model."), tmp_path)
    assert (table.read_bytes(), figure.read_bytes()) == before


def test_rows_and_columns_are_told_apart(tmp_path, monkeypatch):
    """Two sweeps on one set, a setting of 0, two settings of another model."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))
    for sweep in ("a", "b"):
        parent = log(
            tmp_path,
            sweep,
            99,
            {"dataset": "same", "objective": "ari_fg"},
            {},
            None,
            dataset="same",
        )
        for at, reach in enumerate((0.0, 1.0)):
            log(
                tmp_path,
                sweep,
                at,
                {REACH: reach, "train.seed": 0},
                {"ari_fg": 0.5 + reach / 10},
                parent,
                dataset="same",
            )
        for at, size in enumerate((32, 64)):
            log(
                tmp_path,
                sweep,
                5 + at,
                {"model.size": size, "train.seed": 0},
                {"ari_fg": 0.1 * at},
                parent,
                dataset="same",
            )
    table, _ = write_comparison(["a", "b"], "cut.reach", tmp_path / "out")
    rows = [line.split(" | ") for line in table.read_text().splitlines() if line.startswith("| ")]
    assert rows[0] == ["| cut.reach", "a", "b |"]
    assert [row[0] for row in rows[1:5]] == [
        "| 0",
        "| 1",
        "| slot_attention, size=32",
        "| slot_attention, size=64",
    ]
    assert [row[1] for row in rows[1:5]] == ["0.500 (1)", "0.600 (1)", "0.000 (1)", "0.100 (1)"]


@pytest.mark.parametrize(
    ("sweeps", "setting", "message"),
    [
        (["one"], "cut.reech", "Did you mean 'reach'"),
        (["one"], "nonsense", r"no one such setting\. Known: reach\.$"),
        (["flat"], "nonsense", "differ in no number besides the seed"),
        (["one", "flat"], "cut.reach", "'flat' has 1 configurations with 1 values"),
        (["none"], "cut.reach", "no sweep 'none'"),
    ],
)
def test_what_cannot_be_compared(sweeps, setting, message, home, tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))
    with pytest.raises(InputError, match=message):
        write_comparison(sweeps, setting, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))
    main(["report", "one", "two", "--out", str(tmp_path), "--compare", "cut.reach"])
    assert f"{tmp_path / 'compare-cut.reach.png'}" in capsys.readouterr().out
    assert (tmp_path / "one" / "index.html").exists()


def test_what_it_refuses_costs_no_report(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))
    assert (
        main(["report", "one", "two", "--out", str(tmp_path / "out"), "--compare", "nonsense"]) == 2
    )
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()
