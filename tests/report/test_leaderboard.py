"""Leaderboards from runs in a real store: order, columns, what is never mixed."""

import math
from typing import Any

import pytest

from cutslots.errors import InputError
from cutslots.report.leaderboard import cells, leaderboards, notes
from cutslots.report.published import records
from cutslots.tracking import import_records


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_run, copy_database):
    """A home with published rows, runs of a sweep on ClevrTex, others on it and on scenes."""
    home = copy_database(tmp_path_factory.mktemp("home"))
    tex = {"dataset": "clevrtex", "set": "clevrtex", "model": "min_cut_slots", "state": "finished"}
    size = {"model.image_size": 128}
    base = {**size, "optim.learning_rate": 0.0004, "model.cut.gamma": 0.5, "model.cut.beta": 1.0}
    runs = {}

    def log(name: str, tags: dict, params: dict, metrics: dict) -> None:
        runs[name] = make_run(home / name, tags=tags, params=params, metrics=metrics, step=7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        scores = ((0.5, 0.6, 300.0), (0.1, 0.8, 250.0), (2.0, 0.7, 200.0))
        for number, (gamma, ari_fg, mse) in enumerate(scores):
            metrics = {"best/ari_fg": ari_fg, "best/mse": mse, "best/step": 5}
            metrics |= {"best/num_images": 1000, "train/loss": 1.0}
            metrics |= {"clevrtex/test/ari_fg": ari_fg - 0.1, "clevrtex/test/num_images": 5000}
            metrics |= {"clevrtex_camo/test/ari_fg": 1 - ari_fg}
            metrics |= {"clevrtex_camo/test/num_images": 2000}
            tags = {"sweep": "gammas", "sweep.gammas": number, "train.steps": 5}
            params = {"model.cut.gamma": gamma, "train.seed": number, "num_parameters": number}
            log(f"g{number}", tex | tags, base | params, metrics)
        attention = {"optim.learning_rate": 0.001, "model.attention.size": 64, "train.seed": 0}
        tags = {"model": "slot_attention", "train.steps": 9}
        log("attention", tex | tags, size | attention, {"best/ari_fg": 0.75, "best/step": 9})
        log("diverged", tex, base, {"best/ari_fg": math.nan})
        log("pruned", tex | {"state": "pruned"}, base, {"val/ari_fg": 0.99})
        log("parent", tex | {"kind": "sweep", "sweep": "gammas"}, {}, {"best/ari_fg": 0.99})
        small = {"model.image_size": 32, "train.seed": 4}
        # A run of an earlier version, without the tag "set".
        plain = {"dataset": "scenes", "model": "min_cut_slots", "state": "finished"}
        metrics = {"best/ari_fg": 0.95, "best/step": 3}
        metrics |= {"clevrtex_camo/test/ari_fg": 0.5, "clevrtex_camo/test/num_images": 10}
        log("plain", plain, small, metrics)
        log("again", plain | {"set": "scenes"}, small | {"train.seed": 5}, {"best/ari_fg": 0.95})
        import_records("published", records())
    return home, runs


@pytest.fixture
def ids(home, monkeypatch) -> dict[str, str]:
    """The ids of those runs, in a test with their home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(home[0]))
    return home[1]


def names(board: Any) -> list[str]:
    return [entry.name for entry in board.entries]


def test_one_board_per_dataset_best_first(ids):
    tex, scenes = leaderboards()
    assert (tex.dataset, tex.num_runs, tex.num_unranked) == ("clevrtex", 4, 1)
    # Without the sweep's run, the pruned run and published rows.
    ranked = [(entry.rank, entry.name, entry.value) for entry in tex.entries]
    assert ranked == [(1, "g1", 0.8), (2, "attention", 0.75), (3, "g2", 0.7), (4, "g0", 0.6)]
    first = tex.entries[0]
    assert first.scores == {"ari_fg": 0.8, "mse": 250.0, "num_images": 1000.0}
    assert (first.step, first.seed, first.sweep, first.run_id) == (5, "1", "gammas", ids["g1"])
    assert first.seconds is not None
    assert 0 <= first.seconds < 60
    assert (scenes.dataset, names(scenes)) == ("scenes", ["plain", "again"])  # ties: older first
    (sweep,) = leaderboards(sweep="gammas")
    assert names(sweep) == ["g1", "g2", "g0"]
    (by_error,) = leaderboards("mse")
    assert names(by_error) == ["g2", "g1", "g0"]
    assert [row.scores["mse"] for row in by_error.published][:2] == [146, 207]


def test_settings_are_those_that_differ(ids):
    (tex,) = leaderboards(dataset="clevrtex")
    assert [entry.settings for entry in tex.entries[:2]] == [
        {"learning_rate": "0.0004", "gamma": "0.1", "steps": "5"},
        {"learning_rate": "0.001", "steps": "9"},
    ]
    (ours,) = leaderboards(dataset="clevrtex", model="min-cut-slots")
    assert [e.settings for e in ours.entries] == [{"gamma": g} for g in ("0.1", "2.0", "0.5")]
    (two,) = leaderboards(dataset="clevrtex", limit=2)
    assert names(two) == ["g1", "attention"]
    assert "2 more not shown; --limit 4 shows all" in notes(two)


def test_ambiguous_setting_names_are_longer_and_many_are_cut(ids, make_run, tmp_path):
    many = {f"model.a{i}": 0 for i in range(9)}
    for number in (1, 2):
        params = {"model.encoder.channels": number, "model.decoder.channels": 3, "channels": number}
        make_run(
            tmp_path / f"a{number}",
            tags={"dataset": "ambiguous", "model": "m", "data_digest": f"d{number}"},
            params=params | dict.fromkeys(many, number / 3),
            metrics={"best/ari_fg": number / 10},
        )
    (board,) = leaderboards(dataset="ambiguous")
    settings = board.entries[0].settings
    assert settings["a0"] == repr(2 / 3)
    assert settings["encoder.channels"] == settings["channels"] == "2"
    assert settings["data"] == "d2"
    assert len(settings) == 12
    header, lines = cells(board)
    assert lines[0][header.index("settings")].endswith("=0.6667 and 4 more")


def test_evaluations_are_on_the_board_of_their_dataset(ids):
    boards = {board.dataset: board for board in leaderboards(split="test")}
    assert names(boards["clevrtex"]) == ["g1", "g2", "g0"]
    assert boards["clevrtex"].differs == []
    camo = boards["clevrtex_camo"]
    assert [(entry.name, entry.value, entry.trained_on) for entry in camo.entries] == [
        ("plain", 0.5, "scenes"),
        ("g0", 0.4, "clevrtex"),
        ("g2", pytest.approx(0.3), "clevrtex"),
        ("g1", pytest.approx(0.2), "clevrtex"),
    ]
    assert camo.differs == [
        "scored at 32 x 32, published at 128 x 128 (1 of 4 runs)",
        "the model was trained on scenes (1 of 4 runs)",
        "10 images, published on at least 1,000 (1 of 4 runs)",
    ]


def test_notes_name_publications_and_known_differences(ids):
    boards = {board.dataset: board for board in leaderboards()}
    unranked, quoted, a, b, c, ours = notes(boards["clevrtex"])
    assert unranked == "without a finite ari_fg: 1"
    assert quoted.startswith("[a] Biza et al. 2023, as quoted by")
    assert a.startswith("[b] Miyato et al. 2025")
    assert "clusters of features are scored, not masks of a decoder" in a
    assert b.startswith("[c] the checkpoint that Pervez et al. published")
    assert c.startswith("[d] Pervez et al. 2023, Table 1. Protocol: ")
    assert "1,000 images, published on at least 5,000 (3 of 4 runs)" in ours
    assert notes(boards["scenes"]) == []


def test_cells_leave_out_empty_and_constant_columns(ids):
    (camo,) = leaderboards(dataset="clevrtex_camo", split="test")
    header, lines = cells(camo)
    columns = "rank,ARI-FG,model,trained on,sweep,seed,step,time,run,settings,id"
    assert header == columns.split(",")
    assert lines[0][:4] == ["1", "0.5000", "min_cut_slots", "scenes"]
    assert [line[0] for line in lines] == ["1", "2", "3", "4", *["-"] * len(camo.published)]
    by_run = {line[header.index("run")]: line for line in lines}
    assert by_run["published: Large AKOrN [a]"][1] == "0.7700"
    (tex,) = leaderboards(dataset="clevrtex")
    header, lines = cells(tex)
    assert (header[:3], lines[0][1:3]) == (["rank", "ARI-FG", "MSE"], ["0.8000", "250.00"])
    (scenes,) = leaderboards(dataset="scenes")
    assert cells(scenes)[0] == ["rank", "ARI-FG", "model", "seed", "step", "time", "run", "id"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"metric": "ari_bg"}, "--metric ari_bg: .* val. .*ari_fg, mse, num_images"),
        ({"dataset": "clevr"}, "--dataset clevr: .* val. .*clevrtex"),
        ({"split": "held_out"}, "--split held_out: .* Score runs first: cutslots evaluate"),
        ({"model": "slot-atention"}, "--model slot-atention .*'slot_attention'"),
        ({"sweep": "gamma"}, "--sweep gamma .*'gammas'"),
    ],
)
def test_missing_runs_are_named(wanted: dict[str, Any], message: str, ids):
    with pytest.raises(InputError, match=message):
        leaderboards(**wanted)


def test_an_empty_store_is_not_created(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path))
    with pytest.raises(InputError, match="no runs yet"):
        leaderboards()
    with pytest.raises(InputError, match="no sweeps yet"):
        leaderboards(sweep="gammas")
    assert not (tmp_path / "mlflow.db").exists()
