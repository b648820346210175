"""Boards from runs in a real store: their order, what they say of each run, and what is never mixed."""

import math
from pathlib import Path
from typing import Any

import pytest

from cutslots.errors import InputError
from cutslots.report.leaderboard import cells, leaderboards, notes
from cutslots.report.published import records
from cutslots.tracking import RunLog, import_records, tag_runs

SIZE = {"model.image_size": 128}


def log(
    folder: Path,
    name: str,
    tags: dict[str, Any],
    params: dict[str, Any],
    metrics: dict[str, float],
    **options: Any,
) -> str:
    with RunLog(folder / name, experiment="e", run_name=name, gather=0.02, **options) as run:
        run.params(params)
        run.tags({"state": "finished", **tags})
        run.metrics(7, metrics)
        run.close("FINISHED", 60)
    assert run.run_id is not None
    return run.run_id


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home, and the ids of what its store has besides published rows: runs of a sweep on ClevrTex, others on it and on scenes."""
    home = tmp_path_factory.mktemp("home")
    tex = {"dataset": "clevrtex", "set": "clevrtex", "model": "min_cut_slots"}
    base = {
        **SIZE,
        "optim.learning_rate": 0.0004,
        "model.cut.gamma": 0.5,
        "model.cut.beta": 1.0,
        "num_parameters": 10,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTSLOTS_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs = {}
        for number, (gamma, ari_fg, mse) in enumerate(
            ((0.5, 0.6, 300.0), (0.1, 0.8, 250.0), (2.0, 0.7, 200.0))
        ):
            metrics = {
                "best/ari_fg": ari_fg,
                "best/mse": mse,
                "best/step": 5,
                "best/num_images": 1000,
                "train/loss": 1.0,
            }
            metrics |= {"clevrtex/test/ari_fg": ari_fg - 0.1, "clevrtex/test/num_images": 5000}
            metrics |= {
                "clevrtex_camo/test/ari_fg": 1 - ari_fg,
                "clevrtex_camo/test/num_images": 2000,
            }
            runs[f"g{number}"] = log(
                home, f"g{number}", {**tex, "sweep": "gammas", "sweep.gammas": number, "train.steps": 5},
                {**base, "model.cut.gamma": gamma, "train.seed": number, "num_parameters": number}, metrics,
            )  # fmt: skip
        attention = {
            **SIZE,
            "optim.learning_rate": 0.001,
            "model.attention.size": 64,
            "train.seed": 0,
        }
        runs["attention"] = log(
            home,
            "attention",
            {**tex, "model": "slot_attention", "train.steps": 9},
            attention,
            {"best/ari_fg": 0.75, "best/step": 9},
        )
        runs["diverged"] = log(home, "diverged", tex, base, {"best/ari_fg": math.nan})
        runs["untaken"] = log(
            home, "untaken", {**tex, "state": "pruned"}, base, {"val/ari_fg": 0.99}
        )
        runs["parent"] = log(
            home,
            "parent",
            {"kind": "sweep", "sweep": "gammas", "dataset": "clevrtex"},
            {},
            {"best/ari_fg": 0.99},
        )
        small = {"model.image_size": 32, "train.seed": 4}
        plain = {
            "dataset": "scenes",
            "model": "min_cut_slots",
        }  # of an earlier version, without the tag of its set
        metrics = {
            "best/ari_fg": 0.95,
            "best/step": 3,
            "clevrtex_camo/test/ari_fg": 0.5,
            "clevrtex_camo/test/num_images": 10,
        }
        runs["plain"] = log(home, "plain", plain, small, metrics)
        runs["again"] = log(
            home,
            "again",
            {**plain, "set": "scenes"},
            {**small, "train.seed": 5},
            {"best/ari_fg": 0.95},
        )
        import_records("published", records())
    return home, runs


@pytest.fixture
def ids(made: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The ids of those runs, in a test that works in their home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(made[0]))
    return made[1]


def names(board: Any) -> list[str]:
    return [entry.name for entry in board.entries]


def test_a_board_for_each_set_the_best_first(ids):
    tex, scenes = leaderboards()
    assert (tex.dataset, tex.num_runs, tex.num_unranked) == ("clevrtex", 4, 1)
    assert names(tex) == ["g1", "attention", "g2", "g0"], (
        "neither the sweep itself, nor what was pruned, nor published runs"
    )
    assert [entry.rank for entry in tex.entries] == [1, 2, 3, 4]
    assert [entry.value for entry in tex.entries] == [0.8, 0.75, 0.7, 0.6]
    assert tex.entries[0].scores == {"ari_fg": 0.8, "mse": 250.0, "num_images": 1000.0}
    assert (tex.entries[0].step, tex.entries[0].seed, tex.entries[0].sweep) == (5, "1", "gammas")
    assert tex.entries[0].run_id == ids["g1"]
    assert tex.entries[0].seconds is not None
    assert 0 <= tex.entries[0].seconds < 60
    assert (scenes.dataset, names(scenes)) == ("scenes", ["plain", "again"]), "of equals the first"
    assert list(notes(tex)) == [
        "without a finite ari_fg: 1",
        "[a] Miyato et al. 2025, README of github.com/autonomousvision/akorn; "
        "clusters of features are scored, not masks of a decoder",
        "[b] the checkpoint that Pervez et al. published, evaluated by them",
        "[c] Pervez et al. 2023, Table 1",
        "Published rows are not ranked among ours. What differs in ours: split val, published on test; "
        "1,000 images, published on at least 5,000 (3 of 4 runs).",
    ]
    assert list(notes(scenes)) == []


def test_settings_are_those_that_differ(ids):
    (tex,) = leaderboards(dataset="clevrtex")
    assert [entry.settings for entry in tex.entries] == [
        {"learning_rate": "0.0004", "gamma": "0.1", "steps": "5"},
        {"learning_rate": "0.001", "steps": "9"},
        {"learning_rate": "0.0004", "gamma": "2.0", "steps": "5"},
        {"learning_rate": "0.0004", "gamma": "0.5", "steps": "5"},
    ]
    (ours,) = leaderboards(dataset="clevrtex", model="min-cut-slots")
    assert [entry.settings for entry in ours.entries] == [
        {"gamma": "0.1"},
        {"gamma": "2.0"},
        {"gamma": "0.5"},
    ]
    (two,) = leaderboards(dataset="clevrtex", limit=2)
    assert names(two) == ["g1", "attention"]
    assert "not shown: 2 more; --limit 4 shows all" in notes(two)


def test_a_name_that_two_settings_end_in_is_longer(ids, tmp_path):
    tags = {"dataset": "ambiguous", "model": "m"}
    for number in (1, 2):
        params = {
            "model.encoder.channels": number,
            "model.decoder.channels": 3,
            "model.decoder.start": number,
        }
        log(tmp_path, f"a{number}", tags, params, {"best/ari_fg": number / 10})
    (board,) = leaderboards(dataset="ambiguous")
    assert board.entries[0].settings == {"encoder.channels": "2", "start": "2"}
    tag_runs({entry.run_id: {"data_digest": entry.name} for entry in board.entries})
    (board,) = leaderboards(dataset="ambiguous")
    assert board.entries[1].settings == {"encoder.channels": "1", "start": "1", "data": "a1"}, (
        "other data make other runs"
    )


def test_the_smallest_error_is_best(ids):
    (tex,) = leaderboards("mse")
    assert names(tex) == ["g2", "g1", "g0"]
    assert [row.scores["mse"] for row in tex.published][:2] == [146, 207]
    assert tex.published[0].method == "MONet"


def test_evaluations_stand_on_the_board_of_their_set(ids):
    boards = {board.dataset: board for board in leaderboards(split="test")}
    assert names(boards["clevrtex"]) == ["g1", "g2", "g0"]
    camo = boards["clevrtex_camo"]
    assert [(entry.name, entry.value, entry.trained_on) for entry in camo.entries] == [
        ("plain", 0.5, "scenes"),
        ("g0", 0.4, "clevrtex"),
        ("g2", pytest.approx(0.3), "clevrtex"),
        ("g1", pytest.approx(0.2), "clevrtex"),
    ]
    assert [row.method for row in camo.published][:2] == [
        "Large AKOrN",
        "min-cut slots (the paper)",
    ]
    assert camo.differs == [
        "scored at 32 x 32, published at 128 x 128 (1 of 4 runs)",
        "the model was trained on scenes (1 of 4 runs)",
        "10 images, published on at least 1,000 (1 of 4 runs)",
    ]
    # As published, as far as the runs tell: they still have no rank in common.
    assert boards["clevrtex"].differs == []
    assert list(notes(boards["clevrtex"]))[-1] == (
        "Published rows are not ranked among ours. "
        "What differs in ours: as far as the runs tell, nothing but how the set was prepared."
    )


def test_a_table_says_all_of_it_and_no_more(ids):
    (camo,) = leaderboards(dataset="clevrtex_camo", split="test")
    header, lines = cells(camo)
    assert header == [
        "rank",
        "ARI-FG",
        "model",
        "trained on",
        "sweep",
        "seed",
        "step",
        "time",
        "run",
        "settings",
        "id",
    ]
    assert lines[0][:4] == ["1", "0.5000", "min_cut_slots", "scenes"]
    assert [line[0] for line in lines] == ["1", "2", "3", "4", *["-"] * len(camo.published)]
    by_run = {line[header.index("run")]: line for line in lines}
    assert by_run["published: Large AKOrN [a]"][1] == "0.7700"
    assert by_run["published: min-cut slots (the paper) [b]"][1] == "0.7550"
    assert by_run["published: DTI [b]"][1] == "0.7290"
    said = list(notes(camo))
    assert said[0].startswith("[a] Miyato et al. 2025")
    assert said[0].endswith("; clusters of features are scored, not masks of a decoder")
    assert said[1] == "[b] Pervez et al. 2023, Table 1"
    (tex,) = leaderboards(dataset="clevrtex")
    header, lines = cells(tex)
    assert header[:3] == ["rank", "ARI-FG", "MSE"]
    assert lines[0][1:3] == ["0.8000", "250.00"]
    assert next(line for line in lines if "published: DTI" in line[header.index("run")])[1:3] == [
        "0.7990",
        "438.00",
    ]
    (scenes,) = leaderboards(dataset="scenes")
    assert cells(scenes)[0] == ["rank", "ARI-FG", "model", "seed", "step", "time", "run", "id"], (
        "nothing that is empty or alike"
    )


def test_many_settings_are_cut_short(ids, tmp_path):
    for number in (1, 2):
        params = {f"model.a{which}": number / 3 for which in range(11)}
        log(
            tmp_path,
            f"many{number}",
            {"dataset": "many", "model": "m"},
            params,
            {"best/ari_fg": number / 10},
        )
    (board,) = leaderboards(dataset="many")
    assert len(board.entries[0].settings) == 11
    header, lines = cells(board)
    assert lines[0][header.index("settings")].endswith("a7=0.6667 and 3 more")


def test_of_a_sweep(ids):
    (board,) = leaderboards(sweep="gammas")
    assert names(board) == ["g1", "g2", "g0"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"metric": "ari_bg"},
            "metric 'ari_bg': no run has it on split 'val'. Scores that some have: ari_fg, mse, num_images.",
        ),
        (
            {"dataset": "clevr"},
            "--dataset clevr: no run has scores of its split 'val'. Sets that have some: ",
        ),
        (
            {"split": "held_out"},
            "metric 'ari_fg': no run has it on split 'held_out'. Score runs first: cutslots evaluate",
        ),
        (
            {"model": "slot-atention"},
            "--model slot-atention: no run of it is there. Did you mean 'slot_attention'?",
        ),
        ({"sweep": "gamma"}, "--sweep gamma: no run of it is there. Did you mean 'gammas'?"),
        ({"limit": 0}, "--limit is 0"),
    ],
)
def test_what_is_not_there(wanted: dict[str, Any], message: str, ids):
    with pytest.raises(InputError) as caught:
        leaderboards(**wanted)
    assert message in str(caught.value)


def test_an_empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match="the tracking store has no runs yet. Train something first"
    ):
        leaderboards()
    with pytest.raises(InputError, match="No sweep has been run yet"):
        leaderboards(sweep="gammas")
    assert not (tmp_path / "mlflow.db").exists(), "looking makes no store"
