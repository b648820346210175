"""The report of a sweep as a folder, and the card of an exported model, from templates."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cutslots.errors import InputError
from cutslots.files import atomic, write_text
from cutslots.metrics.registry import title
from cutslots.report.evaluation import SCORES
from cutslots.report.figures import EXAMPLES
from cutslots.report.importance import analysis
from cutslots.report.plots import curves_figure, describe, slices_figure
from cutslots.report.scored_run import short_commit
from cutslots.report.sweep import SweepRuns, runs_csv, sections, summary, sweep_runs
from cutslots.report.tables import Table, score_text
from cutslots.tracking import last_artifact
from cutslots.train.config import RunConfig

PROGRAM = "model.pt2"
FACTS = {
    "run": "run",
    "trained_on": "trained on",
    "step": "step",
    "signature": "run hash",
    "data_digest": "data digest",
    "commit": "training commit",
    "weights": "weights digest",
    "version": "exported by cutslots",
}


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("cutslots.report"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def write_report(name: str, out: Path) -> Path:
    """Write a sweep's `index.html`, `table.md`, `runs.csv` and figures to the folder `out/name`.

    Returns: the folder; the same runs give the same bytes.

    Raises:
        InputError: MLflow is unreachable, has no such sweep or no trial of it, or the folder
            contains something else.
    """
    sweep = sweep_runs(name)
    folder = out / name
    if name in (".", "..") or "/" in name:
        raise InputError(f"the sweep's name must be usable as a folder's name, got {name!r}.")
    for path in (out, folder):
        if path.is_file():
            raise InputError(f"--out must be a folder, got {out}: {path} is a file.")
    table = folder / "table.md"
    if table.exists() and f"# Sweep {name}\n" not in table.read_text(encoding="utf-8"):
        raise InputError(f"{table} is not a report of sweep {name!r}. Give another --out.")
    folder.mkdir(parents=True, exist_ok=True)

    analysed, lines, tables = analysis(sweep), summary(sweep), sections(sweep)
    captions = {
        "figure.png": ("Scenes", _scenes_figure(sweep, folder / "figure.png")),
        "curves.png": ("Learning curves", curves_figure(sweep, folder / "curves.png")),
        "slices.png": ("Slices", slices_figure(sweep, analysed, folder / "slices.png")),
    }
    figures = {file: texts for file, texts in captions.items() if texts[1] is not None}
    for file in captions.keys() - figures:  # an earlier report may have had something to draw
        (folder / file).unlink(missing_ok=True)
    values = {"name": name, "summary": lines, "sections": tables, "analysis": analysed}
    write_text(folder / "index.html", _render("sweep.html", figures=figures, **values))

    parts = [f"# Sweep {name}\n", "".join(f"- {line}\n" for line in lines)]
    parts += [section.markdown() for section in tables]
    parts += ["## Importance of parameters\n", f"{analysed.about}\n"]
    shares = [[parameter, f"{share:.2f}"] for parameter, share in analysed.importance.items()]
    parts += [Table(["parameter", "share"], shares, ["share"]).markdown()] if shares else []
    write_text(table, "\n".join(parts))
    write_text(folder / "runs.csv", runs_csv(sweep))
    return folder


def _scenes_figure(sweep: SweepRuns, path: Path) -> str | None:
    """Save the best run's scenes of best, median and worst score; returns the figure's caption.

    An older run did not log them: its last figure takes their place.
    """
    if not sweep.ranked:
        return None
    best = sweep.ranked[0]
    origin = (
        f"Best run: {describe(sweep, best)}, {best.label}, seed {best.seed},"
        f" run hash {best.run_hash}, commit {short_commit(best)}."
    )
    shown = {
        EXAMPLES: "Scenes of the validation split with the best, the median and the worst"
        f" {title(sweep.objective)}, at the best step of the best run.",
        "figures": "The last figure, of the split's first scenes, of the best run.",
    }
    for folder, caption in shown.items():
        content = last_artifact(best.run_id, folder)
        if content is not None:
            image = Image.open(io.BytesIO(content)).convert("RGB")  # of clips the first frame
            with atomic(path) as temporary:
                image.save(temporary, format="PNG", optimize=True)
            return f"{caption} {origin}"
    return None


def model_card(
    name: str,
    config: RunConfig,
    num_parameters: int,
    facts: Mapping[str, Any],
    program: bool | None = None,
) -> str:
    """The README of an exported model, as Markdown.

    Args:
        facts: of `cutslots.runs.provenance`, `weights` and `version`; missing ones are left out.
        program: whether the program takes any number of images or one; None without a program.
    """
    scores: Mapping[str, Mapping[str, float]] = facts.get("scores", {})
    names = [name for name in SCORES if any(name in values for values in scores.values())]
    rows = [
        [
            split,
            f"{values['num_images']:,.0f}" if "num_images" in values else "",
            *(score_text(name, values.get(name)) for name in names),
        ]
        for split, values in scores.items()
    ]
    numeric = ["images", *map(title, names)]
    lines = [[text, str(facts[key])] for key, text in FACTS.items() if facts.get(key) is not None]
    return _render(
        "model_card.md",
        name=name,
        config=config,
        size=config.model.image_size,
        slots=getattr(config.model, "num_slots", None),
        video=getattr(config.model, "frames", 1) > 1,
        num_parameters=num_parameters,
        facts=Table(["fact", "value"], lines).markdown(),
        scores=Table(["on", *numeric], rows, numeric).markdown() if rows else "",
        program_file=PROGRAM,
        program=program,
    )
