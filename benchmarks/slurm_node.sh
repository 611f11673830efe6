#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, to try profiles/slurm with. Debian or Ubuntu, as root:
#
#   benchmarks/slurm_node.sh start        installs slurm-wlm, writes /etc/slurm/slurm.conf, starts the daemons
#   benchmarks/slurm_node.sh stop         stops them, and removes the configuration
#
# No accounting and no control groups, so that it runs in a container too. A machine that has a slurm.conf already is left
# alone. $CPUS jobs run side by side (all cores by default).
set -euo pipefail

conf=/etc/slurm/slurm.conf
state=/var/lib/slurm-one-node
mark="# written by slurm_node.sh"

start() {
    if ! command -v slurmctld slurmd munged >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends slurm-wlm munge
    fi
    if [[ -e $conf ]] && ! grep -q "$mark" "$conf"; then
        echo "$conf is there already: this machine belongs to a cluster" >&2
        exit 1
    fi
    mkdir -p "$state" /run/munge /etc/slurm
    chown munge: /run/munge
    [[ -s /etc/munge/munge.key ]] || mungekey --create
    # SLURM counts on no more cores and memory than slurmd finds; jobs ask for a part of either.
    local node memory cores="${CPUS:-$(nproc)}"
    node="$(hostname -s)"
    memory="$(slurmd -C | grep -o 'RealMemory=[0-9]*')"
    cat >"$conf" <<EOF
$mark
ClusterName=one
SlurmctldHost=$node
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$state
SlurmdSpoolDir=$state/slurmd
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=$node CPUs=$cores $memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    pgrep -x munged >/dev/null || runuser -u munge -- munged --force
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        [[ "$(sinfo -h -o %T 2>/dev/null)" == idle ]] && break
        sleep 1
    done
    sinfo
    [[ "$(sinfo -h -o %T)" == idle ]]
}

stop() {
    grep -q "$mark" "$conf" || { echo "$conf is not from here" >&2; exit 1; }
    for daemon in slurmd slurmctld; do
        [[ ! -e $state/$daemon.pid ]] || kill "$(<"$state/$daemon.pid")" 2>/dev/null || true
    done
    sleep 2
    rm -rf "$conf" "$state"
}

case "${1:-}" in
    start | stop) "$1" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
