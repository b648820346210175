"""What all figures of lines and dots have in common."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cutslots.errors import InputError, nearest
from cutslots.files import atomic, write_text
from cutslots.metrics.registry import higher_is_better
from cutslots.report.evaluation import TITLES, number
from cutslots.report.figures import EXAMPLES
from cutslots.report.importance import Slice
from cutslots.report.leaderboard import short
from cutslots.report.sweep import Configuration, SweepRuns, Trial, sweep_runs
from cutslots.tracking import last_artifact, metric_histories

# Colours that colour-blind readers tell apart, on white and in print (Okabe and Ito, Color universal design, 2008).
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)


def pyplot() -> Any:
    """matplotlib's pyplot, which draws to files and needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def tidy(axis: Any) -> None:
    """A pale grid behind what is drawn, and no frame above and to the right."""
    axis.grid(True, which="major", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a PNG and close the figure; without the writer's version and the like, so that the same figure gives the same bytes."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot().close(figure)


GAP, CAPTION = 16, 44
WIDEST = 3000  # pixels side by side; wider panels stand below each other
BEST = (ORANGE, BLUE, GREEN, PURPLE)  # so many of the best runs have a colour
MARKED, OTHERS = BEST[0], "#7a8794"
MANY, LONGEST = 30, 110  # lines from which on they are thin; letters of a legend's line
SPREAD = 0.4  # of the way from one whole number to the next
PRUNED = "pruned, its last reading"
MARKS: dict[str, dict[str, Any]] = {
    "finished": {"s": 20, "color": OTHERS, "linewidths": 0, "alpha": 0.75, "zorder": 3},
    PRUNED: {"s": 16, "color": "0.75", "marker": "x", "linewidths": 0.9, "zorder": 2},
    "best": {"s": 55, "color": MARKED, "linewidths": 0, "zorder": 4},
}
DASHES = {"finished": "-", "pruned": "--"}


@dataclass(frozen=True)
class Chosen:
    """A run whose scenes are shown, and why: best, median or worst."""

    role: str
    trial: Trial


def chosen(sweep: SweepRuns) -> list[Chosen]:
    """The best, the median and the worst of the runs with a result, each once."""
    ranked = sweep.ranked
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    found: dict[int, str] = {}
    for role in ("best", "worst", "median"):
        if ranked and places[role] not in found:
            found[places[role]] = role
    return [Chosen(found[at], ranked[at]) for at in sorted(found)]


def caption(sweep: SweepRuns, each: Chosen) -> list[str]:
    """Which run it is, in two lines."""
    first = f"{each.role.capitalize()} run: {_value(sweep, each.trial)}, {each.trial.name}"
    return [
        first,
        f"seed {each.trial.seed}, signature {each.trial.run_hash}, commit {each.trial.commit}",
    ]


def scenes_figure(sweep: SweepRuns, path: Path) -> str | None:
    """Write scenes with their masks as one PNG: of the best run those of best, median and worst score.

    Where it has logged none, as runs of before did not, the last figures of the best, the median and the worst run.

    Returns: what is to be said of the picture; None when there is none.
    """
    best = chosen(sweep)[:1]
    panels = _panels(sweep, best, EXAMPLES)
    if panels:
        text = f"Scenes of the validation split with the best, the median and the worst {_objective_title(sweep)} of the best run, by the "
        text += "weights of its best step"
    else:
        panels = _panels(sweep, chosen(sweep), "figures")
        text = "The best run has logged no scenes by their scores; these are the last figures, of the split's first scenes, of"
        text += " the best, the median and the worst run"
    if not panels:
        return None
    beside = sum(panel.width + GAP for _, panel in panels) <= WIDEST
    widths, heights = [panel.width for _, panel in panels], [panel.height for _, panel in panels]
    size = (
        (sum(widths) + GAP * (len(panels) - 1), max(heights))
        if beside
        else (max(widths), sum(heights) + GAP * (len(panels) - 1))
    )
    canvas = Image.new("RGB", size, "white")
    left = top = 0
    for _, panel in panels:
        canvas.paste(panel, (left, top))
        left, top = (left + panel.width + GAP, 0) if beside else (0, top + panel.height + GAP)
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)
    return f"{text}. {'; '.join(', '.join(caption(sweep, each)) for each, _ in panels)}."


def _panels(
    sweep: SweepRuns, runs: Sequence[Chosen], folder: str
) -> list[tuple[Chosen, Image.Image]]:
    """The last picture that each of these runs has in a folder of its artifacts, with a caption."""
    found = [(each, last_artifact(each.trial.run.run_id, folder)) for each in runs]
    # Of an animation the first frame.
    return [
        (each, _captioned(Image.open(io.BytesIO(content)).convert("RGB"), caption(sweep, each)))
        for each, content in found
        if content is not None
    ]


