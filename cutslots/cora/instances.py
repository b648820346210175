"""Bipartite matching instances from the citation graph.

The graph is partitioned by METIS (recursive bisection, the best of ten partitions) into parts of about 100 papers. A part that came
out larger gives up, one by one, the paper with the fewest citations inside the part; then a part that came out smaller takes,
one by one, the given-up paper with the most citations into it (ties: the lowest paper number). What nobody takes is left out, 8
papers of 2,708. Each part is split into two sides of 50 that many citations cross: balanced max-cut by swapping, always the best
swap, until none helps, the best of several seeded starts. The side with the lowest paper number is the left one.
"""

import importlib.metadata
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cutslots import files
from cutslots.cora.graph import Graph, digest, read
from cutslots.errors import InputError
from cutslots.options import check, option

INSTANCES, MANIFEST, SCHEMA_VERSION = "instances.npz", "manifest.json", 1


@dataclass(frozen=True)
class Options:
    """What decides the instances of a graph."""

    instances: int = option(27, "number of instances", low=1)
    side: int = option(50, "papers on each side of an instance", low=1)
    seed: int = option(0, "of METIS and of the starts of the max-cut search", low=0)
    starts: int = option(20, "random starts of the max-cut search; the best is kept", low=1)


@dataclass(frozen=True)
class Instances:
    """Instances of the matching problem.

    Attributes:
        words: bool (instances, 2, side, words), the words of the papers of the left and the right side.
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
        """12 hexadecimal digits that stand for the content."""
        return digest(self.words, self.edges, self.papers)

    def optimum(self) -> np.ndarray:
        """float (instances,): the most citations that one matching of the true graph can hold."""
        return np.array([matched(each.astype(float), each) for each in self.edges])


def matched(weights: np.ndarray, edges: np.ndarray) -> float:
    """How many true edges the matching of largest weight holds: the matching LP, solved exactly."""
    left, right = linear_sum_assignment(weights, maximize=True)
    return float(edges[left, right].sum())


def prepare(
    raw: Path | str,
    out: Path | str,
    settings: Options | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Make the instances of the graph in `raw` and write `instances.npz` and `manifest.json` to the folder `out`.

    Args:
        progress: called as progress("instances", finished, of).

    Returns: the manifest.

    Raises:
        InputError: a raw file is absent or damaged, the graph has too few papers, pymetis is not installed, or `out` holds
            something else (other instances are replaced with `overwrite`).
    """
    settings, out = settings or Options(), Path(out)
    check(settings)
    graph = read(raw)
    made, about = make(graph, settings, progress)
    _refuse(out, made.digest, overwrite)
    with files.atomic(out / INSTANCES) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, words=made.words, edges=made.edges, papers=made.papers)
    manifest = {
        "source": "cora",
        "schema_version": SCHEMA_VERSION,
        "digest": made.digest,
        "raw": graph.files,
        "options": asdict(settings),
        "counts": about,
        "optimum_mean": float(made.optimum().mean()),
        "random_mean": float(made.edges.sum((1, 2)).mean() / settings.side),
        "files": {INSTANCES: files.sha256(out / INSTANCES)},
        "versions": {
            name: importlib.metadata.version(name) for name in ("cutslots", "pymetis", "numpy")
        },
    }
    files.write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def load(directory: Path | str) -> Instances:
    """The instances that `prepare` wrote.

    Raises:
        InputError: the folder or one of its files is absent, damaged, or of something else.
    """
    directory = Path(directory)
    again = "Make it with: cutslots prepare cora RAW OUT --overwrite"
    manifest = _manifest(directory)
    if manifest is None:
        raise InputError(f"data folder {directory} has no {MANIFEST}. {again}")
    path = directory / INSTANCES
    if not path.is_file() or files.sha256(path) != manifest["files"].get(INSTANCES):
        raise InputError(
            f"{path} is {'damaged: its SHA-256 is not the manifest’s' if path.is_file() else 'missing'}. {again}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Instances(stored["words"], stored["edges"], stored["papers"])
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged: {error}. {again}") from None


def _manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        source, version, _ = found["source"], found["schema_version"], found["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}). Name another folder, or remove it."
        ) from None
    if (source, version) != ("cora", SCHEMA_VERSION):
        raise InputError(
            f"{path} is of {source}, version {version}, not of cora, version {SCHEMA_VERSION}. Name another folder."
        )
    return found


def _refuse(out: Path, content: str, overwrite: bool) -> None:
    """Raise unless `out` is empty, holds the same instances, or may be overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file. Name a folder.")
    there = _manifest(out)
    if there is not None and there.get("digest") != content and not overwrite:
        raise InputError(
            f"{out} already holds other instances, digest {there.get('digest')}, now {content}. Use --overwrite."
        )
    strangers = sorted(
        path.name
        for path in out.glob("*")
        if path.name not in (INSTANCES, MANIFEST) and path.name[0] != "."
    )
    if strangers:
        raise InputError(
            f"out {out} holds other files ({', '.join(strangers[:3])}). Name a new or empty folder."
        )


# ---- from a graph to instances


def make(
    graph: Graph, settings: Options, progress: Callable[[str, int, int | None], None] | None = None
) -> tuple[Instances, dict[str, int]]:
    """The instances of a graph, and counts of what was cut, moved and left out on the way."""
    size = 2 * settings.side
    if graph.num_papers < settings.instances * size:
        raise InputError(
            f"the graph has {graph.num_papers} papers; {settings.instances} instances of {settings.side} x {settings.side} "
            f"need {settings.instances * size}. Choose fewer instances or a smaller side."
        )
    adjacency = graph.adjacency()
    partition = metis(adjacency, settings.instances, settings.seed)
    parts = even_parts(adjacency, partition, settings.instances, size)
    papers = np.empty((settings.instances, 2, settings.side), np.int32)
    for number, members in enumerate(parts):
        generator = np.random.default_rng([settings.seed, number])
        left = balanced_max_cut(adjacency[np.ix_(members, members)], settings.starts, generator)
        papers[number] = members[left], members[~left]
        if progress:
            progress("instances", number + 1, settings.instances)
    edges = adjacency[papers[:, 0, :, None], papers[:, 1, None, :]]
    inside = partition[graph.edges[:, 0]] == partition[graph.edges[:, 1]]
    about = {
        "papers": graph.num_papers,
        "words": graph.words.shape[1],
        "citations": len(graph.edges),
        "citations_inside_metis_parts": int(inside.sum()),
        "smallest_metis_part": int(np.bincount(partition, minlength=settings.instances).min()),
        "largest_metis_part": int(np.bincount(partition, minlength=settings.instances).max()),
        "papers_left_out": graph.num_papers - settings.instances * size,
        "citations_inside_parts": sum(
            int(adjacency[np.ix_(members, members)].sum()) // 2 for members in parts
        ),
        "citations_crossing": int(edges.sum()),
    }
    return Instances(graph.words[papers], edges, papers), about


def metis(adjacency: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """int (papers,), the part of every paper: METIS by recursive bisection, the least cut of ten partitions.

    Recursive, because it keeps to equal sizes (100 and 101 on Cora, where the k-way method leaves 97 to 103) at nearly the same
    cut.
    """
    try:
        import pymetis
    except ImportError:
        raise InputError("pymetis is not installed. Run: pip install 'cutslots[cora]'") from None
    neighbours = [row.nonzero()[0].tolist() for row in adjacency]
    _, partition = pymetis.part_graph(
        parts, neighbours, recursive=True, options=pymetis.Options(seed=seed, ncuts=10)
    )
    return np.array(partition)


def even_parts(adjacency: np.ndarray, partition: np.ndarray, parts: int, size: int) -> np.ndarray:
    """int (parts, size), ascending paper numbers of parts of one size; the module's text gives the rule."""
    members = [set(np.flatnonzero(partition == part).tolist()) for part in range(parts)]
    pool: set[int] = set()

    def citations(paper: int, part: set[int]) -> int:
        return int(adjacency[paper, list(part)].sum())

    for part in members:
        while len(part) > size:
            loose = min(part, key=lambda paper: (citations(paper, part), paper))
            part.remove(loose)
            pool.add(loose)
    for part in members:
        while len(part) < size:
            near = min(pool, key=lambda paper: (-citations(paper, part), paper))
            pool.remove(near)
            part.add(near)
    return np.array([sorted(part) for part in members])


def balanced_max_cut(
    adjacency: np.ndarray, starts: int, generator: np.random.Generator
) -> np.ndarray:
    """bool (n,), half of the vertices: the half that many edges leave. Vertex 0 is in it."""
    counts, best, most = adjacency.astype(np.int64), None, -1
    for _ in range(starts):
        sides = np.where(generator.permutation(len(counts)) % 2, 1, -1)
        while True:
            # A vertex gains its neighbours on its own side and loses those across; an edge between the two swapped stays cut,
            # though both count it as lost.
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
