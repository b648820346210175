"""Plots: learning curves, slices, comparisons of sweeps, benchmarks of solvers."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutslots.errors import InputError, nearest
from cutslots.files import atomic, write_text
from cutslots.metrics.registry import higher_is_better, title
from cutslots.report.importance import Analysis, quiet
from cutslots.report.scored_run import short_commit
from cutslots.report.sweep import Configuration, SweepRuns, Trial, sweep_runs
from cutslots.report.tables import Table, score_text
from cutslots.tracking import metric_histories

# Colours that colour-blind readers can distinguish (Okabe and Ito, Color universal design, 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
GREY = "#7a8794"
MARKERS = "osD^vPX<>h*"
BEST = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")  # of the best runs, in their order
LABEL_LENGTH = 110


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    """Write a PNG without metadata, so that equal figures have equal bytes; close the figure."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot().close(figure)


def _tidy(axis: Any) -> None:
    axis.grid(True, which="major", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def describe(sweep: SweepRuns, trial: Trial) -> str:
    """A trial's objective with its title: `ARI-FG 0.9461`."""
    return f"{title(sweep.objective)} {score_text(sweep.objective, sweep.value(trial))}"


def curves_figure(sweep: SweepRuns, path: Path) -> str | None:
    """Draw the validation objective over steps, one line per run, the best ones in colour.

    Returns: the figure's caption; None without points.
    """
    rest = [t for t in sweep.trials if t.counts and t not in sweep.ranked] + sweep.unfinished
    trials = [*sweep.ranked, *rest]
    histories = metric_histories([trial.run_id for trial in trials], f"val/{sweep.objective}")
    points = {r: [p for p in history if math.isfinite(p[1])] for r, history in histories.items()}
    drawn = [trial for trial in trials if points[trial.run_id]]
    if not drawn:
        return None
    colors = dict(zip((trial.run_id for trial in sweep.ranked), BEST, strict=False))
    thin = len(drawn) > 30
    labels, origins = set(), []
    figure, axis = pyplot().subplots(figsize=(9, 5), layout="constrained")
    for i, trial in enumerate(drawn):
        color, line = colors.get(trial.run_id), points[trial.run_id]
        label = "other runs" if trial.state == "finished" else trial.state
        if color:
            label = f"{describe(sweep, trial)}, seed {trial.seed}: {trial.label}"
            label = label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 3] + "..."
            origin = f"run hash {trial.run_hash}, commit {short_commit(trial)}"
            origins.append(f"{describe(sweep, trial)}: {origin}")
        axis.plot(
            *zip(*line, strict=True),
            label="_" if label in labels else label,  # matplotlib's way to leave a line out
            color=color or GREY,
            linewidth=1.8 if color else 0.6 if thin else 1.0,
            alpha=1.0 if color else 0.4 if thin else 0.6,
            linestyle={"finished": "-", "pruned": "--"}.get(trial.state, ":"),
            marker="o" if len(line) == 1 else None,
            markersize=2 if thin else 4,
            zorder=3 - i / len(drawn),  # the best run over the others
        )
        labels.add(label)
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(f"{title(sweep.objective)}, validation")
    positive = all(value > 0 for trial in drawn for _, value in points[trial.run_id])
    if positive and not higher_is_better(sweep.objective):
        axis.set_yscale("log")  # or the first errors would hide the differences of the last ones
    _tidy(axis)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    _save(figure, path)
    return (
        f"The objective on the validation split during training, {len(drawn)} runs."
        f" The best in colour: {'; '.join(origins) or 'none yet'}."
    )


def slices_figure(sweep: SweepRuns, analysis: Analysis, path: Path) -> str | None:
    """Draw the objective over each parameter of the search space, with Optuna's `plot_slice`.

    Returns: the figure's caption; None if no parameter varies.
    """
    if not analysis.varied:
        return None
    from optuna.visualization.matplotlib import plot_slice

    name = title(sweep.objective)
    with quiet(), pyplot().rc_context():  # plot_slice changes matplotlib's style
        axes: Any = plot_slice(analysis.study, params=analysis.varied, target_name=name)
        figure: Any = np.ravel(axes)[0].figure
        figure.axes[-1].set_ylabel("rank - 1")  # the colour bar: trials are in order of rank
        _save(figure, path)
    return (
        f"Optuna's slice plot: the best {name} of every finished run over each parameter of the"
        " search space, the most important first. Light dots are the best runs."
    )


