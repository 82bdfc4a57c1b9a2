# Nodes on this machine and a load on them: what the scripts of this directory share. Sourced from the
# top of the repository. Needs bash, awk and coreutils.

target=${CARGO_TARGET_DIR:-target}
# Where coracle and loadgen are.
bin=${BIN:-$target/release}
# Not there yet, and removed at the end.
data=${DATA:-$target/goals}
# The first of 30.
port=${PORT:-7400}

nodes=${nodes:-3}
# More lines for the nodes' configuration files, tables last.
more=${more:-}
# Lines before the tables.
more_top=${more_top:-}
pids=()

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_programs() {
  local program
  for program in coracle loadgen; do
    [ -x "$bin/$program" ] ||
      die "$bin/$program is missing: cargo build --release -p coracle -p coracle-loadgen --bins"
  done
}

finish() {
  local running=()
  for i in "${!pids[@]}"; do running+=("${pids[$i]}"); done
  [ "${#running[@]}" -eq 0 ] || { kill "${running[@]}" 2>/dev/null; wait "${running[@]}" 2>/dev/null; } || true
  pids=()
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

# Writes the configuration of all nodes.
configure() {
  local i j cpus
  cpus=$(nproc)
  [ ! -e "$data" ] || die "$data is there already: remove it, or set DATA"
  mkdir -p "$data"
  trap finish EXIT
  trap 'exit 130' INT TERM
  for ((i = 1; i <= nodes; i++)); do
    {
      printf 'id = %d\ncluster = "goals"\ndata_dir = "%s/node-%d"\n' "$i" "$(realpath "$data")" "$i"
      printf 'cores = [%d]\nshards = 1024\ngroups = 8\n%s\n' $(((i - 1) % cpus)) "$more_top"
      for ((j = 1; j <= nodes; j++)); do
        printf '[[nodes]]\nid = %d\nhost = "127.0.0.1"\nport = %d\ncore_port = %d\npeer_port = %d\n' \
          "$j" $((port + j)) $((port + 10 + j)) $((port + 20 + j))
      done
      printf '%s\n' "$more"
    } >"$data/node-$i.toml"
  done
}

launch() {
  "$bin/coracle" node --config "$data/node-$1.toml" >>"$data/node-$1.log" 2>&1 &
  pids[$1]=$!
}

# Waits until every node sees every group led where it should be.
until_led() {
  local i ready deadline=$((SECONDS + 30))
  while :; do
    ready=0
    for ((i = 1; i <= nodes; i++)); do
      [ "$(ask "$i" coracle_groups_with_preferred_leader CLUSTER INFO)" -ne 8 ] || ready=$((ready + 1))
    done
    [ "$ready" -lt "$nodes" ] || break
    [ "$SECONDS" -lt "$deadline" ] || { tail -n 5 "$data"/*.log >&2; die "not ready after 30 s"; }
    sleep 0.2
  done
}

start() {
  local i
  configure
  for ((i = 1; i <= nodes; i++)); do launch "$i"; done
  until_led
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
  for ((i = 1; i <= nodes; i++)); do count+=("$(ask "$i" coracle_leader_changes INFO)"); done
  echo "${count[@]}"
}

# load FLAGS…: 4 KiB values, 20,000 keys if the flags say nothing else.
load() {
  local i endpoints=
  for ((i = 1; i <= nodes; i++)); do endpoints+=,127.0.0.1:$((port + 10 + i)); done
  "$bin/loadgen" --endpoints "${endpoints#,}" --cluster --value-size 4096 --keys "${keys:-20000}" \
    --quiet --json "$data/load.json" "$@" >"$data/load.txt" 2>&1 ||
    { cat "$data/load.txt" >&2; die "the load failed"; }
}

# The first value of "NAME" after "latency" in the last load's result, or anywhere with a second
# argument.
value() {
  awk -v name="\"$1\":" -v on="${2:-}" '
    /"latency":/ { on = 1 }
    on && $1 == name { gsub(",", "", $2); print $2; exit }' "$data/load.json"
}

headline() {
  echo "# $(date -u +%FT%TZ), $(nproc) CPUs, Linux $(uname -r), load $(cut -d' ' -f1-3 /proc/loadavg)"
  echo "# coracle built $(date -u -r "$bin/coracle" +%FT%TZ)"
}

# Those of `runs` that were asked for, all if none was; each is run by `run NAME`.
choose() {
  local name
  chosen=("$@")
  [ $# -gt 0 ] || chosen=("${runs[@]}")
  for name in "${chosen[@]}"; do
    [[ " ${runs[*]} " == *" $name "* ]] || die "no run is called $name; there are: ${runs[*]}"
  done
  need_programs
}
