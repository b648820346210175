"""From raw files to instances."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from cutslots import cora
from cutslots.cli import main
from cutslots.cora.graph import read
from cutslots.cora.instances import balanced_max_cut, even_parts, make
from cutslots.errors import InputError
from tests.cora.conftest import SMALL, graph, write_arrays

RAW = Path(__file__).parents[2].parent / "shared" / "data" / "cora"


def test_both_formats_give_the_same_graph(arrays, texts):
    words, edges = graph()
    for raw in (arrays, arrays / "cora.npz", texts, texts / "cora.content", texts / "cora.cites"):
        result = read(raw)
        np.testing.assert_array_equal(result.words, words)
        np.testing.assert_array_equal(result.edges, edges)


def test_instances_have_the_words_and_edges_of_the_graph(arrays):
    words, edges = graph()
    made, counts = make(read(arrays), SMALL)
    assert made.edges.shape == (6, 5, 5)
    assert len(set(made.papers.ravel().tolist())) == made.papers.size == 60
    np.testing.assert_array_equal(made.words, words[made.papers])
    cited = {tuple(edge) for edge in edges.tolist()}
    for number, u, v in itertools.product(range(6), range(5), range(5)):
        pair = sorted((int(made.papers[number, 0, u]), int(made.papers[number, 1, v])))
        assert made.edges[number, u, v] == (tuple(pair) in cited)
    assert counts["papers_left_out"] == 4
    assert counts["citations_crossing"] == made.edges.sum()
    assert made.edges.sum() <= counts["citations_inside_parts"] <= counts["citations"]


def test_preparing_is_deterministic(arrays, texts, tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    manifest = cora.prepare(arrays, one, SMALL)
    assert manifest == cora.prepare(arrays, two, SMALL)
    assert (one / "instances.npz").read_bytes() == (two / "instances.npz").read_bytes()
    digests = [manifest["digest"], cora.prepare(texts, three, SMALL)["digest"]]
    assert digests == [cora.load(one).digest] * 2


def test_even_parts_move_the_loosest_paper():
    # Part 0 is too large: 3 has no citations in it. Part 1 is too small and takes 3, cited by 4.
    adjacency = np.zeros((6, 6), bool)
    for u, v in [(0, 1), (1, 2), (3, 4), (4, 5)]:
        adjacency[u, v] = adjacency[v, u] = True
    parts = even_parts(adjacency, np.array([0, 0, 0, 0, 1, 1]), 2, 3)
    assert parts.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_max_cut_finds_the_best_half():
    generator = np.random.default_rng(0)
    for _ in range(5):
        upper = np.triu(generator.random((8, 8)) < 0.4, 1)
        adjacency = upper | upper.T
        halves = [np.isin(np.arange(8), half) for half in itertools.combinations(range(8), 4)]
        best = max(adjacency[half][:, ~half].sum() for half in halves)
        half = balanced_max_cut(adjacency, 20, generator)
        assert half.sum() == 4
        assert half[0]
        assert adjacency[half][:, ~half].sum() == best


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
def test_damaged_arrays_are_refused(tmp_path, field, value):
    changed = {field: value}
    if field == "feature_indices":
        changed["feature_indptr"] = np.r_[0, [2] * 64]
    raw = write_arrays(tmp_path / "raw", *graph(), **changed)
    with pytest.raises(InputError, match="cora.npz") as caught:
        read(raw)
    assert field in str(caught.value) or value.dtype == object


def test_missing_and_truncated_files_are_refused(arrays, texts, tmp_path):
    path = arrays / "cora.npz"
    path.write_bytes(path.read_bytes()[:500])
    (texts / "cora.cites").unlink()
    for raw, name in ((arrays, "cora.npz"), (tmp_path / "none", "none"), (texts, "cora.cites")):
        with pytest.raises(InputError, match=name):
            read(raw)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("cora.content", "p90 1 0 Topic", "32 fields, 'p90' has 4"),
        ("cora.content", "p90 " + "2 " * 30 + "Topic", "p90 .*'2'"),
        ("cora.content", "p3 " + "1 " * 30 + "Topic", "duplicate paper id p3"),
        ("cora.cites", "p1 p2 p3", "3"),
        ("cora.cites", "p1 p999", "p999"),
    ],
)
def test_damaged_texts_are_refused(texts, file, line, message):
    with open(texts / file, "a") as opened:
        opened.write(line + "\n")
    with pytest.raises(InputError, match=f"{file}.*{message}"):
        read(texts)


def test_unusable_folders_are_refused(arrays, prepared, tmp_path):
    other = cora.Options(instances=3, side=4)
    with pytest.raises(InputError, match="--overwrite"):
        cora.prepare(arrays, prepared, other)
    manifest = cora.prepare(arrays, prepared, other, overwrite=True)
    assert manifest["digest"] == cora.load(prepared).digest
    with open(prepared / "instances.npz", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="instances.npz is missing or damaged"):
        cora.load(prepared)
    (prepared / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="manifest.json is not usable"):
        cora.load(prepared)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        cora.prepare(arrays, tmp_path / "mine", SMALL)
    with pytest.raises(InputError, match="manifest.json"):
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
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.skipif(not RAW.exists(), reason="the Cora graph is not beside the repository")
def test_the_real_graph():
    made, counts = make(read(RAW), cora.Options(starts=1))
    assert made.words.shape == (27, 2, 50, 1433)
    assert (counts["papers"], counts["citations"], counts["papers_left_out"]) == (2708, 5278, 8)
    assert counts["citations_crossing"] > 3000
    assert 35 < made.optimum().mean() < 50
