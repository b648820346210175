"""Does training through the matching program find more true citations than training to classify pairs? (The paper's section 6.2.)

    cutslots prepare cora RAW                     # once: cora.npz, or cora.content with cora.cites, in the folder RAW
    python sweeps/cora.py                         # 30 splits, about two minutes on 2 cores
    python sweeps/cora.py --peer                  # also the program of Wilder et al. (2018), with all its inequalities
    python sweeps/cora.py --everywhere            # held-out instances drawn from all 27, the publications' protocol
    python sweeps/cora.py --tune                  # the choice of settings again, about half an hour on 2 cores
    python sweeps/cora.py --smoke                 # seconds: does all of it run?

A network sees the words of two papers and weighs the pair; the matching LP then chooses pairs; the value is the number of true
citations among them, the mean over held-out instances. Settings were chosen on 15 of the 27 instances, by cross-validation inside
them; held-out instances come from the other 12 only, except with --everywhere. Table and runs.csv go to --out, runs to the MLflow
experiment "cora".

Expected, beside published 7.01 (the paper) and 6.15 (Wilder et al.) on other instances: program 9.45, two-stage 8.74; at the plain
published settings program 6.54, two-stage 2.85; random 2.85, optimum 41.31. Words in common, without learning, give 15.39.
"""

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from cutslots.cli._counting import Counting
from cutslots.cora import load
from cutslots.cora.protocol import PEER, PLAIN, TUNED, run_all, splits, tune
from cutslots.cora.table import caption, log, markdown, tuning_csv, write
from cutslots.errors import InputError
from cutslots.exit_status import exit_status
from cutslots.files import git_commit, home, write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="the prepared folder; default CUTSLOTS_HOME/data/cora"
    )
    parser.add_argument("--splits", type=int, default=30, help="random splits (default 30)")
    parser.add_argument(
        "--out",
        type=Path,
        help="where table.md and runs.csv go; default CUTSLOTS_HOME/results/cora, cora-everywhere or cora-smoke",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: as many as cores)"
    )
    parser.add_argument(
        "--peer", action="store_true", help="also run the program with inequalities"
    )
    parser.add_argument("--everywhere", action="store_true", help="hold out tuning instances too")
    parser.add_argument(
        "--tune", action="store_true", help="choose settings again and write tuning.csv instead"
    )
    parser.add_argument("--smoke", action="store_true", help="2 splits, 1 epoch, nothing to MLflow")
    chosen = parser.parse_args()
    sys.exit(exit_status(lambda: run(chosen)))


def run(chosen: argparse.Namespace) -> None:
    data = chosen.data or home() / "data" / "cora"
    # Each protocol has a folder: none writes over another's table.
    out = chosen.out or home() / "results" / (
        "cora-smoke" if chosen.smoke else "cora-everywhere" if chosen.everywhere else "cora"
    )
    if not data.exists():
        raise InputError(
            f"data folder {data} does not exist. Prepare it first: cutslots prepare cora RAW {data}"
        )
    if min(chosen.splits, chosen.workers) < 1:
        raise InputError(
            f"--splits {chosen.splits}, --workers {chosen.workers}: both must be at least 1."
        )
    instances, methods = load(data), {**TUNED, **PLAIN, **(PEER if chosen.peer else {})}
    if chosen.tune:
        with Counting("settings") as progress:
            candidates = tune(instances, methods, chosen.workers, progress=progress)
        write_text(out / "tuning.csv", tuning_csv(candidates))
        print(f"{out / 'tuning.csv'}: {len(candidates)} candidates, best first within each method")
        return
    if chosen.smoke:
        chosen.splits, methods = (
            2,
            {name: replace(settings, epochs=1) for name, settings in methods.items()},
        )
    with Counting("runs") as progress:
        runs = run_all(
            instances,
            splits(len(instances), chosen.splits, everywhere=chosen.everywhere),
            methods,
            chosen.workers,
            progress,
        )
    command = shlex.join(["python", *sys.argv])
    commit = git_commit(Path(__file__).parent) or "unknown"
    table = markdown(runs, caption(instances, runs, command, commit))
    write(out, runs, table)
    print(table)
    if not chosen.smoke:
        left = log(instances, runs, methods, out, {"command": command, "commit": commit})
        if left:
            print(
                f"{left} events did not reach MLflow. For each cora-... in {home() / 'runs'}: cutslots sync RUN"
            )


if __name__ == "__main__":
    main()