def write_comparison(names: Sequence[str], setting: str, out: Path) -> list[Path]:
    """Compare sweeps over one numeric setting in `compare-SETTING.md` and `.png`.

    Args:
        names: sweeps with the same objective.
        setting: option path, full or shortened.

    Returns: the files; the same runs give the same files.

    Raises:
        InputError: no such setting, different objectives, or fewer than two values in a sweep.
    """
    sweeps = [sweep_runs(name) for name in names]
    datasets = [sweep.validation[0] for sweep in sweeps]
    titles = [s.name if datasets.count(d) > 1 else d for s, d in zip(sweeps, datasets, strict=True)]
    compared = [_by_setting(sweep, setting) for sweep in sweeps]
    objectives = sorted({sweep.objective for sweep in sweeps})
    if len(objectives) > 1:
        raise InputError(
            f"--compare {setting}: the sweeps must have the same objective, "
            f"got {', '.join(objectives)}. Compare them separately."
        )
    objective, cut_objective = objectives[0], f"cut_{objectives[0]}"
    keys = {key for columns in compared for key in columns}
    ticks = sorted(key for key in keys if isinstance(key, float))
    labels = [*ticks, *sorted(key for key in keys if isinstance(key, str))]

    parts = [
        f"# {setting} in {', '.join(names)}\n",
        "Validation split; mean ± sample standard deviation over seeds (number of seeds), each"
        " run at its best step.\n",
    ]
    for score in (objective, cut_objective):
        rows = []
        for label in labels:
            row = [label if isinstance(label, str) else f"{label:g}"]
            for sweep, columns in zip(sweeps, compared, strict=True):
                values = columns[label].values(sweep.validation, score) if label in columns else []
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                mean = f"{statistics.fmean(values):.3f}{spread} ({len(values)})" if values else "-"
                row.append(mean)
            rows.append(row)
        if any(cell != "-" for row in rows for cell in row[1:]) or score == objective:
            parts.append(f"## {title(score)}\n")
            parts.append(Table([setting, *titles], rows, titles).markdown())
    table, image = out / f"compare-{setting}.md", out / f"compare-{setting}.png"
    write_text(table, "\n".join(parts))

    figure, axis = pyplot().subplots(figsize=(6.4, 4.8), layout="constrained")
    for i, (sweep, columns) in enumerate(zip(sweeps, compared, strict=True)):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        seeds = {key: c.values(sweep.validation, objective) for key, c in columns.items()}
        means = {key: statistics.fmean(values) for key, values in seeds.items() if values}
        points = {key: mean for key, mean in means.items() if isinstance(key, float)}
        axis.plot(list(points), list(points.values()), color=color, marker=marker, label=titles[i])
        for x in points:
            axis.scatter([x] * len(seeds[x]), seeds[x], s=14, color=color, alpha=0.45, linewidths=0)
        for label, mean in means.items():
            if label not in points:  # as a level, since it has no value
                axis.axhline(mean, color=color, linestyle="--", label=f"{titles[i]}, {label}")
    if ticks[0] > 0:
        axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(setting)
    axis.set_ylabel(f"{title(objective)}, validation: mean and every seed")
    _tidy(axis)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(sweeps), fontsize=9)
    _save(figure, image)
    return [table, image]


def _by_setting(sweep: SweepRuns, setting: str) -> dict[float | str, Configuration]:
    """A sweep's configurations by the setting's value; those without it by their model."""
    params = [c.trials[0].params for c in sweep.configurations]
    paths = {name for texts in params for name in texts if f".{name}".endswith(f".{setting}")}
    if len(paths) != 1:
        numeric = {n for t in sweep.trials for n, v in t.settings.items() if _number(v) is not None}
        hint = f"It may be {' or '.join(sorted(paths))}."
        if not paths:
            hint = nearest(setting, sorted(numeric)) if numeric else "No numeric setting varies."
        raise InputError(
            f"--compare must be one setting of sweep {sweep.name!r}, got {setting!r}. {hint}"
        )
    (path,) = paths
    values = [(_number(p.get(path)), c) for p, c in zip(params, sweep.configurations, strict=True)]
    points = sorted(((v, c) for v, c in values if v is not None), key=lambda point: point[0])
    by_value: dict[float | str, Configuration] = dict(points)
    if len(by_value) < 2 or len(by_value) < len(points):
        raise InputError(
            f"--compare {setting}: sweep {sweep.name!r} must have at least two values of it and"
            f" differ in nothing else but the seed, got {len(points)} configurations with"
            f" {len(by_value)} values."
        )
    models = [(c.trials[0].tags.get("model", c.label), c) for v, c in values if v is None]
    names = [model for model, _ in models]
    return by_value | {m if names.count(m) == 1 else f"{m}, {c.label}": c for m, c in models}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "none")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def solvers_figure(results: dict[str, Any], path: Path) -> None:
    """Draw the JSON of `cutslots bench solvers`: time and memory by size, one column per batch."""
    cells = [cell for cell in results["cells"] if cell["status"] == "measured"]
    ticks = sorted({cell["size"] for cell in results["cells"]})
    batches = sorted({cell["batch"] for cell in cells})
    shape, size = (2, len(batches)), (1 + 4 * len(batches), 7.5)
    figure, axes = pyplot().subplots(
        *shape, figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    rows = ("seconds", 1e-3, "forward and backward, ms"), ("memory_bytes", 1e6, "memory, MB")
    for row, (key, unit, label) in enumerate(rows):
        axes[row, 0].set_ylabel(label)
        for axis, batch in zip(axes[row], batches, strict=True):
            axis.set_title(f"{batch} cut{'s' * (batch > 1)}")
            for i, (name, about) in enumerate(results["methods"].items()):
                chosen = [c for c in cells if c["method"] == name and c["batch"] == batch]
                points = sorted((c["size"], c[key] / unit) for c in chosen if c[key] > 0)
                axis.plot(
                    *np.array(points).reshape(-1, 2).T,
                    color=COLORS[i % len(COLORS)],
                    marker=MARKERS[i % len(MARKERS)],
                    linestyle="--" if about.get("peer") else "-",
                    label=name,
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set_xlabel("side of the grid, pixels")
            _tidy(axis)
    machine = results["machine"]
    device, threads = machine["gpu"] or machine["processor"], machine["threads"]
    figure.suptitle(f"Min-cut programs of a full grid: {device}, {threads} threads")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False)
    _save(figure, path)
