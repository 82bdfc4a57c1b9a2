"""redis-py as a cluster client on core ports: keys go straight to the core that owns them."""

import warnings

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import MovedError, ResponseError

from cases import CORE_PORTS, case, equal, raises, run, true

# `read_from_replicas` is deprecated, and what most programs use.
warnings.simplefilter("ignore", DeprecationWarning)


def cluster(start=0, **options):
    options.setdefault("decode_responses", True)
    nodes = [ClusterNode("127.0.0.1", CORE_PORTS[start])]
    return RedisCluster(startup_nodes=nodes, socket_timeout=10, **options)


def endpoint(port, **options):
    """A client of one port that neither follows nor hides anything."""
    return redis.Redis(
        host="127.0.0.1", port=port, socket_timeout=10, decode_responses=True,
        single_connection_client=True, **options,
    )


def raw(port, *command):
    """The answer of one port, before the client makes its own sense of it."""
    connection = redis.Connection(host="127.0.0.1", port=port, decode_responses=True)
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


@case("discovers every endpoint from any endpoint")
def _():
    for start in range(len(CORE_PORTS)):
        rc = cluster(start)
        equal(sorted(node.port for node in rc.get_primaries()), sorted(CORE_PORTS), "primaries")
        rc.close()


@case("1,000 keys over all endpoints")
def _():
    rc = cluster()
    for i in range(1000):
        equal(rc.set(f"pc:{i}", i), True)
    for i in range(1000):
        equal(rc.get(f"pc:{i}"), str(i))
    owners = {rc.get_node_from_key(f"pc:{i}").port for i in range(1000)}
    equal(owners, set(CORE_PORTS), "endpoints that own some key")


@case("expire, append, incr")
def _():
    rc = cluster()
    rc.delete("pc:str", "pc:n")
    equal([rc.append("pc:str", "ab"), rc.append("pc:str", "cd")], [2, 4])
    equal(rc.get("pc:str"), "abcd")
    equal([rc.incr("pc:n"), rc.incrby("pc:n", 41)], [1, 42])
    equal(rc.expire("pc:n", 100), True)
    true(90 < rc.ttl("pc:n") <= 100, "TTL")


@case("mget and mset of one tag, and over all slots")
def _():
    rc = cluster()
    keys = [f"{{pc:tag}}{i}" for i in range(10)]
    equal(rc.mset({key: key for key in keys}), True)
    equal(rc.mget(keys), keys)
    spread = {f"pc:spread:{i}": str(i) for i in range(50)}
    rc.mset_nonatomic(spread)
    equal(rc.mget_nonatomic(list(spread)), list(spread.values()))
    equal(rc.exists(*spread), 50)
    equal(rc.delete(*spread), 50)


@case("CROSSSLOT for keys of different shards")
def _():
    port = cluster().get_node_from_key("foo").port
    wrong = lambda: endpoint(port).mget("foo", "bar", "baz")
    # redis-py takes the code off the text.
    raises(ResponseError, wrong, "Keys in request don't hash to the same slot")


@case("pipelines")
def _():
    pipe = cluster().pipeline()
    for i in range(300):
        pipe.set(f"pc:pipe:{i}", i)
    equal(pipe.execute(), [True] * 300)
    pipe = cluster().pipeline()
    for i in range(300):
        pipe.get(f"pc:pipe:{i}")
    equal(pipe.execute(), [str(i) for i in range(300)])


@case("every endpoint but the owner says MOVED to the owner")
def _():
    rc = cluster()
    rc.set("foo", "bar")
    owner = rc.get_node_from_key("foo").port
    for port in CORE_PORTS:
        if port == owner:
            equal(endpoint(port).get("foo"), "bar")
        else:
            error = raises(MovedError, lambda port=port: endpoint(port).get("foo"))
            equal((error.slot_id, error.port), (key_slot(b"foo"), owner))


@case("follows MOVED when its map is wrong")
def _():
    rc = cluster()
    rc.set("pc:moved", "here")
    slots = rc.nodes_manager.slots_cache
    slot = rc.keyslot("pc:moved")
    right = slots[slot][0]
    wrong = next(node for node in rc.get_primaries() if node.port != right.port)
    slots[slot] = [wrong]
    equal(rc.get("pc:moved"), "here")
    equal(rc.nodes_manager.slots_cache[slot][0].port, right.port, "the map was mended")


