"""The README's table of kept results."""

import json
from pathlib import Path
from typing import Any

from cutslots.report.results import results_table


def keep(path: Path, sets: dict[str, dict[str, float]], **changes: Any) -> None:
    """A file as `cutslots evaluate --json` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"trained_on": "scenes", "architecture": "min_cut_slots", "image_size": 32, **changes}
    tiles = {"ari_fg": 0.5}
    each = [
        {
            "name": name,
            "split": "test",
            "digest": "d",
            "scores": {"num_images": 40.0, **scores},
            "tiles": tiles,
        }
        for name, scores in sets.items()
    ]
    path.write_text(json.dumps({**found, "sets": each}))


def test_seeds_are_one_row_and_models_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    keep(
        folder / "a" / "s0.json",
        {"scenes": {"ari_fg": 0.5, "mse": 10.0}, "clevr": {"ari_fg": 0.25}},
    )
    keep(folder / "a" / "s1.json", {"scenes": {"ari_fg": 0.75, "mse": 12.0}})
    keep(folder / "a" / "other.json", {"scenes": {"ari_fg": 0.125}}, architecture="slot_attention")
    keep(folder / "b" / "s0.json", {"scenes": {"ari_fg": 1.0}})
    (folder / "b" / "figures.json").write_text('{"of": "something else"}')
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in results_table(folder).splitlines()[2:]
    ]
    assert [row[:5] for row in rows] == [
        ["scenes", "scenes, test", "[slot_attention](results/a/other.json)", "1", "40"],
        ["scenes", "scenes, test", "[min_cut_slots](results/a)", "2", "40"],
        ["scenes", "clevr, test", "[min_cut_slots](results/a/s0.json)", "1", "40"],
        ["scenes", "scenes, test", "[min_cut_slots](results/b/s0.json)", "1", "40"],
    ]
    assert rows[1][6:] == ["0.6250 ± 0.1768", "0.5000", "", "", "", "11.00 ± 1.41"]
