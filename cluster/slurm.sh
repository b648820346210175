#!/usr/bin/env bash
#SBATCH --job-name=cutslots
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
#
# A Ray cluster for one sweep inside a Slurm job. From the project's folder, which all nodes must share:
#
#     sbatch cluster/slurm.sh                                  # sweeps/clevrtex.py
#     sbatch --nodes=4 cluster/slurm.sh sweeps/clevr.py --trials 40
#
# Five minutes before its time limit the job asks the sweep to checkpoint and requeues itself; the
# sweep then resumes, as it does after a failed node. cluster/README.md explains how to watch and stop
# it, and which variables it reads.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is for Slurm: sbatch cluster/slurm.sh SWEEP"
cd "$SLURM_SUBMIT_DIR"
sweep=${1:-sweeps/clevrtex.py}
shift || true
[ -f "$sweep" ] || fail "no $sweep in $PWD: call sbatch from the project's folder."
export PATH="${CUTSLOTS_VENV:-$PWD/.venv}/bin:$PATH"
command -v ray > /dev/null || fail "no ray in ${CUTSLOTS_VENV:-$PWD/.venv}: run make there once, or set CUTSLOTS_VENV."

# Several jobs may share a node: every port and folder is the job's own. All ports lie below those that the system hands out.
number=$((SLURM_JOB_ID % 4000))
gcs=$((20000 + number)) dashboard=$((24000 + number)) tracking=$((28000 + number))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${CUTSLOTS_HEAD:-$(hostname -I | cut -d ' ' -f 1)} # this script runs on the first node
temporary=/tmp/ray-$SLURM_JOB_ID                        # short: sockets' paths have little room
export CUTSLOTS_HOME=${CUTSLOTS_HOME:-$PWD/cutslots-home}
export CUTSLOTS_LOCAL=${CUTSLOTS_LOCAL:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/cutslots-$SLURM_JOB_ID}
export CUTSLOTS_FACTORS=$CUTSLOTS_LOCAL/factors
export RAY_ADDRESS=$head:$gcs RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$CUTSLOTS_HOME/slurm/token-$SLURM_JOB_ID

make_token() {
    mkdir -p "$CUTSLOTS_HOME/slurm"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
}

start_tracking() { # unless a server that outlives the job is named
    if [ -n "${MLFLOW_TRACKING_URI:-}" ]; then return; fi
    export MLFLOW_TRACKING_URI=http://$head:$tracking
    bash cluster/tracking.sh start
    own_tracking=yes
}

step() { # NODES OPTION... -- COMMAND...: beside the other steps of the job
    srun --overlap --nodes="$1" --ntasks="$1" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${@:2}" &
    steps+=($!)
}

start_ray() {
    local room=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)
    step 1 --nodelist="${nodes[0]}" ray start --head --node-ip-address="$head" --port="$gcs" \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --temp-dir="$temporary" "${room[@]}"
    for _ in {1..120}; do
        if (exec 3<> "/dev/tcp/$head/$gcs") 2> /dev/null; then break; fi
        sleep 1
    done
    if [ ${#nodes[@]} -gt 1 ]; then
        step $((${#nodes[@]} - 1)) --exclude="${nodes[0]}" ray start --address="$head:$gcs" "${room[@]}"
    fi
    python - "${#nodes[@]}" << 'PYTHON'
import sys, time, ray
ray.init(logging_level="ERROR", log_to_driver=False)
alive = 0
for _ in range(300):
    alive = sum(node["Alive"] for node in ray.nodes())
    if alive >= int(sys.argv[1]):
        print("Ray:", alive, "nodes,", {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")})
        break
    time.sleep(1)
else:
    sys.exit(f"error: {alive} of {sys.argv[1]} nodes joined within five minutes")
PYTHON
}

# shellcheck disable=SC2329 # called by a trap, as those below
clean_up() {
    local status=$?
    trap - EXIT
    trap '' TERM INT # the rest takes seconds
    if [ -n "$driver" ]; then kill -TERM "$driver" 2> /dev/null || true; fi
    if [ -n "$own_tracking" ]; then bash cluster/tracking.sh stop || true; fi
    if [ ${#steps[@]} -gt 0 ]; then
        kill -TERM "${steps[@]}" 2> /dev/null || true
        wait "${steps[@]}" || true
    fi
    srun --overlap --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$temporary" "$CUTSLOTS_LOCAL" || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
    if [ "$status" -ne 0 ] && [ -n "$asked_to_end" ] && time_is_up; then
        echo "the time is up; the job goes back into the queue and on from its checkpoints"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}

# Whether it is the time limit that ends us, and not scancel.
# shellcheck disable=SC2329
time_is_up() {
    local end=${SLURM_JOB_END_TIME:-}
    if [ -z "$end" ]; then end=$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s) || return 1; fi
    [ $((end - $(date +%s))) -lt 400 ]
}

# shellcheck disable=SC2329
forward() {
    asked_to_end=yes
    if [ -n "$driver" ]; then kill -TERM "$driver" 2> /dev/null || true; else exit 143; fi
}

steps=() driver='' own_tracking='' asked_to_end=''
trap clean_up EXIT
trap forward TERM INT
make_token
start_tracking
start_ray
echo "sweep: $sweep --resume $*"
echo "dashboard: ssh -L 8265:127.0.0.1:$dashboard ${nodes[0]}    MLflow: ssh -L 5000:${MLFLOW_TRACKING_URI#http://} ${nodes[0]}"
python "$sweep" --resume "$@" &
driver=$!
status=0
while :; do # a signal ends `wait` before the driver has ended
    wait "$driver" && status=0 || status=$?
    if ! kill -0 "$driver" 2> /dev/null; then break; fi
done
driver=''
exit "$status"
