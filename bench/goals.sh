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

fill=${FILL:-16}
each=${SECONDS_EACH:-20}
runs=(open closed single reads idle)
. bench/cluster.sh

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

choose "$@"
headline
start
load --preload --warmup 0 --seconds "$fill" --connections 16 --pipeline 16
printf '%-34s %9s %8s %8s %8s %8s %7s %8s %11s\n' run answers/s P50 P99 P99.99 max errors leaders CPU/answer
for name in "${chosen[@]}"; do run "$name"; done
