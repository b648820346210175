"""A sweep's pictures: scenes of its best, median and worst run, the objective over training, and over each setting of the space."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cutslots.files import atomic
from cutslots.report.leaderboard import short
from cutslots.report.scores import TITLES, number
from cutslots.report.sweep_runs import SweepRuns, Trial
from cutslots.runlog import last_artifact, metric_history

GAP, CAPTION = 16, 44
WIDEST = 3000  # pixels side by side; wider panels stand below each other
MARKED, OTHERS = "#D55E00", "#7a8794"  # seen on white and in print (Okabe and Ito, Color universal design, 2008)
MOST_WORDS = 8  # places on an axis of words
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
    objective = sweep.objectives[0]
    value = number(objective, {objective: sweep.value(each.trial)})
    first = f"{each.role}: {TITLES.get(objective, objective)} {value}, {each.trial.name}"
    return [first, f"seed {each.trial.seed}, signature {each.trial.signature}, commit {each.trial.commit}"]


def scenes_figure(sweep: SweepRuns, path: Path) -> bool:
    """Write the last figures that the chosen runs logged, with captions, as one PNG; False when none of them has one."""
    panels = []
    for each in chosen(sweep):
        content = last_artifact(each.trial.run.run_id, "figures")
        if content is not None:
            picture = Image.open(io.BytesIO(content)).convert("RGB")  # of an animation the first frame
            panels.append(_captioned(picture, caption(sweep, each)))
    if not panels:
        return False
    beside = sum(panel.width + GAP for panel in panels) <= WIDEST
    widths, heights = [panel.width for panel in panels], [panel.height for panel in panels]
    size = (
        (sum(widths) + GAP * (len(panels) - 1), max(heights)) if beside else (max(widths), sum(heights) + GAP * (len(panels) - 1))
    )
    canvas = Image.new("RGB", size, "white")
    left = top = 0
    for panel in panels:
        canvas.paste(panel, (left, top))
        left, top = (left + panel.width + GAP, 0) if beside else (0, top + panel.height + GAP)
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)
    return True


def _captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for at, line in enumerate(lines):
        while line and draw.textlength(line, font=font) > picture.width - 8:
            line = line.removesuffix("...")[:-1] + "..." if len(line) > 4 else ""
        draw.text((4, 3 + 20 * at), line, fill="black", font=font)
    canvas.paste(picture, (0, CAPTION))
    return canvas


def curves_figure(sweep: SweepRuns, path: Path) -> bool:
    """Write a PNG of the objective on the validation split over steps, a line a run, the best one marked; False without points."""
    objective = sweep.objectives[0]
    best = sweep.ranked[0] if sweep.ranked else None
    shown = [*(trial for trial in sweep.trials if trial.counts), *sweep.unfinished]
    lines = [(trial, metric_history(trial.run.run_id, f"val/{objective}")) for trial in shown]
    lines = [(trial, points) for trial, points in lines if points]
    if not lines:
        return False
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for trial, points in lines:
        is_best = trial is best
        axis.plot(
            *zip(*points, strict=True),
            color=MARKED if is_best else OTHERS,
            linewidth=2.2 if is_best else 1.0,
            alpha=1.0 if is_best else 0.6,
            linestyle=DASHES.get(trial.state, ":"),
            marker="o" if len(points) == 1 else None,
            markersize=4,
            zorder=3 if is_best else 2,
        )
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(f"{TITLES.get(objective, objective)}, validation")
    _tidy(axis)
    entries = [(MARKED, 2.2, "-", f"best: {best.name}, seed {best.seed}")] if best else []
    states = {trial.state for trial, _ in lines if trial is not best}
    kinds = (("finished", "-", "other runs"), ("pruned", "--", "pruned"))
    entries += [(OTHERS, 1.0, dash, text) for state, dash, text in kinds if state in states]
    entries += [(OTHERS, 1.0, ":", ", ".join(rest))] if (rest := sorted(states - set(DASHES))) else []
    handles = [pyplot.Line2D([], [], color=c, linewidth=w, linestyle=d, label=text) for c, w, d, text in entries]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    _save(figure, path)
    return True


def slices_figure(sweep: SweepRuns, path: Path) -> bool:
    """Write a PNG with an axis for each setting of the space: the objective of every run over its value; False without a space."""
    space = sweep.space
    ranked = sweep.ranked
    values = {
        name: [(trial.run.params[name], sweep.value(trial)) for trial in ranked if name in trial.run.params] for name in space
    }
    values = {name: points for name, points in values.items() if len({value for value, _ in points}) > 1}
    if not values:
        return False
    pyplot = _pyplot()
    columns = min(3, len(values))
    rows = math.ceil(len(values) / columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1 + 3.4 * columns, 0.4 + 2.9 * rows), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (name, points) in zip(axes.flat, values.items(), strict=False):
        left_out = _slice(axis, points, "log=True" in space[name])
        axis.set_xlabel(f"{name} (without {', '.join(left_out)})" if left_out else name, fontsize=9)
        _tidy(axis)
    for axis in list(axes.flat)[len(values) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel(f"best {TITLES.get(sweep.objectives[0], sweep.objectives[0])}")
    _save(figure, path)
    return True


def _slice(axis: Any, points: Sequence[tuple[str, float]], logarithmic: bool) -> list[str]:
    """One setting: numbers along an axis, few words and what is mixed with them as places of their own.

    Args:
        points: value and objective, best first.

    Returns: the words that have no place among many numbers.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    words = sorted({text for text, _ in points if not _is_number(text)})
    numbers = sorted({text for text, _ in points if _is_number(text)}, key=float)
    if (words and len(words) + len(numbers) <= MOST_WORDS) or not numbers:
        places = [*numbers, *words]
        axis.set_xticks(range(len(places)), [short(text)[:10] for text in places], fontsize=8)
        shown, words, logarithmic = [(float(places.index(text)), value) for text, value in points], [], False
    else:
        shown = [(float(text), value) for text, value in points if _is_number(text)]
    axis.scatter(*zip(*shown, strict=True), s=22, color=OTHERS, zorder=2)
    if points[0][0] not in words:
        axis.scatter(*shown[0], s=50, color=MARKED, zorder=3)
    if logarithmic and all(at > 0 for at, _ in shown):
        axis.set_xscale("log")
        # Matplotlib's own names of places between powers of ten run into each other.
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    return words


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _tidy(axis: Any) -> None:
    axis.grid(True, which="major", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    # Without the writer's version and the like: the same runs give the same bytes.
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    _pyplot().close(figure)
