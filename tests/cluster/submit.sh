#!/usr/bin/env bash
# ray up, ray submit, results in MLflow, ray down: the whole way of cluster/onprem.yaml, over a real sshd on loopback with throw-away
# keys. The head is 127.0.0.1, the worker 127.0.0.2, each with its own home folder. Nothing is left behind.
#
#     tests/cluster/submit.sh sweeps/demo.py --smoke        # any script, with its arguments; at least one run of it must be in MLflow
#
# Wants sshd, ssh and rsync, the .venv of `make`, and a machine without another Ray: clusters on one machine disturb each other.
set -euo pipefail

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$tree/.venv
script=${1:?usage: tests/cluster/submit.sh SCRIPT [ARGUMENT...]}
shift
script=$(realpath "$script")
cd "$tree"

fail() {
    echo "error: $*" >&2
    exit 1
}

sshd=$(command -v sshd || ls /usr/sbin/sshd 2> /dev/null) || fail "sshd is missing: apt-get install openssh-server"
ssh=$(command -v ssh) || fail "ssh is missing: apt-get install openssh-client"
command -v rsync > /dev/null || fail "rsync is missing: apt-get install rsync"
if pgrep -x raylet > /dev/null; then fail "another Ray is running on this machine; wait for it or stop it."; fi

here=$(mktemp -d /tmp/cutslots-submit-XXXXXX)
name=cutslots-$(basename "$here" | tr '[:upper:]' '[:lower:]')
config=$here/onprem.yaml

# What runs on the two nodes, and nothing else: their processes have homes in our folder.
ours() {
    local file
    for file in /proc/[0-9]*/environ; do
        if tr '\0' '\n' 2> /dev/null < "$file" | grep -q "^HOME=$here/"; then
            file=${file#/proc/}
            if [ "${file%/environ}" != $$ ]; then echo "${file%/environ}"; fi
        fi
    done
}

clean_up() {
    local status=$? pids made
    trap - EXIT INT TERM
    if [ "$status" -ne 0 ]; then
        tail -n 40 "$here"/sshd.log "$here"/disk/tracking/server.log 2> /dev/null || true
    fi
    pids=$(ours)
    # shellcheck disable=SC2086
    if [ -n "$pids" ]; then kill -KILL $pids 2> /dev/null || true; fi
    if [ -n "${server:-}" ]; then kill "$server" 2> /dev/null || true; fi
    for made in "${new[@]}"; do rm -rf "$made"; done
    # Ray's notes of the cluster on the head, and its folders of ssh connections by the hash of the name.
    rm -rf "$here" "/tmp/ray/cluster-$name".* /tmp/ray_ssh_*/"$(printf %s "$name" | sha256sum | cut -c 1-10)"
    rmdir /tmp/ray_ssh_* 2> /dev/null || true
    exit "$status"
}
new=() server=
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

port=$(free_port)
tracking=$(free_port)
uri=http://127.0.0.1:$tracking

start_sshd() {
    ssh-keygen -q -t ed25519 -N '' -f "$here/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$here/user_key"
    mkdir "$here"/{bin,laptop,tmp,head,worker,shared}
    # Ray's files have no place for a port; and ssh itself takes the ~ of a key from the password file, not from HOME.
    cat > "$here/bin/ssh" << 'WRAPPER'
#!/bin/bash
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    if [ "${arguments[i]}" = -i ]; then arguments[i + 1]=${arguments[i + 1]/#\~\//$HOME/}; fi
done
exec SSH -p PORT "${arguments[@]}"
WRAPPER
    sed -i "s#SSH -p PORT#$ssh -p $port#" "$here/bin/ssh"
    chmod +x "$here/bin/ssh"
    # As the dotfiles of a person: more than nothing, with a changed PATH.
    for node in head worker; do echo "export PATH=$here/bin:\$PATH" > "$here/$node/.bashrc"; done
    cat > "$here/sshd_config" << CONFIG
ListenAddress 127.0.0.1:$port
ListenAddress 127.0.0.2:$port
HostKey $here/host_key
AuthorizedKeysFile $here/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Match LocalAddress 127.0.0.1
    SetEnv HOME=$here/head
Match LocalAddress 127.0.0.2
    SetEnv HOME=$here/worker
CONFIG
    if [ "$(id -u)" -eq 0 ] && [ ! -d /run/sshd ]; then
        mkdir /run/sshd
        new+=(/run/sshd)
    fi
    "$sshd" -D -e -f "$here/sshd_config" 2> "$here/sshd.log" &
    server=$!
}

# cluster/onprem.yaml with our hosts and folders. One machine is both nodes here: the worker's `ray stop` would end the head.
write_config() {
    "$venv/bin/python" - "$config" << PYTHON
import sys, yaml
config = yaml.safe_load(open("cluster/onprem.yaml"))
config["cluster_name"] = "$name"
config["provider"].update(head_ip="127.0.0.1", worker_ips=["127.0.0.2"])
config["auth"] = {"ssh_user": "$(id -un)", "ssh_private_key": "$here/user_key"}
site = "CUTSLOTS_SHARED=$here/shared\nCUTSLOTS_CLUSTER=CPU=$(($(nproc) * 2))\nCUTSLOTS_VENV=$venv\nCUTSLOTS_INSTALL=no\n"
site += "CUTSLOTS_LOCAL=$here/disk\nCUTSLOTS_TRACKING_PORT=$tracking\n"
config["initialization_commands"] = [f"cat > ~/.cutslots-site <<'SITE'\n{site}SITE\n"]
config["worker_start_ray_commands"].remove("ray stop")
yaml.safe_dump(config, open(sys.argv[1], "w"))
PYTHON
}

nodes_alive() { # and the folder of Ray's logs and sockets, for the end
    cat << PYTHON
import os, time, ray
assert os.environ["CUTSLOTS_HOME"] == "$here/shared/home" and os.environ["MLFLOW_TRACKING_URI"] == "$uri", os.environ
ray.init(logging_level="ERROR", log_to_driver=False)
for _ in range(120):
    alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # 127.0.0.1 is replaced by Ray
    if "127.0.0.2" in alive and len(alive) == 2:
        break
    time.sleep(1)
else:
    raise SystemExit(f"only {alive} after two minutes")
print("nodes:", *sorted(alive))
open("$here/session", "w").write(ray._private.worker._global_node.get_session_dir_path())
PYTHON
}

runs() { # what is in MLflow; fails when there is nothing, or something that has not ended
    MLFLOW_DISABLE_TELEMETRY=true "$venv/bin/python" - "$1" << PYTHON
import sys
from collections import Counter
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], max_results=1000)
states = Counter(run.info.status for run in found)
print("runs in MLflow:", dict(states))
sys.exit(not states["FINISHED"] or bool(states["RUNNING"]))
PYTHON
}

