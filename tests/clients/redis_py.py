"""redis-py on plain ports: a client that knows nothing of clusters sees one server."""

import threading
import time

import redis
from redis.exceptions import ResponseError

from cases import PLAIN_PORTS, case, equal, raises, run, true


def client(node=0, protocol=None, **options):
    options.setdefault("decode_responses", True)
    if protocol is not None:
        options["protocol"] = protocol
    return redis.Redis(host="127.0.0.1", port=PLAIN_PORTS[node], socket_timeout=10, **options)


@case("connects and pings on every node")
def _():
    for node in range(len(PLAIN_PORTS)):
        equal(client(node).ping(), True)


@case("values are bytes, kept as they are")
def _():
    r = client(decode_responses=False)
    for value in (b"", b"\0\r\n\xff", bytes(range(256)) * 16, b"x" * (1 << 20)):
        r.set("py:bytes", value)
        equal(r.get("py:bytes"), value)


@case("what one node acknowledged, every node reads")
def _():
    nodes = [client(node) for node in range(len(PLAIN_PORTS))]
    for i in range(300):
        key = f"py:seen:{i}"
        nodes[i % len(nodes)].set(key, i)
        for reader in nodes:
            equal(reader.get(key), str(i), key)


@case("set options")
def _():
    r = client()
    r.delete("py:opt")
    equal(r.set("py:opt", "a", xx=True), None, "XX on a missing key")
    equal(r.set("py:opt", "a", nx=True), True, "NX on a missing key")
    equal(r.set("py:opt", "b", nx=True), None, "NX on an existing key")
    equal(r.set("py:opt", "c", get=True), "a", "GET")
    equal(r.set("py:opt", "d", ex=100), True)
    true(90 < r.ttl("py:opt") <= 100, "EX sets a time to live")
    r.set("py:opt", "e", keepttl=True)
    true(90 < r.ttl("py:opt") <= 100, "KEEPTTL keeps it")
    r.set("py:opt", "f")
    equal(r.ttl("py:opt"), -1, "a plain SET removes it")


@case("append, strlen, getrange, setrange")
def _():
    r = client()
    r.delete("py:str")
    equal(r.append("py:str", "hello"), 5)
    equal(r.append("py:str", " world"), 11)
    equal(r.strlen("py:str"), 11)
    equal(r.getrange("py:str", -5, -1), "world")
    equal(r.setrange("py:str", 6, "there"), 11)
    equal(r.get("py:str"), "hello there")


@case("counters")
def _():
    r = client()
    r.delete("py:n")
    equal([r.incr("py:n"), r.incr("py:n", 10), r.decr("py:n"), r.decr("py:n", 5)], [1, 11, 10, 5])
    r.set("py:n", 2**63 - 1)
    raises(ResponseError, lambda: r.incr("py:n"), "overflow")
    equal(r.get("py:n"), str(2**63 - 1), "a refused INCR changes nothing")
    r.set("py:n", "x")
    raises(ResponseError, lambda: r.incr("py:n"), "not an integer")


@case("counters are exact under concurrency through all nodes")
def _():
    client().delete("py:race")
    threads, times, seen = 8, 100, []

    def work(number):
        r = client(number % len(PLAIN_PORTS))
        for _ in range(times):
            seen.append(r.incr("py:race"))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    equal(sorted(seen), list(range(1, threads * times + 1)), "every answer once")


@case("mget, mset, del, exists, touch, unlink of one tag")
def _():
    r = client()
    keys = [f"{{py:tag}}{i}" for i in range(10)]
    r.delete(*keys)
    true(r.mset({key: key for key in keys}), "MSET")
    equal(r.mget(keys + ["{py:tag}none"]), keys + [None])
    equal(r.exists(*keys, keys[0]), 11, "EXISTS counts repetitions")
    equal(r.touch(*keys), 10)
    equal(r.delete(*keys[:5]), 5)
    equal(r.unlink(*keys), 5)
    equal(r.exists(*keys), 0)


@case("expiry is punctual and takes the key away everywhere")
def _():
    nodes = [client(node) for node in range(len(PLAIN_PORTS))]
    start = time.monotonic()
    nodes[0].set("py:ttl", "v", px=1000)
    true(0 < nodes[0].pttl("py:ttl") <= 1000, "PTTL")
    while nodes[1].get("py:ttl") is not None:
        true(time.monotonic() - start < 6, "it stayed for seconds")
    true(time.monotonic() - start > 0.99, "it went too early")
    for node in nodes:
        equal(node.get("py:ttl"), None)
        equal(node.exists("py:ttl"), 0)
        equal(node.ttl("py:ttl"), -2)


@case("expire, persist, expireat, pexpire")
def _():
    r = client()
    r.set("py:exp", "v")
    equal(r.expire("py:exp", 100), True)
    equal(r.expire("py:exp", 50, gt=True), False, "GT refuses an earlier time")
    equal(r.persist("py:exp"), True)
    equal(r.ttl("py:exp"), -1)
    equal(r.expireat("py:exp", int(time.time()) + 1000), True)
    true(990 < r.ttl("py:exp") <= 1000, "EXPIREAT")
    equal(r.pexpire("py:exp", 500_000), True)
    true(490 < r.ttl("py:exp") <= 500, "PEXPIRE")
    equal(r.expire("py:exp", -1), True)
    equal(r.get("py:exp"), None, "a time in the past deletes")
    equal(r.expire("py:exp", 10), False, "no key, no expiry")


