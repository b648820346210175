"""verify a prepared dataset: files, checksums, schema, masks"""

import argparse
import sys

from cutslots.cli._places import place
from cutslots.cli._texts import summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder."""
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="a folder that `cutslots prepare` wrote, its name in CUTSLOTS_HOME/data, or a URI",
    )


def run(chosen: argparse.Namespace) -> int:
    """Print every problem; status 1 when there is one."""
    from cutslots.data import Manifest, check, local

    where = place(chosen.directory)
    problems = check(where)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        print(
            f"{count}. Run the same `cutslots prepare` with --overwrite to write the set anew.",
            file=sys.stderr,
        )
        return 1
    print(f"{where}: complete and undamaged; {summary(Manifest.load(local(where)))}")
    return 0
