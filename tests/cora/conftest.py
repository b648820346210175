"""A miniature citation graph in both raw formats, and instances of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cutslots import cora


def graph(papers: int = 64, words: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Papers of 8 topics, each with its own words; most citations stay within a topic."""
    generator = np.random.default_rng(0)
    topic = np.arange(papers) % 8
    has = generator.random((papers, words)) < np.where(
        np.arange(words)[None] % 8 == topic[:, None], 0.6, 0.05
    )
    close = generator.random((papers, papers)) < np.where(topic[:, None] == topic[None], 0.5, 0.02)
    return has, np.argwhere(np.triu(close, 1))


def write_arrays(
    folder: Path, words: np.ndarray, edges: np.ndarray, /, **changed: np.ndarray
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "feature_indices": words.nonzero()[1].astype(np.int16),
        "feature_indptr": np.r_[0, words.sum(1).cumsum()].astype(np.int32),
        "num_features": np.int64(words.shape[1]),
        "edges": edges.astype(np.int32),
    }
    np.savez(folder / "cora.npz", **{**fields, **changed})
    return folder


def write_texts(folder: Path, words: np.ndarray, edges: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"p{paper}\t" + "\t".join(map(str, row.astype(int))) + "\tTopic"
        for paper, row in enumerate(words)
    ]
    (folder / "cora.content").write_text("\n".join(lines) + "\n")
    # Both directions of one citation and a paper that cites itself, as the public file has them.
    cites = [f"p{v}\tp{u}" for u, v in edges] + [f"p{edges[0, 0]}\tp{edges[0, 1]}", "p0\tp0"]
    (folder / "cora.cites").write_text("\n".join(cites) + "\n")
    return folder


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    return write_arrays(tmp_path / "arrays", *graph())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", *graph())


@pytest.fixture(autouse=True)
def one_thread():
    """As the experiment's processes run: steps this small only wait for further threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = cora.Options(instances=6, side=5, starts=3)


@pytest.fixture
def prepared(arrays: Path, tmp_path: Path) -> Path:
    cora.prepare(arrays, tmp_path / "prepared", SMALL)
    return tmp_path / "prepared"
