"""`make benchmarks` leaves no benchmark out."""

import re
from pathlib import Path

from cutslots import bench


def test_make_runs_every_benchmark():
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    recipe = text.split("\nbenchmarks:")[1].split("\n\n")[0]
    loop = re.search(r"for name in ([a-z ]+);", recipe)
    assert loop
    assert {*loop[1].split(), *re.findall(r"bench ([a-z]+) ", recipe)} == set(bench.names())
