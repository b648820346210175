"""Update the table in results/README.md: `python results/update_readme.py`.

It has a row for every dataset that the kept models in results/*/*.json were scored on. Several
files of a folder with the same model are runs with other seeds: their row has the mean and the
sample standard deviation.
"""

import json
from pathlib import Path

from cutslots.files import write_text
from cutslots.metrics.registry import title
from cutslots.report.tables import Table, mean_and_deviation

RESULTS = Path(__file__).parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
SCORES = ("ari_fg", "tiles_ari_fg", "cut_ari_fg", "ari", "miou", "miou_fg", "mse")


def results_table(folder: Path) -> str:
    """The scores that `cutslots evaluate --json` wrote to `folder/*/*.json`, as Markdown."""
    runs: dict[tuple[str, ...], list[tuple[Path, int, dict[str, float]]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or "trained_on" not in result:
            continue
        for scored in result["sets"]:
            tiles = {f"tiles_{name}": value for name, value in scored.get("tiles", {}).items()}
            model = result.get("architecture") or path.stem
            split = f"{scored['name']}, {scored['split']}"
            key = (path.parent.name, model, result["trained_on"], split, scored["digest"])
            run = (path.relative_to(folder), result["image_size"], scored["scores"] | tiles)
            runs.setdefault(key, []).append(run)
    rows = []
    for (_, model, trained_on, split, _), of in runs.items():
        path, size, scores = of[0]
        link = path if len(of) == 1 else path.parent
        cells = []
        for name in SCORES:
            values = [run[name] for _, _, run in of if name in run]
            # Fixed tiles have the same score for every seed.
            cells.append(mean_and_deviation(name, values if len(set(values)) > 1 else values[:1]))
        images = f"{scores['num_images']:,.0f}"
        model = f"[{model}]({link.as_posix()})"
        rows.append([trained_on, split, model, str(len(of)), images, str(size), *cells])
    titles = ["tiles' ARI-FG" if name == "tiles_ari_fg" else title(name) for name in SCORES]
    numeric = ["runs", "images", "size", *titles]
    return Table(["trained on", "scored on", "model", *numeric], rows, numeric).markdown()


def updated(text: str, table: str) -> str:
    """The text with the table between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"results/README.md must contain {BEGIN.strip()} and {END}.")
    return f"{before}{BEGIN}{table}{END}{after}"


if __name__ == "__main__":
    readme = RESULTS / "README.md"
    write_text(readme, updated(readme.read_text(encoding="utf-8"), results_table(RESULTS)))
