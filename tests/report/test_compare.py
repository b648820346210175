"""Comparison of sweeps over one setting, from a real store."""

from pathlib import Path

import pytest
from PIL import Image

from cutslots.cli import main
from cutslots.errors import InputError
from cutslots.report.plots import write_comparison

REACH = "model.cut.reach"


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_run, copy_database) -> Path:
    """Sweeps over reach: "one", "two" (two seeds, "one" also Slot Attention), "flat" (one reach).

    "a" and "b" are on one dataset, with a reach of 0 and two settings of another model.
    """
    home = copy_database(tmp_path_factory.mktemp("home"))
    sweeps = {"one": 0.0, "two": 0.5, "flat": 0.0, "a": 0.5, "b": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for sweep, lift in sweeps.items():
            dataset = "same" if sweep in ("a", "b") else sweep
            tags = {"dataset": dataset, "set": dataset, "state": "finished", "commit": "0" * 40}
            parent = make_run(
                home / sweep,
                params={"dataset": dataset, "objective": "ari_fg"},
                tags={"kind": "sweep", "sweep": sweep, **tags},
            )
            slot_attention = {"one": [({}, 0.9)], "a": [({"model.size": 32}, 0.0)]}.get(sweep, [])
            slot_attention += [({"model.size": 64}, 0.1)] if sweep == "a" else []
            reaches = {"flat": (0.7,), "a": (0.0, 1.0), "b": (0.0, 1.0)}.get(sweep, (0.7, 10.0))
            seeds = (0,) if dataset == "same" else (0, 1)
            runs = [
                ({REACH: reach, "train.seed": seed}, lift + 0.1 * (i + seed))
                for i, reach in enumerate(reaches)
                for seed in seeds
            ]
            for number, (params, ari_fg) in enumerate([*runs, *slot_attention]):
                ours = REACH in params
                own = {"sweep": sweep, f"sweep.{sweep}": number, "signature": f"{sweep}{number}"}
                own["model"] = "min_cut_slots" if ours else "slot_attention"
                scores = {"ari_fg": ari_fg} | ({"cut_ari_fg": 0.4} if ours else {})
                make_run(
                    home / f"{sweep}-{number}",
                    parent=parent,
                    params={"train.seed": 0, **params},
                    tags=own | tags,
                    metrics={"best/step": 5} | {f"best/{n}": v for n, v in scores.items()},
                )
    return home


@pytest.fixture(autouse=True)
def use_home(own_home, home, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))


def test_means_over_seeds_are_side_by_side(tmp_path, cells):
    table, figure = write_comparison(["one", "two"], "cut.reach", tmp_path)
    lines = cells(table.read_text())
    assert lines[0] == ["cut.reach", "one", "two"]
    assert lines[1:4] == [
        ["0.7", "0.050 ± 0.071 (2)", "0.550 ± 0.071 (2)"],
        ["10", "0.150 ± 0.071 (2)", "0.650 ± 0.071 (2)"],
        ["slot_attention", "0.900 (1)", "-"],
    ]
    assert ["10", "0.400 ± 0.000 (2)", "0.400 ± 0.000 (2)"] in lines  # by cut masks
    assert Image.open(figure).width > 600
    before = table.read_bytes(), figure.read_bytes()
    write_comparison(["one", "two"], "reach", tmp_path)
    write_comparison(["one", "two"], "cut.reach", tmp_path)
    assert (table.read_bytes(), figure.read_bytes()) == before


def test_sweeps_on_one_dataset_have_their_own_columns(tmp_path, cells):
    table, _ = write_comparison(["a", "b"], "cut.reach", tmp_path)
    lines = cells(table.read_text())
    assert lines[0] == ["cut.reach", "a", "b"]
    assert [line[:2] for line in lines[1:5]] == [
        ["0", "0.500 (1)"],
        ["1", "0.600 (1)"],
        ["slot_attention, size=32", "0.000 (1)"],
        ["slot_attention, size=64", "0.100 (1)"],
    ]


@pytest.mark.parametrize(
    ("sweeps", "setting", "message"),
    [
        (["one"], "cut.reech", "'one', got 'cut.reech'. Did you mean 'reach'"),
        (["one"], "nonsense", r"got 'nonsense'. Known: reach\.$"),
        (["flat"], "nonsense", "got 'nonsense'. No numeric setting"),
        (["one", "flat"], "cut.reach", "'flat' .* got 1 configurations with 1 values"),
        (["none"], "cut.reach", "'none'"),
    ],
)
def test_what_cannot_be_compared(sweeps, setting, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_comparison(sweeps, setting, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_comparison_and_reports(tmp_path, capsys):
    command = ["report", "one", "two", "--out", str(tmp_path / "out"), "--compare"]
    assert main([*command, "nonsense"]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()
    assert main([*command, "cut.reach"]) == 0
    assert "compare-cut.reach.png" in capsys.readouterr().out
    assert (tmp_path / "out" / "one" / "index.html").exists()
