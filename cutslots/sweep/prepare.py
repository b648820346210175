"""Preparing data on all cores of this machine, or on the Ray cluster that is connected."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cutslots import data
from cutslots.data.parallel import AHEAD, ordered, processes
from cutslots.data.scene import Ranges
from cutslots.data.shards import Progress
from cutslots.sweep.cluster import refused


def prepare(
    source_name: str,
    raw: Path | str | None,
    out: Path | str,
    options: Any = None,
    splits: Ranges | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> data.Manifest:
    """`data.prepare` with many processes; the shards are the same for any number of them.

    Args:
        workers: processes on this machine; None takes the connected Ray cluster, and without one all cores.

    Raises: what `data.prepare` raises.
    """
    spread = on_ray if workers is None and connected() else processes(workers)
    return data.prepare(source_name, raw, out, options, splits, overwrite, progress, spread)


def connected() -> bool:
    """Whether this process belongs to a Ray cluster, or RAY_ADDRESS names one."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def on_ray(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """A map over the cluster's CPUs. Raw files that are read there, ClevrTex's, must have the same path on every node, or a URI."""
    import ray
    from ray.exceptions import RayTaskError

    if not ray.is_initialized():
        with refused():
            ray.init()  # where RAY_ADDRESS says

    @ray.remote
    def work(item: Any) -> Any:
        return function(item)

    def result(handle: Any) -> Any:
        try:
            return ray.get(handle)
        except RayTaskError as error:
            raise error.cause from None  # ours, without Ray's report around it

    yield from ordered(
        work.remote, result, items, AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    )