step() { echo "== $* (after $SECONDS s)"; }

start_sshd
write_config
unset RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN MLFLOW_TRACKING_URI CUTSLOTS_HOME CUTSLOTS_DATA CUTSLOTS_CLUSTER CUTSLOTS_FACTORS
export HOME=$here/laptop TMPDIR=$here/tmp PATH=$here/bin:$venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0 RAY_LOG_COLOR=false
umask 077
ray get-auth-token --generate > /dev/null
for _ in {1..50}; do
    ssh -i "$here/user_key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR 127.0.0.1 true && break
    sleep 0.2
done

step ray up
ray up --yes "$config"
step both nodes, by the Jobs API with the token
nodes_alive > "$here/head/nodes.py"
for _ in {1..6}; do # a cluster that has just started has nobody yet who takes jobs
    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 -- bash -lc 'python ~/nodes.py' && break
    sleep 10
done
[ -f "$here/session" ] || fail "the Jobs API ran nothing"
new+=("$(cat "$here/session")")
step ray submit "$script" "$@"
ray submit "$config" "$script" -- "$@"
step MLflow
runs "$uri"
"$venv/bin/python" << 'PYTHON' || fail "the dashboard answers without the token"
import sys, urllib.error, urllib.request
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://127.0.0.1:8265/api/jobs/", timeout=10)
except urllib.error.HTTPError as error:
    sys.exit(error.code != 401)
sys.exit(1)
PYTHON
step stop the tracking server, ray down
ray exec "$config" 'bash ~/cutslots-tree/cluster/tracking.sh stop'
ray down --yes "$config"
runs "sqlite:///$here/shared/home/tracking/mlflow.db" # the safe copy has them too
step nothing is left
for _ in {1..100}; do # the worker notices within a minute that the head has ended; on one machine `ray stop` ends both
    left=$(ours)
    if [ -z "$left" ]; then break; fi
    sleep 1
done
# shellcheck disable=SC2086
if [ -n "$left" ]; then fail "still running: $(ps -o pid=,args= -p "$(echo $left | tr ' ' ',')")"; fi
step "done"
