#!/usr/bin/env bash
# Prepares this node: the shared folder, system packages, cutslots in a virtual environment. Repeating
# it takes seconds.
# The cluster file's settings come from ~/.cutslots-site; cluster/README.md explains them.
set -euo pipefail
# shellcheck source=/dev/null
. ~/.cutslots-site

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CUTSLOTS_VENV:-$HOME/cutslots-venv}
torch=${CUTSLOTS_TORCH:-torch==2.13.0}

fail() {
    echo "error: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_be_root() {
    [ "$(id -u)" -eq 0 ] || sudo -n true 2> /dev/null
}

check_settings() {
    case ${CUTSLOTS_FILE_SYSTEM:-}${CUTSLOTS_SHARED:-} in
        *EDIT-ME*) fail "the cluster file is as it came: put your shared folder in place of EDIT-ME in its first lines." ;;
    esac
    case ${CUTSLOTS_FILE_SYSTEM:-} in
        '' | fs-*) ;;
        *) fail "CUTSLOTS_FILE_SYSTEM is $CUTSLOTS_FILE_SYSTEM; the id of an EFS file system begins with fs-." ;;
    esac
    [ -n "${CUTSLOTS_SHARED:-}" ] || fail "CUTSLOTS_SHARED is not set in the cluster file: the folder that all nodes share."
    [ -n "${CUTSLOTS_CLUSTER:-}" ] || fail 'CUTSLOTS_CLUSTER is not set in the cluster file, such as GPU=8,CPU=64.'
}

install_packages() {
    local name missing=()
    for name in python3-venv python3-dev build-essential libsuitesparse-dev tmux "$@"; do
        dpkg -s "$name" > /dev/null 2>&1 || missing+=("$name")
    done
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    if ! can_be_root; then
        echo "not installed, sudo needs a password: ${missing[*]}"
        return
    fi
    # A machine that has just started may be updating itself: wait for it.
    as_root apt-get -o DPkg::Lock::Timeout=600 -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq install --yes "${missing[@]}" > /dev/null
}

mount_efs() {
    local token region source options=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,_netdev
    local metadata=http://169.254.169.254/latest
    token=$(curl -fsS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token")
    region=$(curl -fsS -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/placement/region")
    source=$CUTSLOTS_FILE_SYSTEM.efs.$region.amazonaws.com:/
    as_root mkdir -p "$CUTSLOTS_SHARED"
    grep -q " $CUTSLOTS_SHARED nfs4 " /etc/fstab || echo "$source $CUTSLOTS_SHARED nfs4 $options 0 0" | as_root tee -a /etc/fstab > /dev/null
    mountpoint -q "$CUTSLOTS_SHARED" || as_root timeout 120 mount "$CUTSLOTS_SHARED" || fail \
        "$source cannot be mounted. Does it exist in region $region, with a mount target in this zone, and does its" \
        "security group let in port 2049 from this cluster's? See cluster/README.md."
    as_root install -d -o "$(id -u)" -g "$(id -g)" "$CUTSLOTS_SHARED/home" "$CUTSLOTS_SHARED/data"
}

check_shared() {
    [ -d "$CUTSLOTS_SHARED" ] || fail "$CUTSLOTS_SHARED is not there on $(hostname): mount the folder that all nodes share."
    mkdir -p "$CUTSLOTS_SHARED/home" 2> /dev/null && [ -w "$CUTSLOTS_SHARED/home" ] ||
        fail "$CUTSLOTS_SHARED/home cannot be written by $(id -un) on $(hostname)."
}

# Nodes that join weeks later get the versions of the first one: Ray refuses workers of another version.
keep_versions() {
    local file=$CUTSLOTS_SHARED/home/versions-$1.txt
    if [ -f "$file" ]; then return; fi
    "$venv/bin/python" -m pip freeze --exclude-editable | sed '/ @ /d' > "$file.$$"
    mv "$file.$$" "$file"
}

# scikit-sparse is compiled against the SuiteSparse of this machine; from 0.5 on it wants version 7.
sparse_version() {
    local have
    have=$(dpkg-query -W -f '${Version}' libsuitesparse-dev 2> /dev/null || true)
    if [ -z "$have" ] || dpkg --compare-versions "${have#*:}" ge 7; then echo scikit-sparse; else echo scikit-sparse==0.4.16; fi
}

install_package() {
    local kind=cpu extras='' stamp file pins=()
    if nvidia-smi > /dev/null 2>&1; then
        kind=gpu extras='[cuda]'
    fi
    stamp=$(cat "$tree/pyproject.toml" <(echo "$tree $kind $torch") | sha256sum | cut -c 1-64)
    if [ "$(cat "$venv/cutslots-stamp" 2> /dev/null)" = "$stamp" ]; then return; fi
    for file in "$CUTSLOTS_SHARED"/home/versions-*.txt; do
        if [ -f "$file" ]; then pins+=(--constraint "$file"); fi
    done
    install() { "$venv/bin/python" -m pip install --quiet "${pins[@]}" "$@"; }
    "${CUTSLOTS_PYTHON:-python3}" -m venv "$venv"
    install --upgrade pip
    install "$torch"
    install --editable "$tree$extras"
    if [ "$kind" = gpu ]; then
        install 'cupy-cuda12x[ctk]' # with CUDA's own libraries for it: torch brings another version
    fi
    if [ -n "${CUTSLOTS_FILE_SYSTEM:-}" ]; then
        install boto3 # the head starts and ends workers with it
    fi
    install --editable "${tree}[cholmod]" "$(sparse_version)" ||
        echo "scikit-sparse could not be built here; SciPy factors in its place, slower: cutslots doctor says what is missing"
    keep_versions "$kind"
    echo "$stamp" > "$venv/cutslots-stamp"
}

check_settings
if [ -n "${CUTSLOTS_FILE_SYSTEM:-}" ]; then
    install_packages nfs-common curl
    mount_efs
elif [ "${CUTSLOTS_INSTALL:-yes}" = yes ] && command -v dpkg > /dev/null; then
    install_packages
fi
check_shared
if [ "${CUTSLOTS_INSTALL:-yes}" = yes ]; then
    mkdir -p "$(dirname "$venv")"
    (
        flock 9 # homes may be shared: one node installs, the others find it done
        install_package
    ) 9> "$venv.lock"
fi
"$venv/bin/python" -c 'import cutslots, ray' || fail "$venv on $(hostname) does not have cutslots and ray."
