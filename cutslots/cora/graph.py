"""The Cora citation graph from either of its public forms: two text files, or one of arrays."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

    def adjacency(self) -> np.ndarray:
        """Symmetric bool (papers, papers)."""
        adjacency = np.zeros((len(self.words), len(self.words)), bool)
        u, v = self.edges.T
        adjacency[u, v] = adjacency[v, u] = True
        return adjacency


def read(raw: Path | str) -> Graph:
    """Read the graph from a folder or one of its files.

    Reads `cora.npz` if it exists, else `cora.content` and `cora.cites` (LINQS). Papers are numbered
    in file order; self-citations and repeated citations are dropped.

    Raises:
        InputError: a file is missing or damaged; names the file and its field or line.
    """
    raw = Path(raw)
    names = f"{ARRAYS}, or {CONTENT} and {CITES}"
    if not raw.exists():
        raise InputError(f"raw {raw} does not exist. Give the folder with {names}.")
    folder = raw if raw.is_dir() else raw.parent
    if raw.suffix == ".npz" or (raw.is_dir() and (raw / ARRAYS).exists()):
        paths = [folder / ARRAYS if raw.is_dir() else raw]
        words, edges = _read_arrays(paths[0])
    else:
        paths = [folder / CONTENT, folder / CITES]
        missing = [path.name for path in paths if not path.is_file()]
        if missing or not (raw.is_dir() or raw in paths):
            raise InputError(
                f"raw {raw} has no {' and no '.join(missing or [CONTENT])}. Give {names}."
            )
        papers, words = _read_content(paths[0])
        edges = _read_cites(paths[1], papers)
    edges = np.sort(edges.astype(np.int64).reshape(-1, 2), axis=1)
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    return Graph(words, edges, {path.name: sha256(path) for path in paths})


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            fields = {name: stored[name] for name in FIELDS if name in stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(f"{path} cannot be read as arrays: {error}. Fetch it again.") from None
    for name in FIELDS:
        if name not in fields:
            raise InputError(f"{path} has no field {name}. It must have {', '.join(FIELDS)}.")
        if fields[name].dtype.kind not in "iu":
            raise InputError(f"{path}: {name} must be integers, got {fields[name].dtype}.")
    indices, starts, width, edges = (fields[name].astype(np.int64) for name in FIELDS)
    if width.ndim or width < 1:
        raise InputError(f"{path}: num_features must be one positive number, got {width}.")
    starts_of_rows = starts.ndim == 1 and len(starts) > 1 and not (np.diff(starts) < 0).any()
    if not starts_of_rows or starts[0] != 0 or starts[-1] != indices.size:
        count = indices.size
        raise InputError(
            f"{path}: feature_indptr must rise from 0 to {count}, the feature_indices."
        )
    if indices.ndim != 1 or (indices.size and not 0 <= indices.min() <= indices.max() < width):
        raise InputError(f"{path}: feature_indices must be in 0 to {width - 1}.")
    papers = len(starts) - 1
    pairs = edges.ndim == 2 and edges.shape[1] == 2
    if not pairs or (edges.size and not 0 <= edges.min() <= edges.max() < papers):
        raise InputError(f"{path}: edges must be pairs (n, 2) of papers 0 to {papers - 1}.")
    words = np.zeros((papers, int(width)), bool)
    words[np.repeat(np.arange(papers), np.diff(starts)), indices] = True
    return words, edges


def _read_content(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """Paper ids in file order, and their words, from lines `id word word ... topic`."""
    papers: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for number, (paper, *words) in _lines(path):
        words, at = words[:-1], f"{path} line {number}"
        expected = len(rows[0]) if rows else "at least 1"
        if not words or (rows and len(words) != len(rows[0])):
            raise InputError(f"{at}: expected {expected} words, got {len(words)}.")
        if wrong := set(words) - {"0", "1"}:
            raise InputError(f"{at}: words must be 0 or 1, got {min(wrong)!r}.")
        if paper in papers:
            raise InputError(f"{at}: duplicate paper id {paper}.")
        papers[paper] = len(rows)
        rows.append(np.array(words) == "1")
    if not rows:
        raise InputError(f"{path} contains no papers. Fetch it again.")
    return papers, np.stack(rows)


def _read_cites(path: Path, papers: dict[str, int]) -> np.ndarray:
    """Pairs of paper numbers from lines `cited citing`."""
    edges = []
    for number, ids in _lines(path):
        if len(ids) != 2:
            raise InputError(f"{path} line {number}: expected 2 paper ids, got {len(ids)}.")
        for paper in ids:
            if paper not in papers:
                raise InputError(f"{path} line {number}: paper {paper} is not in {CONTENT}.")
        edges.append([papers[paper] for paper in ids])
    return np.array(edges, np.int64).reshape(-1, 2)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of the lines that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file. Give the unpacked file.") from None
    return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
