#!/usr/bin/env bash
# The smoke book on a Slurm cluster: bash tests/cluster/run.sh
#
# For root on a Debian machine that is no node of a cluster; a quarter of an hour of two cores.
# Installs Debian's slurm-wlm and munge, starts a cluster of one node on the loopback, clones the
# last commit, and there
#   1. makes the smoke book through Slurm (`--profile profiles/slurm`),
#   2. deletes the chapters on decisions with all their models and kills the node while they are made
#      anew: what had been finished by then must not be made again,
#   3. lets two tasks ask for the same entries of the store.
# All of it is ended and removed on the way out; the clone is kept if something failed.
# VENV=folder uses that environment instead of installing one into the clone.
set -euo pipefail
cd "$(dirname "$0")/../.."

repository=$PWD
work=$(mktemp -d /tmp/corea-cluster-XXXXXX)
cpus=$(nproc)
started=()   # daemons, in the order in which they were started
snakemake="" passed=""

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
fail() { say "FAILED: $*"; exit 1; }

# --- the cluster ------------------------------------------------------------------------------

install_slurm() {
  [ "$(id -u)" = 0 ] || fail "run this as root: it installs packages and starts Slurm"
  if [ -e /etc/slurm/slurm.conf ]; then
    fail "/etc/slurm/slurm.conf is there already: this machine belongs to a cluster"
  fi
  if ! command -v slurmctld slurmd munged >/dev/null; then
    say "installing Debian's slurm-wlm and munge"
    apt-get update -q >"$work/apt.log" 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
      slurm-wlm munge >>"$work/apt.log" 2>&1 || { tail "$work/apt.log"; fail "apt-get install"; }
  fi
}

start() {  # a daemon, in a session of its own: ^C is for this script
  setsid "$@" >>"$work/slurm/out.log" 2>&1 &
  started+=($!)
}

start_cluster() {
  mkdir -p "$work/slurm/state" "$work/slurm/spool"
  if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || {
      (umask 077; head -c 1024 /dev/urandom >/etc/munge/munge.key)
      chown munge: /etc/munge/munge.key
    }
    install -d -o munge -g munge -m 755 /run/munge
    start setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --foreground
    until_true 20 "munge answers" sh -c 'munge -n 2>/dev/null | unmunge >/dev/null 2>&1'
  fi
  memory=$(awk '/^MemTotal/ {print int($2 / 1024) - 1000}' /proc/meminfo)
  sed -e "s|@HOST@|$(hostname -s)|g" -e "s|@WORK@|$work|g" -e "s|@CPUS@|$cpus|g" \
    -e "s|@MEMORY@|$memory|g" "$repository/tests/cluster/slurm.conf" >/etc/slurm/slurm.conf
  start slurmctld -D
  start_node
}

start_node() {
  start slurmd -D
  node=${started[-1]}
  until_true 60 "the node is idle" sh -c 'sinfo -h -o %T 2>/dev/null | grep -qx idle'
}

stop() {
  status=$?
  trap - EXIT INT TERM
  [ -z "$snakemake" ] || kill -KILL "$snakemake" $(descendants "$snakemake") 2>/dev/null || true
  if scancel --user=root 2>/dev/null; then
    for ((i = 0; i < 60; i++)); do
      [ -n "$(squeue -h -t RUNNING,COMPLETING -o %i)" ] || break
      sleep 1
    done
  fi
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "${started[i]}" 2>/dev/null || true
    wait "${started[i]}" 2>/dev/null || true
  done
  if [ -e /etc/slurm/slurm.conf ] && grep -q "$work" /etc/slurm/slurm.conf; then
    rm /etc/slurm/slurm.conf
  fi
  cd /
  if [ -n "$passed" ]; then
    rm -rf "$work"
    say "all parts passed; Slurm is stopped and everything removed"
  else
    say "kept for a look: $work"
    [ "$status" != 0 ] || status=1
  fi
  exit "$status"
}

until_true() {  # seconds, what is waited for, command
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain until $what"
    sleep 1
  done
}

# --- the book ---------------------------------------------------------------------------------

clone() {
  git clone -q "$repository" "$work/book"
  cd "$work/book"
  say "cloned $(git rev-parse --short=12 HEAD)"
  if [ -n "${VENV:-}" ]; then
    ln -sn "$(realpath "$VENV")" .venv
  else
    say "installing the book and the Slurm plugin into the clone"
    make -s cluster >"$work/install.log" 2>&1 || { tail "$work/install.log"; fail "make cluster"; }
  fi
}

