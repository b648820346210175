"""verify a prepared dataset: files, checksums, schema, masks"""

import argparse
import sys

from cutslots.cli._texts import summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder."""
    parser.add_argument("directory", metavar="DIR", help="a folder that `cutslots prepare` wrote, or the URI of one")


def run(chosen: argparse.Namespace) -> int:
    """Print every problem; status 1 when there is one."""
    from cutslots.data import Manifest, check, local

    problems = check(chosen.directory)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        print(
            f"{len(problems)} problems. Run the same `cutslots prepare` with --overwrite to write the set anew.",
            file=sys.stderr,
        )
        return 1
    print(f"{chosen.directory}: complete and undamaged; {summary(Manifest.load(local(chosen.directory)))}")
    return 0