def _captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for at, line in enumerate(lines):
        while line and draw.textlength(line, font=font) > picture.width - 8:
            line = line.removesuffix("...")[:-1] + "..." if len(line) > 4 else ""
        draw.text((4, 3 + 20 * at), line, fill="black", font=font)
    canvas.paste(picture, (0, CAPTION))
    return canvas


def curves_figure(sweep: SweepRuns, path: Path) -> str | None:
    """Write a PNG of the objective on the validation split over steps, a line a run, the best ones in colour.

    Returns: what is to be said of the picture; None when there are no points.
    """
    objective = sweep.objectives[0]
    best = {trial.run.run_id: color for trial, color in zip(sweep.ranked, BEST, strict=False)}
    shown = [*(trial for trial in sweep.trials if trial.counts), *sweep.unfinished]
    found = metric_histories([trial.run.run_id for trial in shown], f"val/{objective}")
    lines = [
        (trial, [point for point in found[trial.run.run_id] if math.isfinite(point[1])])
        for trial in shown
    ]
    lines = [(trial, points) for trial, points in lines if points]
    if not lines:
        return None
    figure, axis = pyplot().subplots(figsize=(9, 5), layout="constrained")
    many = len(lines) > MANY
    for trial, points in lines:
        color = best.get(trial.run.run_id)
        axis.plot(
            *zip(*points, strict=True),
            color=color or OTHERS,
            linewidth=1.8 if color else 0.6 if many else 1.0,
            alpha=1.0 if color else 0.4 if many else 0.6,
            linestyle=DASHES.get(trial.state, ":"),
            marker="o" if len(points) == 1 else None,
            markersize=2 if many else 4,
            zorder=4 - 0.1 * list(best).index(trial.run.run_id) if color else 2,
        )
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(f"{_objective_title(sweep)}, validation")
    if not higher_is_better(objective) and all(
        value > 0 for _, points in lines for _, value in points
    ):
        _logarithmic(
            axis, "y"
        )  # errors fall by whole factors, and the first ones would hide the last
    tidy(axis)
    named = [
        (trial, color)
        for trial, color in zip(sweep.ranked, BEST, strict=False)
        if any(trial is each for each, _ in lines)
    ]
    entries = [
        (color, 1.8, "-", _cut(f"{_value(sweep, trial)}, seed {trial.seed}: {trial.name}"))
        for trial, color in named
    ]
    states = {trial.state for trial, _ in lines if trial.run.run_id not in best}
    kinds = (("finished", "-", "other runs"), ("pruned", "--", "pruned"))
    entries += [(OTHERS, 1.0, dash, text) for state, dash, text in kinds if state in states]
    entries += (
        [(OTHERS, 1.0, ":", ", ".join(rest))] if (rest := sorted(states - set(DASHES))) else []
    )
    handles = [
        pyplot().Line2D([], [], color=c, linewidth=w, linestyle=d, label=text)
        for c, w, d, text in entries
    ]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    save(figure, path)
    origin = "; ".join(
        f"{_value(sweep, trial)}: signature {trial.run_hash}, commit {trial.commit}"
        for trial, _ in named
    )
    return f"The objective on the validation split over training, {len(lines)} runs. In colour the best: {origin or 'none yet'}."