begin() {  # the book through Slurm, in the background; its log
  log=$1
  setsid .venv/bin/python -m snakemake --profile profiles/slurm --config profile=smoke --nocolor \
    --cores $(((cpus + 1) / 2)) --slurm-status-command squeue \
    --slurm-init-seconds-before-status-checks 5 >"$log" 2>&1 &
  snakemake=$!
}

end() {
  wait "$snakemake" || { snakemake=""; tail -40 "$log"; fail "Snakemake; all of it says is $log"; }
  snakemake=""
  [ -s build/smoke/_build/html/index.html ] || fail "the book is not there"
  runs=$(find build/smoke/parameters -name '*.yaml' | wc -l)
  pages=$(find build/smoke/_build/html -name '*.html' | wc -l)
  [ "$(executed | wc -l)" = "$runs" ] || fail "not every run was executed"
}

submitted() { grep -c 'has been submitted with SLURM jobid' "$log"; }
executed() { find build/smoke/executed -name '*.ipynb' 2>/dev/null; }
entries() { find build/store -mindepth 2 -maxdepth 2 -name manifest.json ! -path '*.partial/*' 2>/dev/null; }
stamps() { { executed; entries; } | xargs -r stat -c '%n %i %.Y' | sort; }

descendants() {
  local child
  for child in $(pgrep -P "$1"); do
    descendants "$child"
    echo "$child"
  done
}

# Two runs are finished again, others run, and none is a group of chapters, which are one job.
in_the_middle() {
  kill -0 "$snakemake" 2>/dev/null || fail "Snakemake ended too early: $log"
  [ "$(executed | grep -c /decision_)" -ge 2 ] || return 1
  local running
  running=$(squeue -h -t RUNNING -o %k)
  [ -n "$running" ] && ! grep -qv '^rule_train_' <<<"$running"
}

kill_node() {
  local ids=() job step
  killed=$(squeue -h -t RUNNING -o %k | sed 's/^rule_train_wildcards_//' | xargs)
  for job in $(squeue -h -t RUNNING -o %i); do
    for step in $(pgrep -f "^slurmstepd: \[$job\."); do
      mapfile -t -O "${#ids[@]}" ids < <(descendants "$step")
      ids+=("$step")
    done
  done
  kill -KILL "$node" "${ids[@]}" 2>/dev/null || true
  wait "$node" 2>/dev/null || true
  say "   killed slurmd and ${#ids[@]} processes of $killed"
}

trap stop EXIT
trap 'exit 130' INT TERM
install_slurm
start_cluster
say "Slurm $(slurmctld -V | cut -d' ' -f2) runs: $(sinfo -h -o '%D node, %C CPUs (allocated/idle/other/total), %m MB')"
clone

say "1. the smoke book through Slurm"
began=$SECONDS
begin "$work/first.log"
end
say "   $runs runs in $(submitted) jobs, $((SECONDS - began)) s; book of $pages pages"

say "2. its decision chapters made anew, with a node that is lost in the middle"
rm -r build/store/decision* build/store/swap* build/smoke/_build
.venv/bin/python - <<'END'
from corea.workflow.profiles import load_profile
profile = load_profile("smoke")
for run in profile.runs:
    if any(name.startswith("decision_") for name in [run, *profile.all_needs(run)]):
        (profile.directory / "executed" / f"{run}.ipynb").unlink()
END
began=$SECONDS
begin "$work/second.log"
until_true 1200 "some of it is finished again" in_the_middle
kill_node
# what a job left that had not ended is not finished
stamps | grep -v -E "/executed/(${killed// /|})\.ipynb " >"$work/before"
say "   finished by then: $(grep -c /executed/ "$work/before") runs, $(grep -c /store/ "$work/before") entries of the store"
until_true 120 "Slurm takes the node for lost" sh -c 'sinfo -h -o %T | grep -q down'
start_node
say "   the node is back after $((SECONDS - began)) s; $(squeue -h -t PENDING -o %i | wc -l) jobs wait"
end
stamps >"$work/after"
again=$(comm -23 "$work/before" "$work/after" | cut -d' ' -f1)
[ -z "$again" ] || fail "made again though it was finished: $again"
say "   $runs runs in $(submitted) jobs, $((SECONDS - began)) s; nothing finished was made again"

say "3. two tasks ask for the same entries of the store"
srun -Q --ntasks=2 .venv/bin/python tests/cluster/ask_together.py | sed 's/^/          /' \
  || fail "the store does not hold"
passed=yes
