#!/usr/bin/env bash
# What the storage costs: the measurements of docs/benchmarks.md, "Storage".
#
#   cargo build --release -p coracle -p coracle-loadgen --bins
#   bench/storage.sh                   all of them, about ten minutes
#   bench/storage.sh tails             only these; see `runs` below for the names
#
# recycled  bytes that the disk wrote per byte that clients wrote, by the counters of the disk that
#           holds DATA, once segments are used again and hold no value in use
# half      the same with 2 GB of values in use, in a log of about three times that
# tails     20,000 writes/s in open loop while the log holds no old values and no checkpoint begins,
#           and then with checkpoints and emptying of segments going on
# away      a node is killed, comes back after AWAY=60 seconds of 20,000 writes/s, and catches up
#           while the load goes on
# large     one node with LARGE=20 GiB: its memory, reads of random keys, its restart
#
# BIN, DATA and PORT as for bench/goals.sh; SECONDS_EACH=30 is the length of one load. Run it on an idle
# machine: everything that is written to the disk meanwhile counts.
set -eu
cd "$(dirname "$0")/.."

each=${SECONDS_EACH:-30}
away=${AWAY:-60}
large=${LARGE:-20}
runs=(recycled half tails away large)
. bench/cluster.sh

# Bytes that the disk under DATA has written since it was switched on.
disk_bytes() {
  local device
  device=$(stat -c %d "$data")
  awk '{ printf "%.0f\n", $7 * 512 }' "/sys/dev/block/$((device >> 8)):$((device & 255))/stat"
}

# amplification TITLE FLAGS…: a closed loop, and what the disk wrote for it.
amplification() {
  local title=$1 before after
  shift
  sync -f "$data"
  before=$(disk_bytes)
  load --warmup 0 --seconds "$each" --connections 16 --pipeline 16 "$@"
  sync -f "$data"
  after=$(disk_bytes)
  awk -v title="$title" -v disk=$((after - before)) -v writes="$(value writes any)" \
    -v p99="$(value p99_ms)" -v nodes="$nodes" -v s="$each" 'BEGIN {
      printf "%-40s %.3f bytes written per byte and replica, %d writes/s, P99 %.1f ms\n",
        title, disk / (writes * 4096 * nodes), writes / s, p99
    }'
}

# The first ten seconds do not count: after a load at full speed there is much to be emptied.
open_loop() {
  load --warmup 10 --seconds "$each" --rate 20000 --connections 16
  printf '%-40s P50 %.2f ms, P99 %.2f ms, P99.9 %.2f ms\n' "$1" "$(value p50_ms)" "$(value p99_ms)" \
    "$(value p99_9_ms)"
}

applied() { ask "$1" master_repl_offset INFO; }
seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }'; }
resident() { awk '/VmRSS/ { printf "%.0f MiB", $2 / 1024 }' "/proc/${pids[1]}/status"; }

run() {
  case $1 in
    recycled)
      keys=20000 start
      load --preload --warmup 0 --seconds 40 --connections 16 --pipeline 16
      keys=20000 amplification "20,000 keys, segments are used again"
      ;;
    half)
      more=$'[checkpoint]\nbytes = "64MiB"\n[wal]\nsegment_size = "32MiB"\nmax_size = "1GiB"' start
      keys=500000 load --preload --warmup 0 --seconds 90 --connections 16 --pipeline 16
      keys=500000 amplification "500,000 keys, log $(($(ask 1 coracle_log_bytes INFO) >> 20)) MiB"
      ;;
    tails)
      more=$'[checkpoint]\nbytes = "1000GiB"\nperiod = 86400\n[wal]\nmax_size = "1000GiB"' start
      load --preload --warmup 0 --seconds 5 --rate 20000 --connections 16
      open_loop "no checkpoint, no emptying"
      finish
      more=$'[checkpoint]\nbytes = "64MiB"\n[wal]\nsegment_size = "32MiB"\nmax_size = "1GiB"' start
      keys=120000 load --preload --warmup 0 --seconds 40 --connections 16 --pipeline 16
      keys=120000 open_loop "checkpoints and emptying"
      ;;
    away)
      start
      load --preload --warmup 0 --seconds 10 --connections 16 --pipeline 16
      kill -9 "${pids[3]}"; wait "${pids[3]}" 2>/dev/null || true
      # Its groups elect others: that is not what is measured here.
      sleep 3
      (load --warmup 0 --seconds $((away + 40)) --rate 20000 --connections 16) &
      local loader=$! began goal
      sleep "$away"
      began=$(date +%s.%N)
      launch 3
      until goal=$(applied 1) && [ "$(applied 3)" -ge "$goal" ]; do
        [ "${SECONDS}" -lt 600 ] || die "not caught up"
        sleep 0.1
      done
      echo "away for $away s at 20,000 writes/s: caught up after $(seconds_since "$began") s"
      wait "$loader"
      printf '%-40s P50 %.2f ms, P99 %.2f ms, %s errors\n' "the load meanwhile" "$(value p50_ms)" \
        "$(value p99_ms)" "$(value error_count any)"
      ;;
    large)
      nodes=1 more_top='maxmemory = "960MiB"'
      keys=$((large << 18)) start
      SECONDS=0
      keys=$((large << 18)) load --preload --warmup 0 --seconds 1 --connections 16 --pipeline 16
      echo "$large GiB in $((large << 18)) keys written in $SECONDS s: $(resident) of memory"
      keys=$((large << 18)) load --warmup 2 --seconds "$each" --read-ratio 1 --connections 16 --pipeline 16
      printf '%-40s %.0f reads/s, P50 %.2f ms, P99 %.2f ms; %s of memory\n' "reads of random keys" \
        "$(value answers_per_second any)" "$(value p50_ms)" "$(value p99_ms)" "$(resident)"
      kill -9 "${pids[1]}"; wait "${pids[1]}" 2>/dev/null || true
      sync; echo 3 >/proc/sys/vm/drop_caches || echo "not root: what the system caches stays"
      local began
      began=$(date +%s.%N)
      launch 1
      until [ "$(ask 1 coracle_groups_with_preferred_leader CLUSTER INFO)" -eq 8 ]; do sleep 0.05; done
      echo "killed and started again: all groups led after $(seconds_since "$began") s, $(resident)"
      nodes=3 more_top=
      ;;
  esac
  finish
}

choose "$@"
headline
for name in "${chosen[@]}"; do run "$name"; done
