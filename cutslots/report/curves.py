"""A sweep's pictures: scenes of its best run, the objective over training, and over each setting of the space."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cutslots.files import atomic
from cutslots.report._plots import BLUE, GREEN, ORANGE, PURPLE, pyplot, save, tidy
from cutslots.report.analysis import Slice
from cutslots.report.figures import EXAMPLES
from cutslots.report.leaderboard import short, smaller_is_better
from cutslots.report.scores import TITLES, number
from cutslots.report.sweep_runs import SweepRuns, Trial
from cutslots.runlog import last_artifact, metric_histories

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
        f"seed {each.trial.seed}, signature {each.trial.signature}, commit {each.trial.commit}",
    ]


def scenes_figure(sweep: SweepRuns, path: Path) -> str | None:
    """Write scenes with their masks as one PNG: of the best run those of best, median and worst score.

    Where it has logged none, as runs of before did not, the last figures of the best, the median and the worst run.

    Returns: what is to be said of the picture; None when there is none.
    """
    best = chosen(sweep)[:1]
    panels = _panels(sweep, best, EXAMPLES)
    if panels:
        text = f"Scenes of the validation split with the best, the median and the worst {_title(sweep)} of the best run, by the "
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
    axis.set_ylabel(f"{_title(sweep)}, validation")
    if smaller_is_better(objective) and all(
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
        f"{_value(sweep, trial)}: signature {trial.signature}, commit {trial.commit}"
        for trial, _ in named
    )
    return f"The objective on the validation split over training, {len(lines)} runs. In colour the best: {origin or 'none yet'}."


def _value(sweep: SweepRuns, trial: Trial) -> str:
    return (
        f"{_title(sweep)} {number(sweep.objectives[0], {sweep.objectives[0]: sweep.value(trial)})}"
    )


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
    if smaller_is_better(sweep.objectives[0]) and all(
        value > 0 for each in slices for _, value in [*each.finished, *each.pruned]
    ):
        for axis in list(axes.flat)[: len(slices)]:
            _logarithmic(axis, "y")
    for axis in list(axes.flat)[len(slices) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(_title(sweep))
    pruned = any(each.pruned for each in slices)
    handles = [
        axes[0][0].scatter([], [], **style, label=text)
        for text, style in MARKS.items()
        if pruned or text != PRUNED
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    save(figure, path)
    text = f"Optuna's slices: the best {_title(sweep)} of every finished run over each setting of the space, the most important "
    text += "first." + (
        " Of pruned runs it is the last reading before the sweep ended them." if pruned else ""
    )
    return text + (
        " At whole numbers and choices the dots are spread sideways."
        if any(map(_is_whole, slices))
        else ""
    )


def _title(sweep: SweepRuns) -> str:
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
