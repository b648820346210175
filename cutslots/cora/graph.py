"""The Cora citation graph from either of its public forms: two text files, or one of arrays."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from cutslots.errors import InputError
from cutslots.files import sha256

ARRAYS, CONTENT, CITES = "cora.npz", "cora.content", "cora.cites"
FIELDS = ("feature_indices", "feature_indptr", "num_features", "edges")


@dataclass(frozen=True)
class Graph:
    """Papers, the words they contain, and who cites whom.

    Attributes:
        words: bool (papers, words), whether a paper contains a word.
        edges: int64 (citations, 2), undirected: u < v, without repetitions, sorted.
        files: the SHA-256 of every raw file, by name.
    """

    words: np.ndarray
    edges: np.ndarray
    files: dict[str, str]


def read(raw: Path | str) -> Graph:
    """Read the graph from a folder or one of its files.

    Reads `cora.npz` if it exists, else `cora.content` and `cora.cites` (LINQS). Papers are numbered
    in file order; self-citations and repeated citations are dropped.

    Raises:
        InputError: a file is missing or damaged; names the file and its field or line.
    """
    raw = Path(raw)
    if raw.suffix == ".npz" or (raw / ARRAYS).exists():
        paths = [raw / ARRAYS if raw.is_dir() else raw]
        words, edges = _read_arrays(paths[0])
    else:
        folder = raw if raw.is_dir() else raw.parent
        paths = [folder / CONTENT, folder / CITES]
        if missing := [str(path) for path in (raw, *paths) if not path.exists()]:
            raise InputError(
                f"{' and '.join(missing)} do not exist. "
                f"Give the folder with {ARRAYS}, or {CONTENT} and {CITES}."
            )
        words, edges = _read_texts(*paths)
    edges = np.sort(edges.astype(np.int64).reshape(-1, 2), axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    return Graph(words, edges, {path.name: sha256(path) for path in paths})


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            indices, starts, width, edges = (
                stored[name].astype(np.int64, casting="same_kind") for name in FIELDS
            )
        shape = len(starts) - 1, width.item()
        if starts[-1] != len(indices):
            raise ValueError(f"feature_indptr must end with {len(indices)}, got {starts[-1]}")
        words = sp.csr_array((np.ones(len(indices), bool), indices, starts), shape)
        words.check_format()
        if edges.shape[1:] != (2,) or (
            edges.size and not 0 <= edges.min() <= edges.max() < shape[0]
        ):
            raise ValueError(f"edges must be pairs (n, 2) of papers 0 to {shape[0] - 1}")
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} must have the integer arrays {', '.join(FIELDS)}: {error}. Fetch it again."
        ) from None
    return words.toarray(), edges


def _read_texts(content: Path, cites: Path) -> tuple[np.ndarray, np.ndarray]:
    """From lines `id word word ... topic` with words 0 or 1, and lines `cited citing`."""
    tables: list[list[list[str]]] = []
    for path in (content, cites):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a text file. Give the unpacked file.") from None
        rows = [line.split() for line in lines if line.strip()]
        fields = 2 if path == cites else max(3, len(rows[0]) if rows else 0)
        for row in rows or [[""]]:
            if len(row) != fields:
                got = f"{row[0]!r} has {len(row)}"
                raise InputError(f"{path}: every line must have {fields} fields, {got}.")
        tables.append(rows)
    numbers: dict[str, int] = {}
    for paper, *words, _ in tables[0]:
        if wrong := set(words) - {"0", "1"}:
            raise InputError(f"{content}: words must be 0 or 1, paper {paper} has {min(wrong)!r}.")
        if paper in numbers:
            raise InputError(f"{content}: duplicate paper id {paper}.")
        numbers[paper] = len(numbers)
    if unknown := {paper for pair in tables[1] for paper in pair} - set(numbers):
        raise InputError(f"{cites}: paper {min(unknown)} is not in {CONTENT}.")
    edges = np.array([[numbers[paper] for paper in pair] for pair in tables[1]])
    return np.array([row[1:-1] for row in tables[0]]) == "1", edges