@case("pipelines keep order, also across owners")
def _():
    pipe = client().pipeline(transaction=False)
    for i in range(500):
        pipe.set(f"py:pipe:{i}", i)
        pipe.get(f"py:pipe:{i}")
        pipe.incr(f"py:pipe:{i}")
    answers = pipe.execute()
    equal(answers, [x for i in range(500) for x in (True, str(i), i + 1)])


@case("an error inside a pipeline stays in its place")
def _():
    pipe = client().pipeline(transaction=False)
    pipe.set("py:err", "x").incr("py:err").get("py:err")
    first, error, last = pipe.execute(raise_on_error=False)
    equal((first, last), (True, "x"))
    true(isinstance(error, ResponseError), f"got {error!r}")


@case("HELLO 2 and HELLO 3")
def _():
    for protocol in (2, 3):
        r = client(protocol=protocol)
        equal(r.ping(), True)
        r.set("py:hello", protocol)
        equal(r.get("py:hello"), str(protocol))
        equal(r.get("py:nothing"), None)
        info = r.execute_command("HELLO", protocol)
        if not isinstance(info, dict):
            info = dict(zip(info[::2], info[1::2]))
        equal(info["proto"], protocol)
        true(isinstance(info["version"], str), "the version is a string")


@case("HELLO 4 is refused and changes nothing")
def _():
    r = client(protocol=2, single_connection_client=True)
    raises(ResponseError, lambda: r.execute_command("HELLO", "4"), "NOPROTO")
    equal(r.ping(), True)


@case("INFO, CONFIG GET, CLIENT, COMMAND, TIME as clients need them")
def _():
    r = client()
    info = r.info()
    true("redis_version" in info, "INFO has redis_version")
    true("connected_clients" in info, "INFO has connected_clients")
    true(isinstance(r.config_get("save"), dict), "CONFIG GET save")
    true(isinstance(r.config_get("appendonly"), dict), "CONFIG GET appendonly")
    equal(r.client_setname("tester"), True)
    equal(r.client_getname() in ("tester", None), True, "another connection may answer")
    true(r.client_id() > 0, "CLIENT ID")
    true(r.command_count() > 50, "COMMAND COUNT")
    true("get" in r.command(), "COMMAND lists get")
    seconds, _ = r.time()
    true(abs(seconds - time.time()) < 60, "TIME")


@case("SELECT 0 only")
def _():
    r = client(single_connection_client=True)
    equal(r.execute_command("SELECT", 0) in (True, "OK"), True)
    raises(ResponseError, lambda: r.execute_command("SELECT", 1), "")


@case("DBSIZE counts new keys")
def _():
    r = client()
    keys = [f"{{py:dbsize}}{i}" for i in range(200)]
    r.delete(*keys)
    before = r.dbsize()
    true(r.mset(dict.fromkeys(keys, "v")), "MSET")
    equal(r.dbsize(), before + 200, "after 200 new keys")
    equal(r.delete(*keys), 200)
    equal(r.dbsize(), before, "after deleting them")


@case("SCAN and KEYS show what every node has")
def _():
    for i in range(500):
        client(i % len(PLAIN_PORTS)).set(f"py:scan:{i}", i)
    want = sorted(f"py:scan:{i}" for i in range(500))
    for node in range(len(PLAIN_PORTS)):
        r = client(node)
        for options in ({}, {"count": 3}, {"count": 1000}, {"_type": "string"}):
            equal(sorted(r.scan_iter("py:scan:*", **options)), want, f"{options}")
        equal(sorted(r.keys("py:scan:*")), want)
        equal(len(list(r.scan_iter("py:scan:4[0-3]"))), 4)
        equal(list(r.scan_iter(_type="hash")), [])
    true(r.randomkey() is not None, "RANDOMKEY")


@case("GETEX, MSETNX and INCRBYFLOAT")
def _():
    r = client()
    r.delete("{py}m1", "{py}m2", "{py}float")
    equal(r.msetnx({"{py}m1": 1, "{py}m2": 2}), True)
    equal(r.msetnx({"{py}m2": 3, "{py}m3": 4}), False)
    equal(r.getex("{py}m1", ex=100), "1")
    true(90 < r.ttl("{py}m1") <= 100, "TTL after GETEX")
    equal(r.getex("{py}m1", persist=True), "1")
    equal(r.ttl("{py}m1"), -1)
    equal(r.incrbyfloat("{py}float", 0.1), 0.1)
    equal(r.incrbyfloat("{py}float", 0.2), 0.3)


@case("FLUSHALL removes everything everywhere")
def _():
    r = client()
    for i in range(100):
        r.set(f"py:flush:{i}", "v", ex=100 if i % 2 else None)
    equal(r.flushall(), True)
    for node in range(len(PLAIN_PORTS)):
        equal(client(node).dbsize(), 0)
        equal(list(client(node).scan_iter()), [])
    r.set("py:flush:again", "v")
    equal(r.flushdb(asynchronous=True), True)
    equal(r.randomkey(), None)


run("redis-py")
