#!/usr/bin/env bash
# The goals of docs/benchmarks.md, one after the other, on three nodes on this machine.
#
#   cargo build --release -p coracle -p coracle-loadgen --bins
#   bench/goals.sh                  all goals, about four minutes
#   bench/goals.sh open closed      only these; see `runs` below for the names
#
# SECONDS_EACH=10    shorter runs (default: 20, the open loop 60)
# BIN=DIR            where coracle and loadgen are (default: target/release)
# DATA=DIR           where the nodes keep their data (default: below the target directory); it must
#                    not be there yet and is removed at the end. The disk of this directory counts.
# PORT=7400          first of the 30 ports used
#
# Before the runs every key is written once and the log is filled until its segments are recycled
# (FILL=16 seconds of load). Prints a table; "leaders" is the most changes of leaders that one node
# saw, "CPU" that of the three nodes together. Needs bash, awk and coreutils. Run it on an idle
# machine: `uptime` before, and no build beside it.
set -eu
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
bin=${BIN:-$target/release}
data=${DATA:-$target/goals}
port=${PORT:-7400}
fill=${FILL:-16}
each=${SECONDS_EACH:-20}
runs=(open closed single reads idle)
pids=()

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

finish() {
  [ "${#pids[@]}" -eq 0 ] || { kill "${pids[@]}" 2>/dev/null; wait "${pids[@]}" 2>/dev/null; } || true
  rm -rf "$data"
}

# INFO's or CLUSTER INFO's number NAME of node $1, 0 if there is none.
ask() {
  local node=$1 name=$2 line value=0
  shift 2
  while IFS= read -r line; do
    case $line in "$name":*) value=${line#*:} ;; esac
  done < <("$bin/coracle" cli --endpoints "127.0.0.1:$((port + node))" "$@" 2>/dev/null | tr -d '\r')
  echo "$value"
}

start() {
  local i j ready deadline cpus
  cpus=$(nproc)
  [ ! -e "$data" ] || die "$data is there already: remove it, or set DATA"
  mkdir -p "$data"
  trap finish EXIT
  trap 'exit 130' INT TERM
  for i in 1 2 3; do
    {
      printf 'id = %d\ncluster = "goals"\ndata_dir = "%s/node-%d"\n' "$i" "$(realpath "$data")" "$i"
      printf 'cores = [%d]\nshards = 1024\ngroups = 8\n' $(((i - 1) % cpus))
      for j in 1 2 3; do
        printf '[[nodes]]\nid = %d\nhost = "127.0.0.1"\nport = %d\ncore_port = %d\npeer_port = %d\n' \
          "$j" $((port + j)) $((port + 10 + j)) $((port + 20 + j))
      done
    } >"$data/node-$i.toml"
    "$bin/coracle" node --config "$data/node-$i.toml" >"$data/node-$i.log" 2>&1 &
    pids+=($!)
  done
  deadline=$((SECONDS + 30))
  while :; do
    ready=0
    for i in 1 2 3; do
      [ "$(ask $i coracle_groups_with_preferred_leader CLUSTER INFO)" -ne 8 ] || ready=$((ready + 1))
    done
    [ "$ready" -lt 3 ] || break
    [ "$SECONDS" -lt "$deadline" ] || { tail -n 5 "$data"/*.log >&2; die "not ready after 30 s"; }
    sleep 0.2
  done
}

# Ticks of 10 ms that the nodes have used so far.
ticks() {
  local pid sum=0
  for pid in "${pids[@]}"; do
    sum=$((sum + $(awk '{ print $14 + $15 }' "/proc/$pid/stat")))
  done
  echo "$sum"
}

leader_changes() {
  local i count=()
  for i in 1 2 3; do count+=("$(ask $i coracle_leader_changes INFO)"); done
  echo "${count[@]}"
}

load() {
  "$bin/loadgen" --endpoints "127.0.0.1:$((port + 11)),127.0.0.1:$((port + 12)),127.0.0.1:$((port + 13))" \
    --cluster --value-size 4096 --keys 20000 --quiet --json "$data/load.json" "$@" \
    >"$data/load.txt" 2>&1 || { cat "$data/load.txt" >&2; die "the load failed"; }
}

# The first value of "NAME" after "latency" in the last load's result, or anywhere with a second
# argument.
value() {
  awk -v name="\"$1\":" -v on="${2:-}" '
    /"latency":/ { on = 1 }
    on && $1 == name { gsub(",", "", $2); print $2; exit }' "$data/load.json"
}

# measure NAME TITLE SECONDS FLAGS…: one line of the table.
measure() {
  local name=$1 title=$2 seconds=$3 before after cpu_before cpu_after answers
  shift 3
  before=$(leader_changes)
  cpu_before=$(ticks)
  load --warmup 0 --seconds "$seconds" "$@"
  cpu_after=$(ticks)
  after=$(leader_changes)
  answers=$(($(value reads any) + $(value writes any)))
  printf '%s %s\n' "$before" "$after" | awk -v title="$title" -v answers="$answers" \
    -v rate="$(value answers_per_second any)" -v p50="$(value p50_ms)" -v p99="$(value p99_ms)" \
    -v p9999="$(value p99_99_ms)" -v max="$(value max_ms)" -v errors="$(value error_count any)" \
    -v ticks=$((cpu_after - cpu_before)) '{
      for (i = 1; i <= 3; i++) if ($(i + 3) - $i > changes) changes = $(i + 3) - $i
      printf "%-34s %9d %8.2f %8.2f %8.1f %8.1f %7d %8d %8.1f us\n", title, rate, p50, p99, p9999,
        max, errors, changes, answers ? ticks * 10000 / answers : 0
    }'
}

run() {
  local before after
  case $1 in
    open) measure open "writes, 20,000/s, open loop" "${SECONDS_EACH:-60}" --rate 20000 --connections 16 ;;
    closed) measure closed "writes, 256 in flight" "$each" --connections 16 --pipeline 16 ;;
    single) measure single "writes, 50 connections x 1" "$each" --connections 50 --pipeline 1 ;;
    reads) measure reads "reads, 256 in flight" "$each" --read-ratio 1 --connections 16 --pipeline 16 ;;
    idle)
      sleep 2
      before=$(ticks)
      sleep 10
      after=$(ticks)
      awk -v ticks=$((after - before)) 'BEGIN {
        printf "%-34s %.2f %% of one CPU per node\n", "idle", ticks / 10 / 3 }'
      ;;
  esac
}

chosen=("$@")
[ $# -gt 0 ] || chosen=("${runs[@]}")
for name in "${chosen[@]}"; do
  [[ " ${runs[*]} " == *" $name "* ]] || die "no run is called $name; there are: ${runs[*]}"
done
for program in coracle loadgen; do
  [ -x "$bin/$program" ] || die "$bin/$program is missing: cargo build --release -p coracle -p coracle-loadgen --bins"
done

echo "# $(date -u +%FT%TZ), $(nproc) CPUs, Linux $(uname -r), load $(cut -d' ' -f1-3 /proc/loadavg)"
echo "# coracle built $(date -u -r "$bin/coracle" +%FT%TZ)"
start
load --preload --warmup 0 --seconds "$fill" --connections 16 --pipeline 16
printf '%-34s %9s %8s %8s %8s %8s %7s %8s %11s\n' run answers/s P50 P99 P99.99 max errors leaders CPU/answer
for name in "${chosen[@]}"; do run "$name"; done
