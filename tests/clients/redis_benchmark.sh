#!/usr/bin/env bash
# redis-benchmark ends with an error at the first error reply, so a clean exit means something.
# Needs CORACLE_PLAIN_PORTS and CORACLE_CORE_PORTS; see docs/testing.md.
set -u
read -r -a plain <<<"$CORACLE_PLAIN_PORTS"
read -r -a core <<<"$CORACLE_CORE_PORTS"
failed=0

# check NAME TESTS ARGUMENT…: it exits with 0 and reports a rate for each of TESTS tests.
check() {
  local name=$1 tests=$2 got status rates
  shift 2
  got=$(timeout 120 redis-benchmark -h 127.0.0.1 --csv "$@" 2>&1)
  status=$?
  rates=$(grep -cE '^"[^"]+","[0-9]+\.[0-9]+"' <<<"$got")
  if [ "$status" -eq 0 ] && [ "$rates" -eq "$tests" ]; then
    echo "ok redis-benchmark $name: $(grep -E '^"' <<<"$got" | tail -n +2 |
      awk -F'"' '{printf "%s%s %d/s", sep, $2, $4; sep = ", "}')"
  else
    echo "FAIL redis-benchmark $name: status $status, $rates of $tests rates: ${got:0:600}"
    failed=1
  fi
}

# PING_INLINE, PING_MBULK, SET, GET, INCR, MSET (10 keys).
tests=ping_inline,ping_mbulk,set,get,incr,mset
check 'plain port' 6 -p "${plain[0]}" -t "$tests" -n 20000 -c 50
check 'plain port, pipeline 16' 6 -p "${plain[0]}" -t "$tests" -n 20000 -c 50 -P 16
check 'plain port, 4 KiB, random keys' 2 -p "${plain[1]}" -t set,get -n 20000 -c 50 -d 4096 -r 1000
check 'plain port, RESP3' 2 -p "${plain[2]}" -t set,get -n 20000 -c 50 -3
check 'cluster mode' 2 -p "${core[0]}" --cluster -t set,get -n 20000 -c 48 -r 10000

exit "$failed"
