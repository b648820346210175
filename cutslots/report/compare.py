"""One setting in several sweeps: mean and spread over seeds, as a table and a figure, other models beside it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutslots.errors import InputError, nearest
from cutslots.files import write_text
from cutslots.report._plots import BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, pyplot, save, tidy
from cutslots.report.scores import TITLES
from cutslots.report.sweep_runs import Configuration, SweepRuns, sweep_runs

COLORS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Line:
    """A sweep's configurations along the setting, and those that have no value of it.

    Attributes:
        points: value of the setting, with its configuration; ascending.
        others: configurations without a value of it, such as those of other models.
        title: the set's name, or the sweep's where another one has the same set.
    """

    sweep: SweepRuns
    points: list[tuple[float, Configuration]]
    others: list[Configuration]
    title: str

    def labelled(self) -> list[tuple[str, Configuration]]:
        """All configurations with the name of their row: the setting's value, else what `other` says."""
        return [(f"{value:g}", each) for value, each in self.points] + [
            (self.other(each), each) for each in self.others
        ]

    def other(self, configuration: Configuration) -> str:
        """A configuration without a value of the setting: its model, with what it is where that model has several."""
        model = _model(configuration)
        alone = sum(_model(each) == model for each in self.others) == 1
        return model if alone else f"{model}, {configuration.name}"

    def values(self, label: str, score: str) -> list[float]:
        """A row's values of all seeds."""
        return [
            value
            for name, each in self.labelled()
            if name == label
            for value in each.values(self.sweep.place, score)
        ]


def write_comparison(names: Sequence[str], setting: str, out: Path) -> list[Path]:
    """Write `compare-SETTING.md` and `.png` of several sweeps; from the same runs they are the same.

    Args:
        names: the sweeps, all after the same objective.
        setting: an option that is a number, its path whole or shortened.

    Returns: the files written.

    Raises:
        InputError: no such setting, sweeps with different objectives, or one without two values of the setting.
    """
    sweeps = [sweep_runs(name) for name in names]
    sets = [sweep.place[0] for sweep in sweeps]
    lines = [
        _line(sweep, setting, sweep.name if sets.count(sweep.place[0]) > 1 else sweep.place[0])
        for sweep in sweeps
    ]
    objectives = sorted({line.sweep.objectives[0] for line in lines})
    if len(objectives) > 1:
        raise InputError(
            f"--compare {setting}: the sweeps have different objectives, {', '.join(objectives)}. Compare them apart."
        )
    scores = _scores(lines, objectives[0])
    out.mkdir(parents=True, exist_ok=True)
    table, figure = out / f"compare-{setting}.md", out / f"compare-{setting}.png"
    write_text(table, _markdown(lines, setting, scores))
    _figure(lines, setting, scores, figure)
    return [table, figure]


def _line(sweep: SweepRuns, setting: str, title: str) -> Line:
    known = {
        name
        for configuration in sweep.configurations
        for name in configuration.trials[0].run.params
    }
    whole = {name for name in known if name == setting or name.endswith(f".{setting}")}
    if len(whole) != 1:
        hint = f"It may be {' or '.join(sorted(whole))}." if whole else _hint(setting, sweep)
        raise InputError(
            f"--compare {setting}: the runs of sweep {sweep.name!r} have no one such setting. {hint}"
        )
    (name,) = whole
    points, others = [], []
    for configuration in sweep.configurations:
        value = _number(configuration.trials[0].run.params.get(name))
        if value is None:
            others.append(configuration)
        else:
            points.append((value, configuration))
    values = {value for value, _ in points}
    if len(values) < 2 or len(values) < len(points):
        raise InputError(
            f"--compare {setting}: sweep {sweep.name!r} has {len(points)} configurations with {len(values)} values of it; at least "
            "two values are needed, and nothing else may differ besides the seed."
        )
    return Line(sweep, sorted(points, key=lambda point: point[0]), others, title)


