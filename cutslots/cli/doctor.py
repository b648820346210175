"""tell the state of this installation, and what mends it

Marks: ok; missing: not there, and nothing is broken by that; problem: broken, and then the exit status is 1.
"""

import argparse
import json
from dataclasses import asdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to print, and what to clear."""
    parser.add_argument(
        "--clear-factors",
        action="store_true",
        help="empty the factor cache, and tell what that freed",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(chosen: argparse.Namespace) -> int:
    """Print every fact, or what was cleared; status 1 when something is broken."""
    from cutslots.cli._facts import cleared_factors, collect

    facts = cleared_factors() if chosen.clear_factors else collect()
    if chosen.json:
        print(json.dumps([asdict(fact) for fact in facts], indent=2))
    else:
        for fact in facts:
            print(f"{fact.mark:<9}{fact.name:<16}{fact.text}")
            if fact.remedy:
                print(f"{'':<9}{'':<16}-> {fact.remedy}")
    return int(any(fact.mark == "problem" for fact in facts))
