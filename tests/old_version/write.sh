#!/bin/bash
# Writes old.tar.xz with the code of commit f4b9cf5. Run in a checkout of that commit, with its .venv: bash write.sh PATH/old.tar.xz
set -euo pipefail
OUT=$(realpath -m "$1"); ROOT=/tmp/cutslots-old
rm -rf $ROOT; mkdir -p $ROOT/scores
export PYTHONPATH=$PWD:$PWD/tests/data CUTSLOTS_HOME=$ROOT/home CUTSLOTS_FACTORS=$ROOT/factors
export OMP_NUM_THREADS=1 MLFLOW_DISABLE_TELEMETRY=true RAY_USAGE_STATS_ENABLED=0
cutslots() { .venv/bin/python -m cutslots "$@"; }
train() { echo "$*" >> $ROOT/commands.txt; cutslots train "$@"; }
sets() { for pair in "$@"; do printf -- '--set %s ' "$pair"; done; }
TRAIN=$(sets image_size=16 encoder.channels=4 encoder.num_layers=2 encoder.kernel=3 decoder.channels=4 decoder.kernel=3 optim.batch_size=8 train.log_every=5 train.eval_every=10 train.eval_images=8 train.checkpoint_every=10)
CUT="$TRAIN $(sets weights.hidden=4 slots.size=4 slots.hidden=8)"

cutslots prepare scenes --count 30 --size 16 --workers 1
.venv/bin/python -c "import movi_files, pathlib; movi_files.write_folder(pathlib.Path('$ROOT/raw'))"
cutslots prepare movi_a $ROOT/raw/movi_a --size 16 --workers 1

train scenes --preset small $CUT --steps 20
train scenes --preset small $CUT --set cut.solver=vertex --steps 10 --name vertex
train scenes --preset slot-attention-small $TRAIN --set attention.size=4 --set attention.hidden=8 --steps 10 --name slot-attention
train scenes --preset genesis-v2-small --set image_size=16 --set optim.batch_size=8 --set model.size=8 $(sets train.eval_every=10 train.eval_images=8 train.checkpoint_every=10) --steps 10 --name genesis
train movi_a --preset small-video $CUT --set matching.hidden=4 --set optim.batch_size=4 --steps 10 --name video

# A run without an interruption, and the same one ended by Ctrl-C while it writes its first checkpoint.
train scenes --preset small $CUT --steps 20 --seed 7 --name resumed
mv $ROOT/home/runs/resumed $ROOT/uninterrupted
.venv/bin/python - train scenes --preset small $CUT --steps 20 --seed 7 --name resumed <<'P' || test $? = 130
import os, signal, sys
from cutslots.cli import main
from cutslots.train import checkpoint
save = checkpoint.save
def interrupted(path, state, keep):
    save(path, state, keep)
    os.kill(os.getpid(), signal.SIGINT)
checkpoint.save = interrupted
sys.exit(main(sys.argv[1:]))
P

cat > $ROOT/sweep.py <<'P'
from cutslots.launch.sweep import Setting, Sweep, choices, integers, log_uniform, main, uniform

STEPS = ("train.steps=20", "train.log_every=5", "train.eval_every=5", "train.eval_images=8", "train.checkpoint_every=10")
SIZES = ("image_size=16", "encoder.channels=4", "encoder.kernel=3", "decoder.channels=4", "decoder.kernel=3", "optim.batch_size=8")
SWEEP = Sweep(
    name="old",
    dataset="scenes",
    preset="small",
    set=(*SIZES, "weights.hidden=4", "slots.hidden=8", *STEPS),
    space={
        "optim.learning_rate": log_uniform(1e-3, 6e-3),
        "temperature.combined": uniform(0.05, 0.3),
        "slots.size": integers(4, 6),
        "init": choices("he", "torch"),
    },
    first={
        "small": Setting(set=("slots.size=4",)),
        "slot-attention": Setting("slot-attention-small", (*SIZES, "attention.size=4", "attention.hidden=8", *STEPS)),
    },
    trials=2,
    make={"count": 30, "size": 16},
)

if __name__ == "__main__":
    main(SWEEP)
P
.venv/bin/python $ROOT/sweep.py
cutslots export vertex $ROOT/home/exported

for run in $(ls $ROOT/home/runs) exported; do
  path=$ROOT/home/runs/$run; data=scenes
  test $run = exported && path=$ROOT/home/exported
  test $run = video && data=movi_a
  cutslots evaluate $path --data $data --json $ROOT/scores/$run.json
done

cutslots best --dataset scenes --limit 20 --json > $ROOT/best.json

.venv/bin/python - $ROOT <<'P'
import hashlib, json, platform, sys
from pathlib import Path
import torch

root = Path(sys.argv[1])
def digest(path):
    model = torch.load(path, weights_only=True)["model"]
    return hashlib.sha256(b"".join(name.encode() + model[name].numpy().tobytes() for name in sorted(model))).hexdigest()
def scores(path):
    return json.loads(path.read_text())["sets"][0]["scores"]
runs = [*(root / "home/runs").iterdir(), root / "uninterrupted"]
record = {
    "commit": "f4b9cf5",
    "machine": [torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine()],
    "cpu": next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
    "train": [line.split() for line in (root / "commands.txt").read_text().splitlines()],
    "weights": {run.name: digest(sorted(run.glob("checkpoints/step-*.pt"))[-1]) for run in runs},
    "scores": {path.stem: scores(path) for path in (root / "scores").glob("*.json")},
    "best": json.loads((root / "best.json").read_text()),
}
(root / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
P

# Keep what a later version has to read; of MLflow's files those that the registry names.
cd $ROOT/home
champion=$(python3 -c "import sqlite3; print(sqlite3.connect('mlflow.db').execute('select storage_location from model_versions').fetchone()[0])")
mkdir $ROOT/kept
cp -a --parents ${champion#*$ROOT/home/} $ROOT/kept/
rm -rf artifacts runs/genesis runs/*/{figures,examples,mlflow-model,model} sweeps/old/ray*
mv $ROOT/kept/artifacts .
cd $ROOT
find home factors '(' -name '*.lock' -o -name .lock -o -name log.txt -o -name step-00000015.pt ')' -delete
rm home/runs/scenes-*_*/checkpoints/best.pt
tar -cJf "$OUT" home factors record.json
ls -l "$OUT"
