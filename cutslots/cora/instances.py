"""Bipartite matching instances from the citation graph.

METIS (recursive bisection, the best of ten partitions) splits the graph into parts of about 100
papers. Every larger part gives up, one by one, the paper with the fewest citations inside it; then
every smaller part takes, one by one, the given-up paper with the most citations into it (ties: the
lowest paper number). The rest, 8 of 2,708 papers, is left out. Balanced max-cut splits each part
into two sides of 50 that many citations cross: swap the best pair until none helps; the best of
several seeded starts is kept. The side with the lowest paper number is the left one.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cutslots import files
from cutslots.cora.graph import Graph, read
from cutslots.errors import InputError
from cutslots.options import option

INSTANCES, MANIFEST, SCHEMA_VERSION = "instances.npz", "manifest.json", 1
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Options:
    """What determines the instances of a graph."""

    instances: int = option(27, "number of instances", low=1)
    side: int = option(50, "papers on each side of an instance", low=1)
    seed: int = option(0, "of METIS and of the starts of the max-cut search", low=0)
    starts: int = option(20, "random starts of the max-cut search; the best is kept", low=1)


@dataclass(frozen=True)
class Instances:
    """Instances of the matching problem.

    Attributes:
        words: bool (instances, 2, side, words), the words of the left and the right papers.
        edges: bool (instances, side, side), whether left paper u and right paper v cite each other.
        papers: int32 (instances, 2, side), the papers' numbers in the graph.
    """

    words: np.ndarray
    edges: np.ndarray
    papers: np.ndarray

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits, a hash of the arrays."""
        digest = hashlib.sha256()
        for array in (self.words, self.edges, self.papers):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def optimum(self) -> np.ndarray:
        """float (instances,): the most citations that a matching of the true graph can have."""
        return np.array([matched(edges.astype(float), edges) for edges in self.edges])


def matched(weights: np.ndarray, edges: np.ndarray) -> float:
    """True edges in the matching of largest weight: the matching LP, solved exactly."""
    left, right = linear_sum_assignment(weights, maximize=True)
    return float(edges[left, right].sum())


