import argparse
import json
from pathlib import Path

from cutslots import bench
from cutslots.files import write_text

__doc__ = "measure this machine: " + ", ".join(bench.COMMANDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand per benchmark, with its own arguments."""
    which = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for name in bench.COMMANDS:
        benchmark = bench.load(name)
        command = which.add_parser(name, help=(benchmark.__doc__ or "").splitlines()[0])
        bench.add_arguments(command, benchmark)
        command.add_argument("--json", metavar="FILE", help="write the results to this file")
        command.set_defaults(benchmark=name)


def run(chosen: argparse.Namespace) -> None:
    """Run one benchmark, which prints its results."""
    results = bench.run(bench.load(chosen.benchmark), chosen)
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(results, indent=2) + "\n")
