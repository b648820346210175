"""A miniature citation graph in both raw formats, and instances of it."""

from pathlib import Path

import numpy as np
import pytest

from cutslots import cora

SMALL = cora.Options(instances=6, side=5, starts=3)


def graph(papers: int = 64, words: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Papers of 8 topics, each with its own words; most citations stay within a topic."""
    generator = np.random.default_rng(0)
    topic = np.arange(papers) % 8
    own = np.arange(words)[None] % 8 == topic[:, None]
    has = generator.random((papers, words)) < np.where(own, 0.6, 0.05)
    same = topic[:, None] == topic[None]
    close = generator.random((papers, papers)) < np.where(same, 0.5, 0.02)
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
    lines = [f"p{p} {' '.join(map(str, row.astype(int)))} Topic" for p, row in enumerate(words)]
    (folder / "cora.content").write_text("\n".join(lines) + "\n")
    # Both directions of one citation and a paper that cites itself, as in the public file.
    cites = [f"p{v}\tp{u}" for u, v in edges] + [f"p{edges[0, 0]}\tp{edges[0, 1]}", "p0\tp0"]
    (folder / "cora.cites").write_text("\n".join(cites) + "\n")
    return folder


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    return write_arrays(tmp_path / "arrays", *graph())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", *graph())


@pytest.fixture
def prepared(arrays: Path, tmp_path: Path) -> Path:
    cora.prepare(arrays, tmp_path / "prepared", SMALL)
    return tmp_path / "prepared"
