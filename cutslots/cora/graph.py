"""The Cora citation graph, read from either of its public forms: two text files, or one file of arrays."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutslots.errors import InputError
from cutslots.files import sha256

ARRAYS, CONTENT, CITES = "cora.npz", "cora.content", "cora.cites"


@dataclass(frozen=True)
class Graph:
    """Papers, the words they contain, and who cites whom.

    Attributes:
        words: bool (papers, words), whether a paper contains a word.
        edges: int64 (citations, 2), undirected: u < v, without repetitions, sorted.
        files: the SHA-256 of every file that was read, by name.
    """

    words: np.ndarray
    edges: np.ndarray
    files: dict[str, str]

    @property
    def num_papers(self) -> int:
        return len(self.words)

    def adjacency(self) -> np.ndarray:
        """Symmetric bool (papers, papers)."""
        found = np.zeros((self.num_papers, self.num_papers), bool)
        found[self.edges[:, 0], self.edges[:, 1]] = found[self.edges[:, 1], self.edges[:, 0]] = True
        return found


def read(raw: Path | str) -> Graph:
    """Read the graph from a folder, or from a file of it: `cora.npz`, else `cora.content` with `cora.cites` (LINQS).

    Papers are numbered in the order of the file. Self-citations and repeated citations are dropped.

    Raises:
        InputError: none of the files is there, or one is damaged; the message names the file and the field or line.
    """
    raw = Path(raw)
    if not raw.exists():
        raise InputError(
            f"raw {raw} does not exist. Give the folder of {ARRAYS}, or of {CONTENT} and {CITES}."
        )
    folder = raw if raw.is_dir() else raw.parent
    if raw.suffix == ".npz" or (raw.is_dir() and (raw / ARRAYS).exists()):
        path = raw / ARRAYS if raw.is_dir() else raw
        words, edges = _read_arrays(path)
        return Graph(words, _undirected(edges), {path.name: sha256(path)})
    content, cites = folder / CONTENT, folder / CITES
    missing = [path.name for path in (content, cites) if not path.is_file()]
    if missing or not (raw.is_dir() or raw in (content, cites)):
        raise InputError(
            f"raw {raw} has no {ARRAYS}, and no {' and no '.join(missing or [CONTENT])}. Give the folder of either."
        )
    papers, words = _read_content(content)
    edges = _read_cites(cites, papers)
    return Graph(words, _undirected(edges), {path.name: sha256(path) for path in (content, cites)})


def _undirected(edges: np.ndarray) -> np.ndarray:
    ordered = np.sort(edges.astype(np.int64).reshape(-1, 2), axis=1)
    return np.unique(ordered[ordered[:, 0] != ordered[:, 1]], axis=0)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    names = ("feature_indices", "feature_indptr", "num_features", "edges")
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in names if name in stored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(f"{path} cannot be read as arrays: {error}. Fetch it again.") from None
    for name in names:
        if name not in found:
            raise InputError(f"{path} has no field {name}. It needs {', '.join(names)}.")
        if found[name].dtype.kind not in "iu":
            raise InputError(f"{path}, field {name}: {found[name].dtype} instead of integers.")
    indices, starts, width, edges = (found[name].astype(np.int64) for name in names)
    if width.ndim or width < 1:
        raise InputError(f"{path}, field num_features: {width} instead of one number above 0.")
    if (
        starts.ndim != 1
        or len(starts) < 2
        or starts[0] != 0
        or starts[-1] != indices.size
        or (np.diff(starts) < 0).any()
    ):
        raise InputError(
            f"{path}, field feature_indptr: no row starts from 0 up to the {indices.size} feature_indices."
        )
    if indices.ndim != 1 or (indices.size and not 0 <= indices.min() <= indices.max() < width):
        raise InputError(f"{path}, field feature_indices: must lie in 0 to {width - 1}.")
    papers = len(starts) - 1
    if (
        edges.ndim != 2
        or edges.shape[1] != 2
        or (edges.size and not 0 <= edges.min() <= edges.max() < papers)
    ):
        raise InputError(
            f"{path}, field edges: must be pairs (n, 2) of paper numbers 0 to {papers - 1}; shape {edges.shape}."
        )
    words = np.zeros((papers, int(width)), bool)
    words[np.repeat(np.arange(papers), np.diff(starts)), indices] = True
    return words, edges


def _read_content(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """Paper ids in file order, and their words, from lines `id word word ... topic`."""
    papers: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for number, fields in _lines(path):
        where = f"{path} line {number}"
        words = fields[1:-1]
        if not words or (rows and len(words) != len(rows[0])):
            raise InputError(
                f"{where}: {len(words)} words, where {len(rows[0]) if rows else 'at least 1'} are due."
            )
        if not {"0", "1"}.issuperset(words):
            raise InputError(
                f"{where}: words must be 0 or 1, found {next(word for word in words if word not in '01')!r}."
            )
        if fields[0] in papers:
            raise InputError(f"{where}: paper {fields[0]} stands there a second time.")
        papers[fields[0]] = len(rows)
        rows.append(np.array(words) == "1")
    if not rows:
        raise InputError(f"{path} holds no papers. Fetch it again.")
    return papers, np.stack(rows)


def _read_cites(path: Path, papers: dict[str, int]) -> np.ndarray:
    """Pairs of paper numbers from lines `cited citing`."""
    edges: list[tuple[int, int]] = []
    for number, fields in _lines(path):
        if len(fields) != 2:
            raise InputError(
                f"{path} line {number}: {len(fields)} fields, where 2 paper ids are due."
            )
        unknown = [paper for paper in fields if paper not in papers]
        if unknown:
            raise InputError(f"{path} line {number}: paper {unknown[0]} is not in {CONTENT}.")
        edges.append((papers[fields[0]], papers[fields[1]]))
    return np.array(edges, np.int64).reshape(-1, 2)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text file. Give the unpacked file.") from None
    return [
        (number, line.split())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]


def digest(*arrays: np.ndarray) -> str:
    """12 hexadecimal digits that stand for the arrays' content, types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]