@case("CLUSTER SLOTS covers every slot once, with stable ids")
def _():
    ids = {}
    for port in CORE_PORTS:
        covered = []
        for first, last, (host, owner, node_id, *_), *_ in raw(port, "CLUSTER", "SLOTS"):
            covered.extend(range(first, last + 1))
            true(host and owner in CORE_PORTS, f"owner {host}:{owner}")
            equal(len(node_id), 40, "length of an id")
            equal(ids.setdefault(owner, node_id), node_id, f"id of {owner}")
        equal(sorted(covered), list(range(16384)), f"slots as seen by {port}")
    equal(len(set(ids.values())), len(ids), "ids are distinct")


@case("CLUSTER NODES: one line per endpoint, one of them myself, all masters")
def _():
    for port in CORE_PORTS:
        lines = [line.split(" ") for line in raw(port, "CLUSTER", "NODES").splitlines()]
        equal(len(lines), len(CORE_PORTS), "lines")
        mine = [line for line in lines if "myself" in line[2]]
        equal([int(line[1].split("@")[0].split(":")[1]) for line in mine], [port], "myself")
        true(all("master" in line[2] and "slave" not in line[2] for line in lines), "flags")
        covered = set()
        for line in lines:
            for part in line[8:]:
                first, _, last = part.partition("-")
                covered.update(range(int(first), int(last or first) + 1))
        equal(len(covered), 16384, "slots")


@case("replica reads are linearizable")
def _():
    rc = cluster()
    reader = cluster(read_from_replicas=True)
    equal(sorted(node.port for node in reader.get_primaries()), sorted(CORE_PORTS), "primaries")
    for i in range(500):
        rc.set("pc:fresh", i)
        equal(reader.get("pc:fresh"), str(i))


@case("READONLY lets a follower answer, and only with what is current")
def _():
    rc = cluster()
    per_node = len(CORE_PORTS) // 3
    owner = rc.get_node_from_key("pc:follow").port
    # A group lives on the same core number of every node.
    core = CORE_PORTS.index(owner) % per_node
    followers = [p for p in CORE_PORTS[core::per_node] if p != owner]
    equal(len(followers), 2)
    clients = [endpoint(port) for port in followers]
    for follower in clients:
        raises(MovedError, lambda follower=follower: follower.get("pc:follow"))
        true(follower.execute_command("READONLY"), "READONLY")
    for i in range(300):
        rc.set("pc:follow", i)
        for follower in clients:
            equal(follower.get("pc:follow"), str(i))
    for follower in clients:
        raises(MovedError, lambda follower=follower: follower.set("pc:follow", "no"))
        true(follower.execute_command("READWRITE"), "READWRITE")
        raises(MovedError, lambda follower=follower: follower.get("pc:follow"))


@case("READONLY on a primary changes nothing for what it owns")
def _():
    port = cluster().get_node_from_key("pc:primary").port
    owner = endpoint(port)
    true(owner.execute_command("READONLY"), "READONLY")
    equal(owner.set("pc:primary", "v"), True)
    equal(owner.get("pc:primary"), "v")


@case("DBSIZE of all primaries counts every key once")
def _():
    rc = cluster()
    count = lambda: rc.dbsize(target_nodes=RedisCluster.PRIMARIES)
    keys = [f"{{pc:dbsize}}{i}" for i in range(300)]
    rc.delete(*keys)
    before = count()
    equal(rc.mset(dict.fromkeys(keys, "v")), True)
    equal(count(), before + 300, "after 300 new keys")
    equal(rc.delete(*keys), 300)
    equal(count(), before, "after deleting them")


@case("scan_iter, KEYS and RANDOMKEY over all endpoints")
def _():
    rc = cluster()
    want = [f"pc:scan:{i}" for i in range(1000)]
    for key in want:
        rc.set(key, "v")
    for options in ({}, {"count": 7}, {"count": 1000}):
        # An endpoint also shows what it led a while ago: a key may come twice.
        equal(sorted(set(rc.scan_iter("pc:scan:*", **options))), sorted(want), f"{options}")
    equal(sorted(rc.keys("pc:scan:*", target_nodes=RedisCluster.PRIMARIES)), sorted(want))
    true(rc.randomkey() is not None, "RANDOMKEY")


@case("FLUSHALL through the endpoints removes everything")
def _():
    rc = cluster()
    for i in range(200):
        rc.set(f"pc:flush:{i}", "v")
    true(rc.flushall(), "FLUSHALL")
    equal(rc.dbsize(target_nodes=RedisCluster.PRIMARIES), 0)
    equal(list(rc.scan_iter()), [])
    for i in range(200):
        equal(rc.get(f"pc:flush:{i}"), None)


@case("RESP2 and RESP3")
def _():
    for protocol in (2, 3):
        rc = cluster(protocol=protocol)
        rc.set("pc:protocol", protocol)
        equal(rc.get("pc:protocol"), str(protocol))
        equal(rc.get("pc:nothing"), None)
        rc.close()


run("redis-py-cluster")
