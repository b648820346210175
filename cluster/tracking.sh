#!/usr/bin/env bash
# MLflow for a cluster, on its head:
#
#     cluster/tracking.sh start    # in the background; returns when the server answers
#     cluster/tracking.sh stop     # after a last copy of the database
#     cluster/tracking.sh serve    # in the foreground, for containers
#
# CUTSLOTS_TRACKING_DB     a database such as postgresql://USER:PASSWORD@HOST/mlflow: recommended, and
#                          needs psycopg2-binary. Default: SQLite on the head's own disk, because it
#                          is not safe on network folders. A copy goes to the shared folder every
#                          two minutes and at the end, and a new head starts from it.
# CUTSLOTS_HOME            the shared folder, with the copy in tracking/ and the artifacts/
# CUTSLOTS_LOCAL           a folder on this machine's own disk
# MLFLOW_TRACKING_URI      http://ADDRESS:PORT for the workers; the server listens on this address
# CUTSLOTS_TRACKING_BIND   another address to listen on, such as 0.0.0.0 in Kubernetes
# CUTSLOTS_TRACKING_NAMES  more host names of the server, separated by commas
#
# Two heads on one shared folder are not prevented: the later copy wins. Run one at a time.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}

for name in CUTSLOTS_HOME CUTSLOTS_LOCAL MLFLOW_TRACKING_URI; do
    [ -n "${!name:-}" ] || fail "$name is not set. Source ~/.cutslots.env first."
done
CUTSLOTS_TRACKING_NAMES=${CUTSLOTS_TRACKING_NAMES:-}
[[ $MLFLOW_TRACKING_URI =~ ^http://(.+):([0-9]+)/?$ ]] ||
    fail "MLFLOW_TRACKING_URI must be http://ADDRESS:PORT, got $MLFLOW_TRACKING_URI."
address=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]} uri=$MLFLOW_TRACKING_URI
local=$CUTSLOTS_LOCAL/tracking copy=$CUTSLOTS_HOME/tracking/mlflow.db
database=$local/mlflow.db
mkdir -p "$local" "$CUTSLOTS_HOME/tracking"

answers() { # directly: a proxy in the environment does not know the cluster's addresses
    python - "${uri%/}/health" 2> /dev/null << 'PYTHON'
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
opener.open(sys.argv[1], timeout=5)
PYTHON
}

running() { ! flock --nonblock "$local/lock" true; }

end_server() { # the whole process group of MLflow, also one that a killed keeper has left
    local pid
    pid=$(cat "$local/server.pid" 2> /dev/null) || return 0
    if grep -qs mlflow "/proc/$pid/cmdline"; then kill -KILL -- "-$pid" 2> /dev/null || true; fi
    rm -f "$local/server.pid"
}

copy_database() { # by SQLite's backup, which is consistent while MLflow writes
    if [ -n "${CUTSLOTS_TRACKING_DB:-}" ] || [ ! -f "$database" ]; then return 0; fi
    touch "$local/stamp" # later writes are in the database only, so the copy gets this time
    python - "$database" "$database.copy" << 'PYTHON'
import sqlite3, sys
source, target = map(sqlite3.connect, sys.argv[1:])
source.backup(target)
PYTHON
    cp "$database.copy" "$copy.tmp" && touch -r "$local/stamp" "$copy.tmp" && mv "$copy.tmp" "$copy"
}

copy_every() { # SECONDS, until the keeper ends
    local second=0
    trap - TERM INT
    while sleep 1 && kill -0 $$ 2> /dev/null; do
        if ((++second % $1 == 0)); then copy_database || echo "could not copy to $copy"; fi
    done
}

serve() {
    exec 9> "$local/lock"
    flock --nonblock 9 || fail "a tracking server is running on $local."
    echo $$ > "$local/pid"
    end_server
    if [ -z "${CUTSLOTS_TRACKING_DB:-}" ] && [ "$copy" -nt "$database" ]; then # of another head
        for file in "$database" "$database"-wal "$database"-shm; do
            if [ -f "$file" ]; then mv "$file" "$file.old"; fi
        done
        cp -p "$copy" "$database"
    fi
    local store=${CUTSLOTS_TRACKING_DB:-sqlite:///$database} hosts=$address:$port name timer
    for name in ${CUTSLOTS_TRACKING_NAMES//,/ }; do hosts+=,$name:$port; done
    unset MLFLOW_TRACKING_URI # or MLflow would be a client of itself
    export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    cd "$local"
    trap 'end_server; kill "$timer" 2> /dev/null; copy_database; exit 0' TERM INT
    copy_every "${CUTSLOTS_COPY_SECONDS:-120}" 9>&- &
    timer=$!
    python -m mlflow db upgrade "$store" 9>&- || true # a new database is created by the server
    while :; do # a dead server is started again
        # Tunnels (ssh -L, kubectl port-forward) ask for localhost.
        setsid python -m mlflow server --backend-store-uri "$store" --workers 1 \
            --serve-artifacts --artifacts-destination "$CUTSLOTS_HOME/artifacts" \
            --host "${CUTSLOTS_TRACKING_BIND:-$address}" --port "$port" \
            --allowed-hosts "$hosts,localhost:*,127.0.0.1:*" \
            --cors-allowed-origins "http://${hosts//,/,http://}" 9>&- &
        echo $! > "$local/server.pid"
        wait $! || true
        echo "MLflow ended and is started again"
        end_server
        sleep 5 & wait $!
    done
}

case ${1:-} in
serve) serve ;;
start)
    if ! running; then nohup setsid "$0" serve >> "$local/server.log" 2>&1 < /dev/null & fi
    for _ in {1..360}; do
        if answers; then echo "tracking server: $uri (log: $local/server.log)"; exit 0; fi
        sleep 0.5
    done
    tail -n 15 "$local/server.log" >&2
    fail "no answer from $uri after three minutes."
    ;;
stop)
    if ! running; then end_server; echo "no tracking server is running here"; exit 0; fi
    kill -TERM "$(cat "$local/pid")"
    for _ in {1..300}; do
        if ! running; then echo "tracking server stopped"; exit 0; fi
        sleep 0.2
    done
    fail "the tracking server did not stop within a minute; see $local/server.log."
    ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 1 ;;
esac
