"""The table of an experiment: means with bootstrapped intervals beside the published rows, as markdown, CSV and MLflow runs."""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cutslots import files
from cutslots.cora.instances import Instances
from cutslots.cora.learn import Settings
from cutslots.cora.protocol import Candidate, Run, tuning_members
from cutslots.report import published
from cutslots.tracking import RunLog

MEANING = {
    "program": "ours: regularised program without inequalities; sides swapped by a coin; tuned",
    "two-stage": "cross-entropy; the same network, swapping and tuning effort",
    "inequality program": "program of Wilder et al. with all inequalities; the same network, swapping and tuning effort",
    "program, plain": "as published: hidden 200, Adam 1e-3, 12 epochs, no swapping, untuned",
    "two-stage, plain": "cross-entropy, the same plain settings",
    "inequality program, plain": "program of Wilder et al., the same plain settings",
    "word overlap": "no learning: the weight of a pair is the number of words in common",
    "random": "no learning: random weights",
    "optimum": "the true edges as weights: the most that any method can reach",
}


def bootstrap(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean, from `draws` seeded resamples of the values with replacement."""
    sample = np.asarray(values, float)
    means = sample[np.random.default_rng(seed).integers(0, len(sample), (draws, len(sample)))].mean(
        1
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method, in the order of their first appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def markdown(runs: Sequence[Run], about: str) -> str:
    """The table with our rows and the published ones; `about` says below it how it was made."""
    lines = ["| method | true edges matched | 95 % interval | what it is |", "|---|---|---|---|"]
    grouped = by_method(runs)
    for method, found in sorted(
        grouped.items(), key=lambda item: -np.mean([run.value for run in item[1]])
    ):
        values = [run.value for run in found]
        low, high = bootstrap(values)
        lines.append(
            f"| {method} | {np.mean(values):.2f} | {low:.2f} to {high:.2f} | {MEANING[method]} |"
        )
    for row in published.rows("cora"):
        mean, half = row.scores["mean"], row.spread["mean"]
        lines.append(
            f"| published: {row.method} | {mean:.2f} | {mean - half:.2f} to {mean + half:.2f} | {row.source} |"
        )
    return "\n".join(lines) + "\n\n" + about


def caption(instances: Instances, runs: Sequence[Run], command: str, commit: str) -> str:
    """What stands below the table: protocol, scale, what is not comparable, and how it was made."""
    first, chosen = runs[0].split, len({run.split.number for run in runs})
    pool = {member for run in runs for member in run.split.held_out}
    seen = pool & set(tuning_members(len(instances)))
    clean = (
        f"{len(seen)} of these also took part in choosing the tuned settings."
        if seen
        else "None took part in choosing settings."
    )
    crossing, best = f"{instances.edges.sum():,}", f"{instances.optimum().mean():.2f}"
    return f"""\
The number of true edges in the matching that the exact LP chooses under the learned weights: the mean over held-out instances, then
over {chosen} random splits into {len(first.train)} training and {len(first.held_out)} held-out instances; intervals by bootstrap.
Held-out instances are drawn from {len(pool)} of the {len(instances)} instances. {clean}

Published rows are not strictly comparable: the original instance files are not available. These instances (digest
{instances.digest}) were made anew from the same graph by the same recipe; {crossing} citations cross from side to side, and the
best matching of an instance holds {best} true edges in the mean of all instances.

Made by `{command}` at commit {commit}.
"""


def runs_csv(runs: Sequence[Run]) -> str:
    """One row a split and method; `values` are those of the held-out instances, in the order of `held_out`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "method", "value", "held_out", "values", "seconds"])
    for run in runs:
        row = [run.split.number, run.method, f"{run.value:.4f}", _joined(run.split.held_out)]
        writer.writerow([*row, _joined(run.values), f"{run.seconds:.2f}"])
    return text.getvalue()


def tuning_csv(candidates: Sequence[Candidate]) -> str:
    """One row a candidate, best first within each method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "value", "objective", "hidden", "learning_rate", "epochs", "swap"])
    for candidate in candidates:
        tried = candidate.settings
        row = [tried.objective, tried.hidden, tried.learning_rate, tried.epochs, tried.swap]
        writer.writerow([candidate.method, f"{candidate.value:.4f}", *row])
    return text.getvalue()


def write(out: Path, runs: Sequence[Run], table: str) -> None:
    """Write `table.md` and `runs.csv` to the folder `out`."""
    files.write_text(out / "table.md", table)
    files.write_text(out / "runs.csv", runs_csv(runs))


def log(
    instances: Instances,
    runs: Sequence[Run],
    settings: dict[str, Settings],
    out: Path,
    tags: dict[str, str],
) -> int:
    """Log the experiment to MLflow: experiment "cora", one run a method, the value of split i as step i of `value`.

    Returns: the number of events that the tracking store has not got; `cutslots sync` delivers them later.
    """
    begun, left = time.strftime("%Y%m%d-%H%M%S"), 0
    for method, found in by_method(runs).items():
        slug = method.replace(",", "").replace(" ", "-")
        with RunLog(
            files.home() / "runs" / f"cora-{begun}-{slug}", experiment="cora", run_name=method
        ) as log:
            log.params(_flat(settings[method]) if method in settings else {"objective": method})
            log.tags(tags)
            profile = {
                "instances": len(instances),
                "side": instances.edges.shape[1],
                "crossing": int(instances.edges.sum()),
            }
            log.dataset(
                "cora",
                instances.digest,
                "cutslots prepare cora",
                {"words": "bool", "edges": "bool"},
                profile,
            )
            values = [run.value for run in found]
            for run in found:
                log.metrics(run.split.number, {"value": run.value, "seconds": run.seconds})
            low, high = bootstrap(values)
            log.metrics(
                len(values),
                {"mean": float(np.mean(values)), "interval_low": low, "interval_high": high},
            )
            log.artifact(out / "table.md")
            log.artifact(out / "runs.csv")
            left += log.close()
    return left


def _flat(settings: Settings) -> dict[str, object]:
    objective = asdict(settings)["objective"] | {"objective": type(settings.objective).__name__}
    return {
        "hidden": settings.hidden,
        "learning_rate": settings.learning_rate,
        "epochs": settings.epochs,
        "swap": settings.swap,
    } | objective


def _joined(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
