"""The results of `sweeps/cora.py`: tables with bootstrapped intervals, and runs in MLflow."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cutslots import files
from cutslots.cora import protocol
from cutslots.cora.instances import Instances
from cutslots.cora.learn import Settings
from cutslots.cora.protocol import Candidate, Run
from cutslots.report import published
from cutslots.report.tables import Table
from cutslots.tracking import RunLog

MEANING = {
    "program": "ours: program without inequalities; sides swapped by a coin; tuned",
    "two-stage": "cross-entropy; the same network, swapping and tuning effort",
    "inequality program": "all inequalities (Wilder et al.); the same network and tuning effort",
    "program, plain": "as published: hidden 200, Adam 1e-3, 12 epochs, no swapping, untuned",
    "two-stage, plain": "cross-entropy, the same plain settings",
    "inequality program, plain": "program of Wilder et al., the same plain settings",
    "word overlap": "no learning: the weight of a pair is the number of words in common",
    "random": "no learning: random weights",
    "optimum": "the true edges as weights: the maximum of any method",
}


def bootstrap(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean, from `draws` seeded resamples with replacement."""
    sample = np.asarray(values, float)
    chosen = np.random.default_rng(seed).integers(0, len(sample), (draws, len(sample)))
    low, high = np.quantile(sample[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method."""
    return {
        method: [r for r in runs if r.method == method]
        for method in dict.fromkeys(r.method for r in runs)
    }


def markdown(runs: Sequence[Run], caption: str) -> str:
    """The table of our rows, best first, and the published ones, above a caption."""
    rows = []
    for method, members in by_method(runs).items():
        values = [run.value for run in members]
        rows.append((method, float(np.mean(values)), *bootstrap(values), MEANING[method]))
    rows.sort(key=lambda row: -row[1])
    for row in published.rows("cora"):
        mean, half = row.scores["mean"], row.spread["mean"]
        rows.append((f"published: {row.method}", mean, mean - half, mean + half, row.source))
    cells = [[m, f"{mean:.2f}", f"{a:.2f} to {b:.2f}", text] for m, mean, a, b, text in rows]
    columns = ["method", "true edges matched", "95 % interval", "what it is"]
    return f"{Table(columns, cells).markdown()}\n{caption}"


def caption(instances: Instances, runs: Sequence[Run], command: str, commit: str) -> str:
    """The text below the table: protocol, scale, comparability, and how it was made."""
    split, number = runs[0].split, len({run.split.number for run in runs})
    pool = {member for run in runs for member in run.split.held_out}
    seen = len(pool & set(protocol.tuning_members(len(instances)))) or "none"
    crossing, best = instances.edges.sum(), instances.optimum().mean()
    return f"""\
The number of true edges in the matching that the exact LP chooses under the learned weights: the
mean over held-out instances, then over {number} random splits into {len(split.train)} training and
{len(split.held_out)} held-out instances; intervals by bootstrap. Held-out instances are drawn from
{len(pool)} of the {len(instances)} instances, {seen} of which served to choose the tuned settings.

Published rows are not strictly comparable: the original instance files are not available. These
instances (digest {instances.digest}) were made from the same graph by the same recipe;
{crossing:,} citations cross from side to side, and the best matching of an instance has
{best:.2f} true edges, averaged over all instances.

Made by `{command}` at commit {commit}.
"""


def runs_csv(runs: Sequence[Run]) -> str:
    """One row per split and method; `values` in the order of the instances in `held_out`."""
    rows = []
    for run in runs:
        texts = (
            " ".join(f"{n:g}" for n in numbers) for numbers in (run.split.held_out, run.values)
        )
        row = [str(run.split.number), run.method, f"{run.value:.4f}", *texts]
        rows.append([*row, f"{run.seconds:.2f}"])
    return Table(["split", "method", "value", "held_out", "values", "seconds"], rows).csv()


def tuning_csv(candidates: Sequence[Candidate]) -> str:
    """One row per candidate, best first within each method."""
    names = ["objective", "hidden", "learning_rate", "epochs", "swap"]
    rows = [
        [c.method, f"{c.value:.4f}", *(str(getattr(c.settings, name)) for name in names)]
        for c in candidates
    ]
    return Table(["method", "value", *names], rows).csv()


def log(
    instances: Instances,
    runs: Sequence[Run],
    settings: Mapping[str, Settings],
    out: Path,
    tags: Mapping[str, str],
) -> int:
    """Log one run per method to MLflow's experiment "cora"; the value of split i is step i.

    Returns: the number of events that MLflow did not get; `cutslots sync` delivers them later.
    """
    start, left = time.strftime("%Y%m%d-%H%M%S"), 0
    sizes = {"instances": len(instances), "side": instances.edges.shape[1]}
    sizes["crossing"] = int(instances.edges.sum())
    for method, members in by_method(runs).items():
        params: dict[str, Any] = {"objective": method}
        if method in settings:
            params = asdict(settings[method])
            params |= params["objective"]
            params["objective"] = type(settings[method].objective).__name__
        values = [run.value for run in members]
        low, high = bootstrap(values)
        summary = {"mean": float(np.mean(values)), "interval_low": low, "interval_high": high}
        folder = files.home() / "runs" / f"cora-{start}-{method.replace(',', '').replace(' ', '-')}"
        with RunLog(folder, experiment="cora", run_name=method) as log:
            log.params(params)
            log.tags(tags)
            types = {"words": "bool", "edges": "bool"}
            log.dataset("cora", instances.digest, "cutslots prepare cora", types, sizes)
            for run in members:
                log.metrics(run.split.number, {"value": run.value, "seconds": run.seconds})
            log.metrics(len(values), summary)
            log.artifact(out / "table.md")
            log.artifact(out / "runs.csv")
            left += log.close()
    return left
