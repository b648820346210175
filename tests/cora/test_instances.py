"""From raw files to instances."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from cutslots import cora
from cutslots.cli import main
from cutslots.cora.graph import read
from cutslots.cora.instances import balanced_max_cut, even_parts, make, matched
from cutslots.errors import InputError
from tests.cora.conftest import SMALL, graph, write_arrays

RAW = Path(__file__).parents[2].parent / "shared" / "data" / "cora"


def test_both_formats_are_one_graph(arrays, texts):
    words, edges = graph()
    for raw in (arrays, arrays / "cora.npz", texts, texts / "cora.content", texts / "cora.cites"):
        found = read(raw)
        np.testing.assert_array_equal(found.words, words)
        np.testing.assert_array_equal(found.edges, edges)


def test_instances_hold_the_graph_s_words_and_edges(arrays):
    words, edges = graph()
    made, about = make(read(arrays), SMALL)
    assert made.edges.shape == (6, 5, 5)
    assert len(set(made.papers.ravel().tolist())) == made.papers.size == 60
    cited = set(map(tuple, edges.tolist()))
    for papers, has, chosen in zip(made.papers, made.words, made.edges, strict=True):
        np.testing.assert_array_equal(has, words[papers])
        for u, v in itertools.product(range(5), range(5)):
            assert chosen[u, v] == (tuple(sorted((int(papers[0, u]), int(papers[1, v])))) in cited)
    assert about["papers_left_out"] == 4
    assert (
        about["citations_crossing"]
        == made.edges.sum()
        <= about["citations_inside_parts"]
        <= about["citations"]
    )


def test_the_same_twice_and_other_options_give_others(arrays, texts, tmp_path):
    manifests = [
        cora.prepare(raw, tmp_path / name, settings)
        for raw, name, settings in [
            (arrays, "one", SMALL),
            (arrays, "two", SMALL),
            (texts, "three", SMALL),
            (arrays, "four", cora.Options(instances=6, side=4)),
        ]
    ]
    one, two, three, four = manifests
    assert one == two
    assert (tmp_path / "one" / "instances.npz").read_bytes() == (
        tmp_path / "two" / "instances.npz"
    ).read_bytes()
    assert one["digest"] == three["digest"] != four["digest"]
    assert cora.load(tmp_path / "one").digest == one["digest"]


def test_even_parts_follow_the_rule():
    # Part 0 has one paper too many: 3, without citations inside it. Part 1 lacks one, and takes 3, cited by 4.
    adjacency = np.zeros((6, 6), bool)
    for u, v in [(0, 1), (1, 2), (3, 4), (4, 5)]:
        adjacency[u, v] = adjacency[v, u] = True
    found = even_parts(adjacency, np.array([0, 0, 0, 0, 1, 1]), 2, 3)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_max_cut_finds_the_best_half():
    generator = np.random.default_rng(0)
    for _ in range(5):
        upper = np.triu(generator.random((8, 8)) < 0.4, 1)
        adjacency = upper | upper.T
        halves = [np.isin(np.arange(8), half) for half in itertools.combinations(range(8), 4)]
        best = max(adjacency[half][:, ~half].sum() for half in halves)
        found = balanced_max_cut(adjacency, 20, generator)
        assert found.sum() == 4
        assert found[0]
        assert adjacency[found][:, ~found].sum() == best


def test_matched_is_the_best_of_all_matchings():
    generator = np.random.default_rng(0)
    for _ in range(10):
        weights, edges = generator.normal(size=(4, 4)), generator.random((4, 4)) < 0.4
        best = max(
            itertools.permutations(range(4)), key=lambda order: sum(weights[range(4), order])
        )
        assert matched(weights, edges) == edges[range(4), best].sum()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("edges", np.array([[0, 64]])),
        ("edges", np.arange(6)),
        ("edges", np.array([[0.5, 1.0]])),
        ("feature_indptr", np.arange(65)),
        ("feature_indices", np.array([0, 40])),
        ("num_features", np.array(0)),
        ("num_features", np.array([30, 30])),
        ("edges", np.array([[0, 1]], dtype=object)),
    ],
)
def test_damaged_arrays_are_named(tmp_path, field, value):
    changed = {field: value}
    if field == "feature_indices":
        changed["feature_indptr"] = np.r_[0, [2] * 64]
    raw = write_arrays(tmp_path / "raw", *graph(), **changed)
    with pytest.raises(InputError, match="cora.npz") as caught:
        read(raw)
    assert field in str(caught.value) or value.dtype == object


def test_cut_off_and_absent_files_are_named(arrays, texts, tmp_path):
    path = arrays / "cora.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cora.npz cannot be read"):
        read(arrays)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")
    (texts / "cora.cites").unlink()
    with pytest.raises(InputError, match="no cora.cites"):
        read(texts)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("cora.content", "p90 1 0 Topic", "line 65: 2 words, where 30"),
        ("cora.content", "p90 " + "2 " * 30 + "Topic", "line 65: words must be 0 or 1, found '2'"),
        (
            "cora.content",
            "p3 " + "1 " * 30 + "Topic",
            "line 65: paper p3 stands there a second time",
        ),
        ("cora.cites", "p1 p2 p3", "3 fields"),
        ("cora.cites", "p1 p999", "paper p999 is not in cora.content"),
    ],
)
def test_damaged_texts_are_named(texts, file, line, message):
    with open(texts / file, "a") as opened:
        opened.write(line + "\n")
    with pytest.raises(InputError, match=f"{file} .*{message}"):
        read(texts)


def test_the_prepared_folder_is_guarded(arrays, prepared, tmp_path):
    other = cora.Options(instances=3, side=4)
    with pytest.raises(InputError, match="--overwrite"):
        cora.prepare(arrays, prepared, other)
    assert (
        cora.prepare(arrays, prepared, other, overwrite=True)["digest"]
        == cora.load(prepared).digest
    )
    with open(prepared / "instances.npz", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="instances.npz is damaged"):
        cora.load(prepared)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        cora.prepare(arrays, tmp_path / "mine", SMALL)
    with pytest.raises(InputError, match="has no manifest.json"):
        cora.load(tmp_path / "mine")
    with pytest.raises(InputError, match="64 papers"):
        cora.prepare(arrays, tmp_path / "many", cora.Options())


def test_the_command_prepares(arrays, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "cora", str(arrays), str(out), "--instances", "6", "--side", "5"]) == 0
    assert "6 instances of 5 x 5" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["options"] == {"instances": 6, "side": 5, "seed": 0, "starts": 20}
    assert main(["prepare", "cora", str(tmp_path / "nowhere"), str(out)]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not RAW.exists(), reason="the Cora graph is not beside the repository")
def test_the_real_graph():
    made, about = make(read(RAW), cora.Options(starts=1))
    assert made.words.shape == (27, 2, 50, 1433)
    assert (about["papers"], about["citations"], about["papers_left_out"]) == (2708, 5278, 8)
    assert about["citations_crossing"] > 3000
    assert 35 < made.optimum().mean() < 50