def prepare(
    raw: Path | str,
    out: Path | str,
    settings: Options,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the instances of the graph in `raw` to `out/instances.npz` and `out/manifest.json`.

    Args:
        overwrite: replace other instances in `out`.
        progress: called as progress("instances", finished, total).

    Returns: the manifest.

    Raises:
        InputError: a raw file is missing or damaged, the graph has too few papers, pymetis is not
            installed, or `out` contains other instances or other files.
    """
    out = Path(out)
    graph = read(raw)
    instances, counts = make(graph, settings, progress)
    names = sorted(path.name for path in out.glob("*") if path.name[0] != ".")
    if others := [name for name in names if name not in (INSTANCES, MANIFEST)]:
        raise InputError(f"out {out} contains {', '.join(others[:3])}. Give a new or empty folder.")
    old = _read_manifest(out)
    if old and old.get("digest") != instances.digest and not overwrite:
        digests = f"digest {old.get('digest')}, not {instances.digest}"
        raise InputError(f"{out} contains other instances, {digests}. Use --overwrite.")
    with files.atomic(out / INSTANCES) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **vars(instances))
    packages = ("cutslots", "pymetis", "numpy")
    manifest = {
        "source": "cora",
        "schema_version": SCHEMA_VERSION,
        "digest": instances.digest,
        "raw": graph.files,
        "options": asdict(settings),
        "counts": counts,
        "optimum_mean": float(instances.optimum().mean()),
        "random_mean": float(instances.edges.sum((1, 2)).mean() / settings.side),
        "files": {INSTANCES: files.sha256(out / INSTANCES)},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    files.write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def load(directory: Path | str) -> Instances:
    """Read the instances that `prepare` wrote.

    Raises:
        InputError: the folder or one of its files is missing, damaged, or of another dataset.
    """
    again = f"Make it with: cutslots prepare cora RAW {directory} --overwrite"
    manifest, path = _read_manifest(Path(directory)), Path(directory) / INSTANCES
    if manifest is None:
        raise InputError(f"data folder {directory} has no {MANIFEST}. {again}")
    if not path.is_file() or files.sha256(path) != manifest["files"].get(INSTANCES):
        raise InputError(f"{path} is missing or damaged. {again}")
    with np.load(path, allow_pickle=False) as stored:
        return Instances(stored["words"], stored["edges"], stored["papers"])


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, _ = (manifest["source"], manifest["schema_version"]), manifest["files"]
        if kind != ("cora", SCHEMA_VERSION):
            raise ValueError(f"it must be of cora, version {SCHEMA_VERSION}, got {kind}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not usable ({error!r}). Use another folder.") from None
    return manifest


def make(
    graph: Graph, settings: Options, progress: Progress | None = None
) -> tuple[Instances, dict[str, int]]:
    """The instances of a graph, and counts of the papers and citations that each step kept."""
    count, side = settings.instances, settings.side
    if len(graph.words) < 2 * count * side:
        raise InputError(
            f"{count} instances of {side} x {side} need {2 * count * side} papers, the graph has "
            f"{len(graph.words)} papers. Choose fewer instances or a smaller side."
        )
    adjacency = np.zeros((len(graph.words), len(graph.words)), bool)
    adjacency[tuple(graph.edges.T)] = adjacency[tuple(graph.edges.T[::-1])] = True
    partition = metis(adjacency, count, settings.seed)
    parts = even_parts(adjacency, partition, count, 2 * side)
    papers = np.empty((count, 2, side), np.int32)
    for number, members in enumerate(parts):
        generator = np.random.default_rng([settings.seed, number])
        left = balanced_max_cut(adjacency[np.ix_(members, members)], settings.starts, generator)
        papers[number] = members[left], members[~left]
        if progress:
            progress("instances", number + 1, count)
    edges = adjacency[papers[:, 0, :, None], papers[:, 1, None, :]]
    part_sizes = np.bincount(partition, minlength=count)
    counts = {
        "papers": len(graph.words),
        "words": graph.words.shape[1],
        "citations": len(graph.edges),
        "citations_inside_metis_parts": int((np.diff(partition[graph.edges]) == 0).sum()),
        "smallest_metis_part": int(part_sizes.min()),
        "largest_metis_part": int(part_sizes.max()),
        "papers_left_out": len(graph.words) - 2 * count * side,
        "citations_inside_parts": sum(int(adjacency[np.ix_(p, p)].sum()) // 2 for p in parts),
        "citations_crossing": int(edges.sum()),
    }
    return Instances(graph.words[papers], edges, papers), counts


def metis(adjacency: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """int (papers,), the part of every paper: METIS's smallest cut of ten partitions.

    Recursive bisection keeps parts to nearly equal sizes (100 and 101 on Cora, 97 to 103 with the
    k-way method) at nearly the same cut.
    """
    try:
        import pymetis
    except ImportError:
        raise InputError("pymetis is not installed. Run: pip install 'cutslots[cora]'") from None
    neighbours = [row.nonzero()[0].tolist() for row in adjacency]
    options = pymetis.Options(seed=seed, ncuts=10)
    return np.array(pymetis.part_graph(parts, neighbours, recursive=True, options=options)[1])


def even_parts(adjacency: np.ndarray, partition: np.ndarray, parts: int, size: int) -> np.ndarray:
    """int (parts, size), ascending paper numbers of parts of one size, by the rule above."""
    members = [set(np.flatnonzero(partition == part).tolist()) for part in range(parts)]
    pool: set[int] = set()

    def citations(paper: int, part: set[int]) -> int:
        return int(adjacency[paper, list(part)].sum())

    for part in members:
        while len(part) > size:
            pool.add(min(part, key=lambda paper: (citations(paper, part), paper)))
            part -= pool
    for part in members:
        while len(part) < size:
            part.add(min(pool, key=lambda paper: (-citations(paper, part), paper)))
            pool -= part
    return np.array([sorted(part) for part in members])


def balanced_max_cut(
    adjacency: np.ndarray, starts: int, generator: np.random.Generator
) -> np.ndarray:
    """bool (n,), the half of the vertices that the most edges leave. Vertex 0 is in it."""
    counts, best, most = adjacency.astype(np.int64), None, -1
    for _ in range(starts):
        sides = np.where(generator.permutation(len(counts)) % 2, 1, -1)
        while True:
            # A vertex gains its neighbours on its own side and loses those across; an edge between
            # the two swapped vertices stays cut, though both count it as lost.
            gain = sides * (counts @ sides)
            left, right = np.flatnonzero(sides > 0), np.flatnonzero(sides < 0)
            swap = gain[left, None] + gain[None, right] + 2 * counts[np.ix_(left, right)]
            u, v = np.unravel_index(swap.argmax(), swap.shape)
            if swap[u, v] <= 0:
                break
            sides[left[u]], sides[right[v]] = -1, 1
        crossing = int(counts[np.ix_(left, right)].sum())
        if crossing > most:
            best, most = sides * sides[0] > 0, crossing
    assert best is not None
    return best