def _hint(setting: str, sweep: SweepRuns) -> str:
    """What may be meant: numbers in which the runs differ."""
    differing = {
        name
        for trial in sweep.trials
        for name, text in trial.settings.items()
        if _number(text) is not None
    }
    return (
        nearest(setting, sorted(differing))
        if differing
        else "Its runs differ in no number besides the seed."
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "none")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scores(lines: Sequence[Line], objective: str) -> list[str]:
    """The objective, and the same by cut masks where there are any."""
    found = {
        score
        for line in lines
        for _, each in line.points
        for trial in each.trials
        for score in trial.scores[line.sweep.place]
    }
    return [objective, *({f"cut_{objective}"} & found)]


def _title(score: str) -> str:
    plain = score.removeprefix("cut_")
    return TITLES.get(plain, plain) + (" by cut masks" if plain != score else "")


def _model(configuration: Configuration) -> str:
    return configuration.trials[0].run.tags.get("model", configuration.name)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread} ({len(values)})"


def _markdown(lines: Sequence[Line], setting: str, scores: Sequence[str]) -> str:
    text = [f"# {setting} in {', '.join(line.sweep.name for line in lines)}", ""]
    text += [
        "Validation split; mean ± sample standard deviation over seeds (number of them), each run at its best step.",
        "",
    ]
    labels = sorted(
        {label for line in lines for label, _ in line.labelled()},
        key=lambda label: (math.inf if (value := _number(label)) is None else value, label),
    )
    for score in scores:
        text += [
            f"## {_title(score)}",
            "",
            f"| {setting} | {' | '.join(line.title for line in lines)} |",
        ]
        text.append("|---" * (len(lines) + 1) + "|")
        text += [
            f"| {label} | {' | '.join(_cell(line.values(label, score)) for line in lines)} |"
            for label in labels
        ]
        text.append("")
    text += [
        "## Runs",
        "",
        f"| sweep | {setting} or model | seed | {' | '.join(map(_title, scores))} | signature | commit |",
    ]
    text.append("|---" * (5 + len(scores)) + "|")
    for line in lines:
        for label, configuration in line.labelled():
            for trial in configuration.trials:
                found = trial.scores[line.sweep.place]
                cells = [f"{found[score]:.4f}" if score in found else "-" for score in scores]
                cells = [line.sweep.name, label, trial.seed, *cells, trial.signature, trial.commit]
                text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _figure(lines: Sequence[Line], setting: str, scores: Sequence[str], path: Path) -> None:
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot().subplots(
        1,
        len(scores),
        figsize=(1 + 4.6 * len(scores), 4.4),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, score in zip(axes[0], scores, strict=True):
        for index, line in enumerate(lines):
            _draw(axis, line, score, COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)])
        values = sorted({value for line in lines for value, _ in line.points})
        if values[0] > 0:
            axis.set_xscale("log")
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(setting)
        axis.set_title(_title(score), fontsize=11)
        tidy(axis)
    axes[0][0].set_ylabel("validation, mean and every seed")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", frameon=False, ncols=len(lines), fontsize=9
    )
    save(figure, path)


def _draw(axis: Any, line: Line, score: str, color: str, marker: str) -> None:
    """A line through the means, a faint mark for every seed, a dashed level for other models."""
    shown = [(value, each.values(line.sweep.place, score)) for value, each in line.points]
    shown = [(value, found) for value, found in shown if found]
    axis.plot(
        [value for value, _ in shown],
        [statistics.fmean(found) for _, found in shown],
        color=color,
        marker=marker,
        linewidth=1.8,
        label=line.title,
        zorder=3,
    )
    for value, found in shown:
        axis.scatter(
            [value] * len(found), found, s=14, color=color, alpha=0.45, linewidths=0, zorder=2
        )
    for other in line.others:
        if found := other.values(line.sweep.place, score):
            level = statistics.fmean(found)
            axis.axhline(
                level,
                color=color,
                linestyle="--",
                linewidth=1.2,
                label=f"{line.title}, {line.other(other)}",
                zorder=1,
            )
