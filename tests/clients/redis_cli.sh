#!/usr/bin/env bash
# redis-cli as people and scripts use it: single commands, RESP3, standard input, --pipe, -c.
# Needs CORACLE_PLAIN_PORTS and CORACLE_CORE_PORTS; see docs/testing.md.
set -u
read -r -a plain <<<"$CORACLE_PLAIN_PORTS"
read -r -a core <<<"$CORACLE_CORE_PORTS"
failed=0

# check NAME WANTED COMMAND…: the command succeeds and prints exactly WANTED.
check() {
  local name=$1 wanted=$2 got status
  shift 2
  got=$(timeout 30 "$@" 2>&1)
  status=$?
  if [ "$status" -eq 0 ] && [ "$got" = "$wanted" ]; then
    echo "ok redis-cli $name"
  else
    echo "FAIL redis-cli $name: status $status, wanted '$wanted', got '$got'"
    failed=1
  fi
}

# contains NAME WANTED COMMAND…: the command succeeds and prints WANTED somewhere.
contains() {
  local name=$1 wanted=$2 got status
  shift 2
  got=$(timeout 30 "$@" 2>&1)
  status=$?
  if [ "$status" -eq 0 ] && [[ $got == *"$wanted"* ]]; then
    echo "ok redis-cli $name"
  else
    echo "FAIL redis-cli $name: status $status, wanted '…$wanted…', got '${got:0:600}'"
    failed=1
  fi
}

cli=(redis-cli -h 127.0.0.1 -p "${plain[0]}")
other=(redis-cli -h 127.0.0.1 -p "${plain[1]}")

check 'PING' 'PONG' "${cli[@]}" PING
check 'PING with a text' 'hello' "${cli[@]}" PING hello
check 'ECHO keeps bytes' $'a b\tc' "${cli[@]}" ECHO $'a b\tc'
check 'SET' 'OK' "${cli[@]}" SET cli:a 1
check 'GET' '1' "${cli[@]}" GET cli:a
check 'GET through another node' '1' "${other[@]}" GET cli:a
check 'GET of nothing' '' "${cli[@]}" GET cli:nothing
check 'SET NX on an existing key' '' "${cli[@]}" SET cli:a 2 NX
check 'INCR' '2' "${cli[@]}" INCR cli:a
check 'APPEND' '4' "${cli[@]}" APPEND cli:a xyz
check 'DEL counts' '1' "${cli[@]}" DEL cli:a
check 'MSET and MGET of one tag' $'x\ny' bash -c \
  'redis-cli -p "$1" MSET {cli}a x {cli}b y >/dev/null && redis-cli -p "$1" MGET {cli}a {cli}b' \
  - "${plain[0]}"
check 'EXPIRE and TTL' $'1\n100' bash -c \
  'redis-cli -p "$1" EXPIRE {cli}a 100 && redis-cli -p "$1" TTL {cli}a' - "${plain[0]}"
check 'a value of 1 MiB comes back' "$(head -c 1048576 /dev/zero | tr '\0' v | sha256sum)" \
  bash -c 'head -c 1048576 /dev/zero | tr "\0" v | redis-cli -p "$1" -x SET cli:big >/dev/null &&
           redis-cli -p "$1" --raw GET cli:big | head -c 1048576 | sha256sum' - "${plain[0]}"
contains 'arity error as Redis words it' "ERR wrong number of arguments for 'get' command" \
  "${cli[@]}" GET
contains 'unknown command as Redis words it' "ERR unknown command 'NOSUCH', with args beginning" \
  "${cli[@]}" NOSUCH a b
contains 'type error as Redis words it' 'ERR value is not an integer or out of range' \
  bash -c 'redis-cli -p "$1" SET cli:word w >/dev/null && redis-cli -p "$1" INCR cli:word' \
  - "${plain[0]}"
contains 'INFO has a version that clients can read' 'redis_version:' "${cli[@]}" INFO server
contains 'CLUSTER INFO says all is well' 'cluster_state:ok' "${cli[@]}" CLUSTER INFO
contains 'CLUSTER INFO says all slots are served' 'cluster_slots_assigned:16384' \
  "${cli[@]}" CLUSTER INFO
check 'CLUSTER KEYSLOT' '12182' "${cli[@]}" CLUSTER KEYSLOT foo
check 'inline commands, one connection' $'PONG\nOK\nv' "${cli[@]}" <<<$'PING\nSET cli:i v\nGET cli:i'

# -3 starts with HELLO 3, which must answer a map with a string version.
check '-3 PING' 'PONG' "${cli[@]}" -3 PING
check '-3 null' '(nil)' "${cli[@]}" -3 --no-raw GET cli:nothing
contains '-3 HELLO is a map' '# "proto" => (integer) 3' "${cli[@]}" -3 --no-raw HELLO 3
contains '-2 HELLO is a list' '"proto"' "${cli[@]}" -2 --no-raw HELLO 2

# --pipe sends raw protocol as fast as it can and counts the answers.
pipe() {
  local i
  for ((i = 0; i < 10000; i++)); do
    printf '*3\r\n$3\r\nSET\r\n$%d\r\ncli:pipe:%d\r\n$5\r\nvalue\r\n' $((9 + ${#i})) "$i"
  done | "${cli[@]}" --pipe
}
export -f pipe
contains '--pipe of 10,000 SET' 'errors: 0, replies: 10000' \
  bash -c "cli=(${cli[*]}); pipe"
check '--scan finds what --pipe sent' '10000' \
  bash -c 'redis-cli -p "$1" --scan --pattern "cli:pipe:*" | sort -u | wc -l' \
  - "${plain[2]}"
check '--pipe arrived' 'value' "${other[@]}" GET cli:pipe:9999

# A core's own port sends a client elsewhere; -c follows it there.
slot_of_foo=12182
moved=0
for port in "${core[@]}"; do
  answer=$(redis-cli -h 127.0.0.1 -p "$port" SET foo bar 2>&1)
  case $answer in
    OK) ;;
    "MOVED $slot_of_foo 127.0.0.1:"*) moved=$((moved + 1)) ;;
    *) echo "FAIL redis-cli MOVED: port $port answered '$answer'"; failed=1 ;;
  esac
done
check 'MOVED from every core but the owner' "$((${#core[@]} - 1))" echo "$moved"
for port in "${core[@]}"; do
  check "-c finds the owner from port $port" 'bar' redis-cli -c -h 127.0.0.1 -p "$port" GET foo
done

exit "$failed"
