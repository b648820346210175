import argparse
import json
from pathlib import Path

from cutslots import bench
from cutslots.files import write_text

__doc__ = "measure this machine: " + ", ".join(bench.names())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a benchmark, with its own arguments."""
    which = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for name in bench.names():
        module = bench.load(name)
        each = which.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        each.add_argument("--json", metavar="FILE", help="write the figures to this file")
        module.add_arguments(each)
        each.set_defaults(benchmark=name)


def run(chosen: argparse.Namespace) -> None:
    """Run one benchmark, which prints its figures."""
    figures = bench.load(chosen.benchmark).run(chosen)
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(figures, indent=2) + "\n")
