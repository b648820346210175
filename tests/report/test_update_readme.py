"""The table of kept results in results/README.md."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "results"
SCRIPT = runpy.run_path(str(RESULTS / "update_readme.py"))
results_table, updated = SCRIPT["results_table"], SCRIPT["updated"]


def keep(path: Path, datasets: dict[str, dict[str, float]], **changes: Any) -> None:
    """Write a file like `cutslots evaluate --json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"trained_on": "scenes", "architecture": "min_cut_slots", "image_size": 32, **changes}
    about = {"split": "test", "digest": "d", "tiles": {"ari_fg": 0.5}}
    scored = [
        {"name": name, "scores": {"num_images": 40.0, **scores}, **about}
        for name, scores in datasets.items()
    ]
    path.write_text(json.dumps({**result, "sets": scored}))


def test_seeds_are_one_row(tmp_path, cells):
    scores = {"scenes": {"ari_fg": 0.5, "mse": 10.0}, "clevr": {"ari_fg": 0.25}}
    keep(tmp_path / "a" / "s0.json", scores)
    keep(tmp_path / "a" / "s1.json", {"scenes": {"ari_fg": 0.75, "mse": 12.0}})
    other = {"scenes": {"ari_fg": 0.125}}
    keep(tmp_path / "a" / "other.json", other, architecture="slot_attention")
    keep(tmp_path / "b" / "s0.json", {"scenes": {"ari_fg": 1.0}})
    (tmp_path / "b" / "other.json").write_text('{"of": "something else"}')
    rows = cells(results_table(tmp_path))[1:]
    assert [row[:5] for row in rows] == [
        ["scenes", "scenes, test", "[slot_attention](a/other.json)", "1", "40"],
        ["scenes", "scenes, test", "[min_cut_slots](a)", "2", "40"],
        ["scenes", "clevr, test", "[min_cut_slots](a/s0.json)", "1", "40"],
        ["scenes", "scenes, test", "[min_cut_slots](b/s0.json)", "1", "40"],
    ]
    assert rows[1][6:] == ["0.6250 ± 0.1768", "0.5000", "", "", "", "", "11.00 ± 1.41"]


def test_the_readme_is_up_to_date():
    readme = (RESULTS / "README.md").read_text()
    assert updated(readme, results_table(RESULTS)) == readme, "python results/update_readme.py"
    with pytest.raises(SystemExit, match="results"):
        updated("no marks", "table")
