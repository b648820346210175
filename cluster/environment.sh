#!/usr/bin/env bash
# Writes ~/.cutslots.env, what every process of a sweep must know on this node, and has login and interactive shells read it.
# The cluster file's settings come from ~/.cutslots-site. Runs on the head and on every worker, as often as one likes.
set -euo pipefail
# What an earlier run of this has put into the environment counts no more.
unset CUTSLOTS_TRACKING_DB CUTSLOTS_DATA CUTSLOTS_LOCAL CUTSLOTS_CLUSTER MLFLOW_TRACKING_URI RAY_AUTH_MODE
# shellcheck source=/dev/null
. ~/.cutslots-site

# Ray tells the workers where the head is. On the head of machines of one's own the cluster file says so; on a cloud
# machine the first address is the private one.
head_address() {
    local config=~/ray_bootstrap_config.yaml name=${RAY_HEAD_IP:-}
    if [ -z "$name" ] && [ -f "$config" ]; then
        name=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["provider"].get("head_ip", ""))' "$config")
    fi
    if [ -z "$name" ]; then
        hostname -I | cut -d ' ' -f 1
    else
        getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }'
    fi
}

environment() {
    local venv=${CUTSLOTS_VENV:-$HOME/cutslots-venv} head
    # A folder on the node's own disk: factors, and on the head the tracking server's database.
    local own=${CUTSLOTS_LOCAL:-/var/tmp/cutslots-$(id -un)}
    head=$(head_address)
    # A path that is there already is not put in front again.
    # shellcheck disable=SC2016
    printf 'case $PATH in %q:*) ;; *) export PATH=%q:$PATH ;; esac\n' "$venv/bin" "$venv/bin"
    # RAY_JOB_STOP_...: `ray job stop` kills after 3 s by default, before a sweep has written its checkpoints.
    printf 'export %s=%q\n' \
        RAY_ADDRESS auto \
        RAY_AUTH_MODE "${RAY_AUTH_MODE:-token}" \
        RAY_USAGE_STATS_ENABLED 0 \
        RAY_JOB_STOP_WAIT_TIME_S 240 \
        MLFLOW_DISABLE_TELEMETRY true \
        MLFLOW_TRACKING_URI "${MLFLOW_TRACKING_URI:-http://$head:${CUTSLOTS_TRACKING_PORT:-5000}}" \
        CUTSLOTS_HEAD "$head" \
        CUTSLOTS_HOME "$CUTSLOTS_SHARED/home" \
        CUTSLOTS_DATA "${CUTSLOTS_DATA:-$CUTSLOTS_SHARED/data}" \
        CUTSLOTS_CLUSTER "$CUTSLOTS_CLUSTER" \
        CUTSLOTS_LOCAL "$own" \
        CUTSLOTS_FACTORS "$own/factors"
    if [ -n "${CUTSLOTS_TRACKING_DB:-}" ]; then
        printf 'export CUTSLOTS_TRACKING_DB=%q\n' "$CUTSLOTS_TRACKING_DB"
    fi
}

# At the top, before a test for interactive shells leaves the file, and at the end, after others have changed PATH.
hook() {
    local file=$1 line='if [ -f ~/.cutslots.env ]; then . ~/.cutslots.env; fi # cutslots' text changed
    touch "$file"
    if [ "$(head -n 1 "$file")" = "$line" ] && [ "$(tail -n 1 "$file")" = "$line" ]; then return; fi
    text=$(sed '/ # cutslots$/d' "$file")
    # Renamed into place: homes may be shared, and another node reads it at this moment.
    changed=$(mktemp "$file.XXXXXX")
    printf '%s\n%s\n%s\n' "$line" "$text" "$line" > "$changed"
    mv "$changed" "$file"
}

umask 077
new=$(mktemp ~/.cutslots.env.XXXXXX)
environment > "$new"
mv "$new" ~/.cutslots.env
hook ~/.profile
hook ~/.bashrc