def _value(sweep: SweepRuns, trial: Trial) -> str:
    return f"{_objective_title(sweep)} {number(sweep.objectives[0], {sweep.objectives[0]: sweep.value(trial)})}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def slices_figure(sweep: SweepRuns, slices: Sequence[Slice], path: Path) -> str | None:
    """Write a PNG with an axis for each setting of the space: the objective of every run over its value.

    Returns: what is to be said of the picture; None without slices.
    """
    if not slices:
        return None
    columns = min(3, len(slices))
    rows = math.ceil(len(slices) / columns)
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(1 + 3.4 * columns, 0.7 + 2.9 * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, each in zip(axes.flat, slices, strict=False):
        _draw_slice(axis, each)
        tidy(axis)
    if not higher_is_better(sweep.objectives[0]) and all(
        value > 0 for each in slices for _, value in [*each.finished, *each.pruned]
    ):
        for axis in list(axes.flat)[: len(slices)]:
            _logarithmic(axis, "y")
    for axis in list(axes.flat)[len(slices) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(_objective_title(sweep))
    pruned = any(each.pruned for each in slices)
    handles = [
        axes[0][0].scatter([], [], **style, label=text)
        for text, style in MARKS.items()
        if pruned or text != PRUNED
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    save(figure, path)
    text = f"Optuna's slices: the best {_objective_title(sweep)} of every finished run over each setting of the space, the most important "
    text += "first." + (
        " Of pruned runs it is the last reading before the sweep ended them." if pruned else ""
    )
    return text + (
        " At whole numbers and choices the dots are spread sideways."
        if any(map(_is_whole, slices))
        else ""
    )


def _objective_title(sweep: SweepRuns) -> str:
    return TITLES.get(sweep.objectives[0], sweep.objectives[0])


def _is_whole(each: Slice) -> bool:
    """Whether runs lie at a few places, so that one hides the other."""
    return each.choices is not None or all(isinstance(value, int) for value, _ in each.finished)


def _draw_slice(axis: Any, each: Slice) -> None:
    """Numbers lie along an axis of all that was searched, choices at places of their own."""

    whole = _is_whole(each)

    def places(points: Sequence[tuple[Any, float]]) -> list[tuple[float, float]]:
        found = [
            (each.choices.index(value) if each.choices else value, objective)
            for value, objective in points
        ]
        # Beside each other what would hide each other: multiples of the golden ratio never meet.
        return [
            (at + (((0.618 * number + 0.5) % 1 - 0.5) * SPREAD if whole else 0), value)
            for number, (at, value) in enumerate(found)
        ]

    finished, pruned = places(each.finished), places(each.pruned)
    for points, style in (
        (pruned, MARKS[PRUNED]),
        (finished, MARKS["finished"]),
        (finished[:1], MARKS["best"]),
    ):
        if points:
            axis.scatter(*zip(*points, strict=True), **style)
    axis.set_xlabel(each.setting, fontsize=9)
    if each.choices:
        axis.set_xticks(
            range(len(each.choices)),
            [short(str(choice))[:10] for choice in each.choices],
            fontsize=8,
        )
        axis.set_xlim(-0.5, len(each.choices) - 0.5)
        return
    low, high = each.range
    if each.logarithmic:
        axis.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
        _logarithmic(axis, "x")
        return
    margin = 0.5 if whole else 0.04 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    if whole:
        axis.xaxis.get_major_locator().set_params(integer=True)


def _logarithmic(axis: Any, name: str) -> None:
    """A logarithmic axis with few names: matplotlib's own between powers of ten run into each other."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    getattr(axis, f"set_{name}scale")("log")
    along = getattr(axis, f"{name}axis")
    low, high = getattr(axis, f"get_{name}lim")()
    subs = (1, 2, 3, 5) if high / low < 20 else (1, 2, 5) if high / low < 300 else (1,)
    along.set_major_locator(LogLocator(subs=subs) if high / low > 5 else MaxNLocator(4))
    along.set_major_formatter("{x:g}")
    along.set_minor_formatter(NullFormatter())


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
                cells = [line.sweep.name, label, trial.seed, *cells, trial.run_hash, trial.commit]
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


# A colour and a marker per method, in their order; as their numbers differ, every pair is unique.
COLOURS = (ORANGE, BLUE, GREEN, PURPLE, SKY, YELLOW, "#000000")
MARKERS = "os^DvPX<>h*"


def solvers_figure(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of what `cutslots bench solvers` measured: a column a batch, time of a step above, memory below, against size.

    Args:
        figures: what the benchmark returned, or its JSON.
    """
    cells = [cell for cell in figures["cells"] if cell["status"] == "measured"]
    sizes = sorted({cell["size"] for cell in figures["cells"]})
    # A batch measured at one size alone would be a column of dots.
    batches = sorted(
        batch
        for batch in {cell["batch"] for cell in cells}
        if len({c["size"] for c in cells if c["batch"] == batch}) > 1
    ) or sorted({cell["batch"] for cell in cells})
    figure, axes = pyplot().subplots(
        2,
        len(batches),
        figsize=(1 + 4 * len(batches), 7.5),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, batch in enumerate(batches):
        for row, (key, unit) in enumerate((("seconds", 1e-3), ("memory_bytes", 1e6))):
            axis = axes[row, column]
            for index, (name, method) in enumerate(figures["methods"].items()):
                points = sorted(
                    (c["size"], c[key] / unit)
                    for c in cells
                    if c["method"] == name and c["batch"] == batch and c[key] > 0
                )
                exact = method.get("exact", True)
                label = name if exact else f"{name} (another problem, forward)"
                axis.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="--" if method.get("peer") else "-",
                    label=label,
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(sizes, [str(size) for size in sizes])
            tidy(axis)
        axes[0, column].set_title(f"{batch} cut{'s' * (batch > 1)}")
        axes[1, column].set_xlabel("side of the grid, pixels")
    axes[0, 0].set_ylabel("forward and backward, ms")
    axes[1, 0].set_ylabel("memory, MB")
    about = figures["machine"]
    figure.suptitle(
        f"Min-cut programs of a full grid: {about['gpu'] or about['processor']}, {about['threads']} threads"
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    save(figure, path)
