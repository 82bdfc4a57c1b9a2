#!/usr/bin/env bash
# The same durable writes on etcd and on Coracle: three members each, on this machine, 4 KiB
# values, syncing to disk before every acknowledgement.
#
#   bench/compare/etcd.sh [SECONDS]        measured seconds per run, 15 by default
#
# Needs Debian or a relative of it, and cargo. Uses `etcd` from the path, or fetches Debian's
# etcd-server and etcd-client without installing them. Everything is below the target directory.
#
# etcd is asked by gRPC at its leader, on few connections with many streams each, which is the way
# that suits it best. In open loop, latency counts from the time at which a write was due. Its
# data directory is fresh for every run, and so is Coracle's.
set -eu
cd "$(dirname "$0")/../.."

seconds=${1:-15}
warmup=5
value_bytes=4096
keys=10000
target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$PWD/$target
work=$target/compare
pids=()

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

stop_all() {
  [ "${#pids[@]}" -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  pids=()
}
trap stop_all EXIT

# Waits up to 60 s for a command to succeed.
until_true() {
  local what=$1 i
  shift
  for ((i = 0; i < 600; i++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  tail -n 5 "$work"/*.log >&2 || true
  die "$what is not ready after 60 s"
}

# CPU ticks (1/100 s) that the servers have used so far.
cpu_ticks() {
  local pid sum=0 ticks
  for pid in "${pids[@]}"; do
    ticks=$(awk '{ print $14 + $15 }' "/proc/$pid/stat")
    sum=$((sum + ticks))
  done
  echo "$sum"
}

# measured FILE COMMAND…: runs it; writes the servers' CPU seconds per second to FILE.cpu.
measured() {
  local file=$1 before after start end
  shift
  before=$(cpu_ticks) start=$(date +%s.%N)
  "$@"
  after=$(cpu_ticks) end=$(date +%s.%N)
  awk -v t="$((after - before))" -v s="$start" -v e="$end" 'BEGIN { print t / 100 / (e - s) }' \
    >"$file.cpu"
}

# Puts etcd and etcdctl on the path.
find_etcd() {
  if command -v etcd >/dev/null && command -v etcdctl >/dev/null; then return 0; fi
  local bin=$work/etcd-debian/usr/bin package
  if [ ! -x "$bin/etcd" ] || [ ! -x "$bin/etcdctl" ]; then
    command -v apt-get >/dev/null || die "etcd is not on the path, and this is not Debian"
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; fi
    mkdir -p "$work/etcd-debian"
    for package in etcd-server etcd-client; do
      (cd "$work/etcd-debian" && apt-get download -qq "$package" 2>/dev/null) ||
        die "cannot fetch $package; as root, run: apt-get update"
    done
    for package in "$work"/etcd-debian/*.deb; do dpkg -x "$package" "$work/etcd-debian"; done
  fi
  PATH=$bin:$PATH
}

start_etcd() {
  local ports i name cluster="" endpoints
  rm -rf "$work/etcd"
  mkdir -p "$work/etcd"
  mapfile -t ports < <("$compare" ports 6)
  for i in 0 1 2; do cluster+="${cluster:+,}m$i=http://127.0.0.1:${ports[3 + i]}"; done
  for i in 0 1 2; do
    name=m$i
    etcd --name "$name" --data-dir "$work/etcd/$name" \
      --listen-client-urls "http://127.0.0.1:${ports[i]}" \
      --advertise-client-urls "http://127.0.0.1:${ports[i]}" \
      --listen-peer-urls "http://127.0.0.1:${ports[3 + i]}" \
      --initial-advertise-peer-urls "http://127.0.0.1:${ports[3 + i]}" \
      --initial-cluster "$cluster" --quota-backend-bytes $((16 << 30)) \
      --log-level error >"$work/etcd-$i.log" 2>&1 &
    pids+=($!)
  done
  export ETCDCTL_API=3
  endpoints=127.0.0.1:${ports[0]},127.0.0.1:${ports[1]},127.0.0.1:${ports[2]}
  until_true etcd etcdctl --endpoints "$endpoints" endpoint health
  # Columns: endpoint, id, version, size, is leader, …
  etcd_leader=$(etcdctl --endpoints "$endpoints" endpoint status | awk -F', ' '$5 == "true" { print $1 }')
  etcd_version=$(etcd --version | awk '/^etcd Version/ { print $3 }')
  [ -n "$etcd_leader" ] || die "etcd has no leader"
}

coracle_is_ready() {
  local answer=""
  exec 9<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'CLUSTER INFO\r\n' >&9
  while IFS= read -r -t 2 -u 9 answer; do
    if [[ $answer == cluster_state:ok* ]]; then exec 9>&-; return 0; fi
    if [[ $answer == cluster_state:* ]]; then break; fi
  done
  exec 9>&-
  return 1
}

start_coracle() {
  local ports i
  rm -rf "$work/coracle"
  mkdir -p "$work/coracle"
  mapfile -t ports < <("$compare" ports 9)
  for i in 0 1 2; do
    {
      printf 'id = %d\ncluster = "compare"\ndata_dir = "%s"\n' $((i + 1)) "$work/coracle/$i"
      printf 'cores = [%d]\nshards = 1024\ngroups = %d\n' "${cpus[i % ${#cpus[@]}]}" "$groups"
      for j in 0 1 2; do
        printf '[[nodes]]\nid = %d\nhost = "127.0.0.1"\nport = %d\ncore_port = %d\npeer_port = %d\n' \
          $((j + 1)) "${ports[j]}" "${ports[3 + j]}" "${ports[6 + j]}"
      done
    } >"$work/coracle/node-$i.toml"
    "$target/release/coracle" node --config "$work/coracle/node-$i.toml" \
      >"$work/coracle-$i.log" 2>&1 &
    pids+=($!)
  done
  for i in 0 1 2; do until_true coracle coracle_is_ready "${ports[i]}"; done
  coracle_endpoints=127.0.0.1:${ports[3]},127.0.0.1:${ports[4]},127.0.0.1:${ports[5]}
}

# run FILE NAME CONNECTIONS PER_CONNECTION RATE: both systems, one table.
run() {
  local base=$work/$1 name=$2 connections=$3 per_connection=$4 rate=$5 open=()
  say "== $name: etcd"
  start_etcd
  measured "$base-etcd" "$compare" etcd "$etcd_leader" "$connections" "$per_connection" \
    "$seconds" "$warmup" "$value_bytes" "$keys" "$rate" "$base-etcd.json"
  stop_all
  say "== $name: coracle"
  start_coracle
  [ "$rate" -eq 0 ] || open=(--rate "$rate")
  measured "$base-coracle" "$target/release/loadgen" --endpoints "$coracle_endpoints" --cluster \
    --connections "$connections" --pipeline "$per_connection" "${open[@]}" \
    --seconds "$seconds" --warmup "$warmup" --value-size "$value_bytes" --keys "$keys" \
    --read-ratio 0 --json "$base-coracle.json" >"$base-coracle.txt"
  stop_all
  {
    printf '%s\n' "$name"
    "$compare" table "etcd $etcd_version" "$base-etcd.json" "$(cat "$base-etcd.cpu")" \
      coracle "$base-coracle.json" "$(cat "$base-coracle.cpu")"
    printf '\n'
  } >>"$work/result.txt"
}

[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "usage: bench/compare/etcd.sh [SECONDS]"
mkdir -p "$work"
cargo build --release --locked --package coracle --package coracle-loadgen
cargo build --release --locked --package coracle-bench --bin compare
compare=$target/release/compare
find_etcd

# 0-2,5 -> 0 1 2 5
mapfile -t cpus < <(awk '/^Cpus_allowed_list:/ {
  n = split($2, ranges, ",")
  for (i = 1; i <= n; i++) {
    split(ranges[i], ends, "-")
    for (c = ends[1]; c <= (ends[2] == "" ? ends[1] : ends[2]); c++) print c
  }
}' /proc/self/status)
# Fewest groups that give every node something to lead. etcd has one group.
groups=3

{
  echo "$(date -u +%F), $(nproc) CPUs ($(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)), Linux $(uname -r)"
  echo "$value_bytes-byte values, $keys keys, $seconds s after $warmup s of warm-up, $groups groups in Coracle"
  echo
} >"$work/result.txt"
run closed-256 "256 in flight (16 x 16), closed loop" 16 16 0
run closed-50 "50 in flight (50 x 1), closed loop" 50 1 0
run open-3000 "3,000 writes/s, open loop (16 x 64)" 16 64 3000
run open-20000 "20,000 writes/s, open loop (16 x 64)" 16 64 20000
cat "$work/result.txt"
say "raw results: $work"
