"""Does training through the matching program find more citations than classifying pairs does?

    pip install 'cutslots[cora]'                  # METIS
    cutslots prepare cora RAW                     # cora.npz, or cora.content and cora.cites (LINQS)
    python sweeps/cora.py                         # 30 splits, about two minutes on 2 cores
    python sweeps/cora.py --peer                  # also the program of Wilder et al. (2018)
    python sweeps/cora.py --everywhere            # the publications' protocol: all 27 held out
    python sweeps/cora.py --tune                  # choose the settings again, half an hour
    python sweeps/cora.py --smoke                 # tests everything in seconds

Section 6.2 of the paper: a network sees the words of two papers and weighs the pair, the exact
matching LP chooses pairs, and the score is the number of true citations among them, averaged over
held-out instances. Settings were chosen by cross-validation on 15 of the 27 instances, which are
never held out without --everywhere (results/cora/tuning.csv). Table and runs.csv go to --out, runs
to the MLflow experiment "cora".

Results (results/cora): program 9.45 of 41.31 citations, two-stage 8.74, random 2.85; at the plain
published settings program 6.54, two-stage 2.85. Published, on other instances of the same graph:
7.01 (the paper) and 6.15 (Wilder et al.). Most of the gain over the plain settings comes from
swapping the two sides by a coin. Counting the words in common, without learning, gives 15.39.
"""

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cutslots import cora, files
from cutslots.cora import experiment, protocol
from cutslots.errors import InputError
from cutslots.exit_status import exit_status


def run(chosen: argparse.Namespace) -> None:
    home, workers = files.home(), chosen.workers
    if min(chosen.splits, workers) < 1:
        raise InputError(f"--splits {chosen.splits} and --workers {workers} must be at least 1.")
    # One folder per protocol, so that none overwrites another's table.
    name = "cora-smoke" if chosen.smoke else "cora-everywhere" if chosen.everywhere else "cora"
    out = chosen.out or home / "results" / name
    instances = cora.load(chosen.data or home / "data" / "cora")
    methods = protocol.TUNED | protocol.PLAIN | (protocol.PEER if chosen.peer else {})
    if chosen.tune:
        candidates = protocol.tune(instances, methods, workers)
        files.write_text(out / "tuning.csv", experiment.tuning_csv(candidates))
        print(f"{out / 'tuning.csv'}: {len(candidates)} candidates, best first within each method")
        return
    if chosen.smoke:
        chosen.splits = 2
        methods = {name: replace(settings, epochs=1) for name, settings in methods.items()}
    splits = protocol.splits(len(instances), chosen.splits, everywhere=chosen.everywhere)
    results = protocol.run_all(instances, splits, methods, workers)
    total = chosen.splits * (len(methods) + len(protocol.REFERENCES))
    runs = list(track(results, "runs", total, console=Console(stderr=True), transient=True))
    command = shlex.join(["python", *sys.argv])
    commit = files.git_commit(Path(__file__).parent) or "unknown"
    caption = experiment.caption(instances, runs, command, commit)
    table = experiment.markdown(runs, caption)
    files.write_text(out / "table.md", table)
    files.write_text(out / "runs.csv", experiment.runs_csv(runs))
    print(table)
    tags = {"command": command, "commit": commit}
    if not chosen.smoke and experiment.log(instances, runs, methods, out, tags):
        print(f"MLflow is incomplete. For each {home}/runs/cora-... run: cutslots sync RUN")


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--data", type=Path, help="prepared folder (default: CUTSLOTS_HOME/data/cora)")
    add("--out", type=Path, help="folder of results (default: CUTSLOTS_HOME/results/cora...)")
    add("--splits", type=int, default=30, help="random splits (default 30)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    add("--peer", action="store_true", help="also run the program with inequalities")
    add("--everywhere", action="store_true", help="hold out tuning instances too")
    add("--tune", action="store_true", help="choose settings again and write tuning.csv")
    add("--smoke", action="store_true", help="2 splits, 1 epoch, nothing to MLflow")
    chosen = parser.parse_args()
    sys.exit(exit_status(lambda: run(chosen)))
