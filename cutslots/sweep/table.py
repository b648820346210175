"""A sweep's trials as a table, best first."""

from collections.abc import Sequence
from typing import Any

from cutslots.report.tables import clock
from cutslots.sweep.display import Row
from cutslots.sweep.study import Study

SHOWN = ("ari_fg", "ari", "miou", "mse", "cut_ari_fg")


def records(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every trial with its settings, scores and run, best first; those without a result behind."""
    ranks = {trial.number: rank for rank, trial in enumerate(study.ranked(), 1)}
    several = len(study.sweep.objectives) > 1
    front = {trial.number for trial in study.optuna.best_trials} if several and ranks else set()
    found = []
    for row in sorted(rows, key=lambda row: (ranks.get(row.number, len(rows) + 1), row.number)):
        trial = study.trials()[row.number]
        found.append(
            {
                "rank": ranks.get(row.number),
                **({"pareto": row.number in front} if several else {}),
                "number": row.number,
                "kind": trial.user_attrs.get("kind"),
                "label": row.label,
                "state": row.state,
                "values": trial.params,
                "seed": trial.user_attrs.get("seed"),
                "step": trial.user_attrs.get("step"),
                "scores": trial.user_attrs.get("scores", {}),
                "seconds": row.seconds,
                "run": row.run_dir.name,
                "cause": row.cause,
            }
        )
    return found


def markdown(study: Study, rows: Sequence[Row], most: int | None = None) -> str:
    """The table as Markdown.

    Args:
        most: rows at most, best first; None: all.
    """
    sweep, found = study.sweep, records(study, rows)
    names = list(dict.fromkeys([*sweep.objectives, *SHOWN]))
    names = [name for name in names if any(name in each["scores"] for each in found)]
    lines = [["", "trial", "settings", *names, "steps", "time", "state"]]
    for each in found[:most]:
        mark = (
            ""
            if each["rank"] is None
            else f"{each['rank']}{' Pareto' if each.get('pareto') else ''}"
        )
        values = [_score(name, each["scores"].get(name)) for name in names]
        state = each["state"] + (
            f": {each['cause']}" if each["state"] == "failed" and each["cause"] else ""
        )
        step = "" if each["step"] is None else f"{each['step']:,}"
        took = "" if each["seconds"] is None else clock(each["seconds"])
        lines.append([mark, str(each["number"]), each["label"], *values, step, took, state])
    title = f"# Sweep {sweep.name}: {sweep.dataset}, {' and '.join(sweep.objectives)} on the validation split, best checkpoints\n\n"
    return title + _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


def _score(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if name == "mse" else f"{value:.3f}"
