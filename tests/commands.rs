//! Every command over a socket, in both protocols, on both kinds of port.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use common::client::{Client, bulk, text};
use common::{CORACLE, Cluster, Options, wait_until};
use coracle_engine::command::SPECS;
use coracle_engine::{Reply, SlotId};

/// What a reply must be.
enum Want {
    /// Exactly this.
    Is(Reply),
    /// Anything that this accepts.
    Like(fn(&Reply) -> bool),
}

fn is(reply: Reply) -> Want {
    Want::Is(reply)
}

fn int(value: i64) -> Want {
    is(Reply::Integer(value))
}

fn ok() -> Want {
    is(Reply::OK)
}

fn list(items: &[Option<&str>]) -> Want {
    is(Reply::Array(items.iter().map(|item| item.map_or(Reply::Null, bulk)).collect()))
}

fn is_list(reply: &Reply) -> bool {
    matches!(reply, Reply::Array(items) if !items.is_empty())
}

fn is_table(reply: &Reply) -> bool {
    matches!(reply, Reply::Map(pairs) if !pairs.is_empty()) || is_list(reply)
}

fn is_text(reply: &Reply) -> bool {
    matches!(reply, Reply::Bulk(_) | Reply::Verbatim(_)) && !text(reply).is_empty()
}

/// A cursor and one key.
fn is_first_page(reply: &Reply) -> bool {
    match reply {
        Reply::Array(fields) => match &fields[..] {
            [cursor, Reply::Array(keys)] => text(cursor) == "0" && keys.len() == 1,
            _ => false,
        },
        _ => false,
    }
}

/// All commands with the data each meets; the order matters. Keys of one hash tag are one shard.
fn script() -> Vec<(&'static str, Want)> {
    let missing = || is(Reply::Null);
    vec![
        // Connection and node.
        ("PING", is(Reply::Status("PONG"))),
        ("PING hi", is(bulk("hi"))),
        ("ECHO hi", is(bulk("hi"))),
        ("AUTH default any", ok()),
        ("SELECT 0", ok()),
        ("CLIENT SETNAME tester", ok()),
        ("CLIENT GETNAME", is(bulk("tester"))),
        ("CLIENT ID", Want::Like(|reply| matches!(reply, Reply::Integer(1..)))),
        ("CLIENT SETINFO LIB-NAME test", ok()),
        ("CLIENT INFO", Want::Like(|reply| text(reply).contains("lib-name=test"))),
        ("CLIENT LIST", Want::Like(|reply| text(reply).contains("name=tester"))),
        ("CLIENT NO-EVICT ON", ok()),
        ("CLIENT NO-TOUCH ON", ok()),
        ("COMMAND", Want::Like(|reply| matches!(reply, Reply::Array(a) if a.len() == SPECS.len()))),
        ("COMMAND COUNT", int(SPECS.len() as i64)),
        ("COMMAND INFO get nosuch", Want::Like(is_list)),
        ("COMMAND DOCS get", Want::Like(is_table)),
        ("COMMAND LIST", Want::Like(is_list)),
        ("COMMAND GETKEYS MSET a 1 b 2", list(&[Some("a"), Some("b")])),
        ("INFO", Want::Like(|reply| text(reply).contains("\nredis_version:"))),
        ("INFO server", Want::Like(is_text)),
        ("CONFIG GET save", Want::Like(is_table)),
        ("CLUSTER SLOTS", Want::Like(is_list)),
        ("CLUSTER SHARDS", Want::Like(is_list)),
        ("CLUSTER NODES", Want::Like(|reply| text(reply).matches("myself").count() == 1)),
        ("CLUSTER INFO", Want::Like(|reply| text(reply).contains("cluster_state:ok"))),
        ("CLUSTER MYID", Want::Like(|reply| text(reply).len() == 40)),
        ("CLUSTER KEYSLOT foo", int(12182)),
        ("READONLY", ok()),
        ("READWRITE", ok()),
        ("ASKING", ok()),
        ("TIME", Want::Like(|reply| matches!(reply, Reply::Array(parts) if parts.len() == 2))),
        ("WAIT 0 0", Want::Like(|reply| matches!(reply, Reply::Integer(0..)))),
        ("DBSIZE", Want::Like(|reply| matches!(reply, Reply::Integer(0..)))),
        // Strings.
        ("GET {t}k", missing()),
        ("SET {t}k v", ok()),
        ("GET {t}k", is(bulk("v"))),
        ("CLUSTER GETKEYSINSLOT {slot} 10", Want::Like(|reply| matches!(reply, Reply::Array(_)))),
        ("SET {t}k w NX", missing()),
        ("SET {t}k w XX GET", is(bulk("v"))),
        ("PUT {t}k v", ok()),
        ("APPEND {t}k xyz", int(4)),
        ("STRLEN {t}k", int(4)),
        ("GETRANGE {t}k 1 2", is(bulk("xy"))),
        ("SUBSTR {t}k -2 -1", is(bulk("yz"))),
        ("SETRANGE {t}k 1 ab", int(4)),
        ("GETSET {t}k new", is(bulk("vabz"))),
        ("SETNX {t}k x", int(0)),
        ("GETDEL {t}k", is(bulk("new"))),
        ("SETNX {t}k x", int(1)),
        ("INCR {t}n", int(1)),
        ("INCRBY {t}n 10", int(11)),
        ("DECR {t}n", int(10)),
        ("DECRBY {t}n 4", int(6)),
        ("MSET {t}a 1 {t}b 2", ok()),
        ("MGET {t}a {t}none {t}b", list(&[Some("1"), None, Some("2")])),
        ("SETEX {t}e 100 v", ok()),
        ("PSETEX {t}e 100000 v", ok()),
        // Keys.
        ("TYPE {t}a", is(Reply::Status("string"))),
        ("TYPE {t}none", is(Reply::Status("none"))),
        ("EXISTS {t}a {t}b {t}none", int(2)),
        ("TOUCH {t}a {t}none", int(1)),
        ("TTL {t}a", int(-1)),
        ("TTL {t}none", int(-2)),
        ("TTL {t}e", Want::Like(|reply| matches!(reply, Reply::Integer(90..=100)))),
        ("PTTL {t}e", Want::Like(|reply| matches!(reply, Reply::Integer(90_000..=100_000)))),
        ("EXPIRE {t}a 1000", int(1)),
        ("EXPIRE {t}a 10 GT", int(0)),
        ("PEXPIRE {t}a 1000000", int(1)),
        ("EXPIREAT {t}a 4000000000", int(1)),
        ("EXPIRETIME {t}a", int(4_000_000_000)),
        ("PEXPIREAT {t}a 4000000000123", int(1)),
        ("PEXPIRETIME {t}a", int(4_000_000_000_123)),
        ("PERSIST {t}a", int(1)),
        ("PERSIST {t}a", int(0)),
        ("DEL {t}a {t}none", int(1)),
        ("UNLINK {t}b {t}e {t}n {t}k", int(4)),
        ("EXISTS {t}k", int(0)),
        ("MSETNX {t}x 1 {t}y 2", int(1)),
        ("MSETNX {t}y 1 {t}z 2", int(0)),
        ("INCRBYFLOAT {t}x 0.5", is(bulk("1.5"))),
        ("GETEX {t}x EX 100", is(bulk("1.5"))),
        ("TTL {t}x", Want::Like(|reply| matches!(reply, Reply::Integer(90..=100)))),
        // The whole keyspace, as far as this port shows it.
        ("DBSIZE", int(2)),
        ("SCAN 0 MATCH *x COUNT 10000", Want::Like(is_first_page)),
        ("KEYS *", Want::Like(|reply| matches!(reply, Reply::Array(keys) if keys.len() == 2))),
        ("RANDOMKEY", Want::Like(|reply| ["x", "y"].iter().any(|k| text(reply).ends_with(k)))),
        ("FLUSHDB", ok()),
        ("FLUSHALL ASYNC", ok()),
        ("DBSIZE", int(0)),
        ("RANDOMKEY", missing()),
        // Ends of a connection's life.
        ("RESET", is(Reply::Status("RESET"))),
        ("QUIT", ok()),
    ]
}

/// The connection that serves a hash tag: the plain port takes all, a core port only its own.
fn connect(cluster: &Cluster, tag: &str, on_core: bool) -> Client {
    if !on_core {
        return cluster.nodes[0].client();
    }
    let leader = cluster.leader_of(tag, 0).expect("a leader is known");
    cluster.nodes[leader].core_client()
}

/// Gives every command of the table. Whether one leader served all of it.
fn all_answers(cluster: &Cluster, protocol: &str, on_core: bool) -> bool {
    let tag = format!("{protocol}{on_core}");
    let mut client = connect(cluster, &tag, on_core);
    let mut seen = BTreeSet::from(["hello".to_owned()]);
    let hello = client.run(&format!("HELLO {protocol}"));
    assert!(is_table(&hello), "{hello:?}");
    for (line, want) in script() {
        let slot = SlotId::of_key(tag.as_bytes()).get().to_string();
        let line = line.replace("{t}", &format!("{{{tag}}}")).replace("{slot}", &slot);
        let reply = client.run(&line);
        let good = match &want {
            Want::Is(exact) => reply == *exact,
            Want::Like(accepts) => accepts(&reply),
        };
        if !good && is_change_of_leader(&reply) {
            return false;
        }
        assert!(good, "RESP{protocol}, core port {on_core}, {line}: {reply:?}");
        let name = line.split(' ').next().expect("a name");
        seen.insert(name.to_ascii_lowercase());
    }
    let all: BTreeSet<_> = SPECS.iter().map(|spec| spec.name.to_owned()).collect();
    let left: Vec<_> = all.difference(&seen).collect();
    assert!(left.is_empty(), "not called: {left:?}");
    assert!(client.read_to_close().expect("QUIT closes").is_empty());
    true
}

/// What clients hear when another replica leads or nobody knows who does.
fn is_change_of_leader(reply: &Reply) -> bool {
    const CODES: [&str; 4] = ["MOVED ", "TRYAGAIN ", "UNCERTAIN ", "CLUSTERDOWN "];
    matches!(reply, Reply::Error(text) if CODES.iter().any(|code| text.starts_with(code)))
}

/// Every command of the table, on every kind of port, in both protocols.
#[test]
fn every_command_answers_over_a_socket() {
    let cluster = Cluster::start(&Options::default());
    for on_core in [false, true] {
        for protocol in ["2", "3"] {
            // On a busy machine leaders may change in the middle of it.
            wait_until("all commands are answered by one leader", || {
                wait_until("there is nothing left of the time before", || {
                    cluster.nodes[0].client().run("FLUSHALL") == Reply::OK
                });
                all_answers(&cluster, protocol, on_core)
            });
        }
    }
}

/// The leader of a slot lists its keys, not those of its shard's other slots.
#[test]
fn keys_of_a_slot_are_listed() {
    let cluster = Cluster::start(&Options::single());
    let mut client = cluster.nodes[0].client();
    let (slot, neighbour) = (SlotId::of_key(b"t").get(), SlotId::of_key(b"t").get() ^ 1);
    let mut near = (0..).map(|n| format!("n{n}"));
    let near = near.find(|key| SlotId::of_key(key.as_bytes()).get() == neighbour);
    // Counters are answered once they are applied.
    for key in ["{t}1", "{t}2", near.as_deref().expect("one of many")] {
        assert_eq!(client.run(&format!("INCR {key}")), Reply::Integer(1));
    }
    let Reply::Array(keys) = client.run(&format!("CLUSTER GETKEYSINSLOT {slot} 10")) else {
        panic!("an array")
    };
    let keys: BTreeSet<String> = keys.iter().map(text).collect();
    assert_eq!(keys, BTreeSet::from(["{t}1".to_owned(), "{t}2".to_owned()]));
    assert_eq!(client.run(&format!("CLUSTER COUNTKEYSINSLOT {slot}")), Reply::Integer(2));
}

/// Keys that leave because their time has come are counted, however they leave.
#[test]
fn expired_keys_are_counted() {
    let cluster = Cluster::start(&Options::single());
    let mut client = cluster.nodes[0].client();
    let expired = |client: &mut Client| {
        let info = text(&client.run("INFO stats"));
        let line = info.lines().find_map(|line| line.strip_prefix("expired_keys:"));
        line.and_then(|count| count.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!(expired(&mut client), 0);
    for n in 0..20 {
        assert_eq!(client.run(&format!("SET k{n} v PX 1")), Reply::OK);
        assert_eq!(client.run(&format!("SET stays{n} v EX 100")), Reply::OK);
    }
    wait_until("all short-lived keys have expired", || expired(&mut client) == 20);
    assert_eq!(client.run("DEL stays1"), Reply::Integer(1));
    assert_eq!(client.run("DBSIZE"), Reply::Integer(19));
    assert_eq!(expired(&mut client), 20, "a deleted key has not expired");
}

/// The types of RESP3 appear after `HELLO 3` and not before.
#[test]
fn the_protocol_decides_the_types() {
    let cluster = Cluster::start(&Options::single());
    let mut client = cluster.nodes[0].client();
    let raw = |client: &mut Client, line: &str, length: usize| {
        client.send_raw(format!("{line}\r\n").as_bytes()).expect("sent");
        String::from_utf8_lossy(&client.read_exact(length).expect("an answer")).into_owned()
    };
    assert_eq!(raw(&mut client, "GET none", 5), "$-1\r\n");
    assert_eq!(raw(&mut client, "CONFIG GET save", 20), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
    assert!(matches!(client.run("HELLO 3"), Reply::Map(_)));
    assert_eq!(raw(&mut client, "GET none", 3), "_\r\n");
    assert_eq!(raw(&mut client, "CONFIG GET save", 20), "%1\r\n$4\r\nsave\r\n$0\r\n\r\n");
    assert!(matches!(client.run("CLUSTER INFO"), Reply::Verbatim(_)));
    assert!(matches!(client.run("HELLO 2"), Reply::Array(_)));
    assert_eq!(raw(&mut client, "GET none", 5), "$-1\r\n");
}

/// A core port sends clients to the owner; the plain port does the work itself.
#[test]
fn core_ports_redirect_and_plain_ports_forward() {
    let cluster = Cluster::start(&Options { cores: 2, ..Options::default() });
    let ports: BTreeSet<u16> =
        cluster.nodes.iter().flat_map(|node| [node.ports.core, node.ports.core + 1]).collect();
    let keys = Cluster::keys("r", 32);
    let mut plain: Vec<_> = cluster.nodes.iter().map(|node| node.client()).collect();
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(plain[n % 3].run(&format!("SET {key} {n}")), Reply::OK, "{key}");
    }
    let mut redirected = 0;
    for (n, key) in keys.iter().enumerate() {
        let slot = SlotId::of_key(key.as_bytes()).get();
        for node in &cluster.nodes {
            let mut port = node.ports.core;
            wait_until(&format!("{key} asked at node {} is found", node.id), || {
                let reply = Client::connect(port).expect("it listens").run(&format!("GET {key}"));
                // Leaders may change on the way.
                let Reply::Error(moved) = &reply else {
                    assert_eq!(reply, bulk(&n.to_string()), "{key} asked at node {}", node.id);
                    return true;
                };
                let Some(owner) = moved.strip_prefix(&format!("MOVED {slot} 127.0.0.1:")) else {
                    assert!(is_change_of_leader(&reply), "{moved}");
                    return false;
                };
                port = owner.parse().expect("a port");
                assert!(ports.contains(&port), "{moved}");
                redirected += 1;
                false
            });
        }
    }
    assert!(redirected > keys.len(), "most core ports are not the owner: {redirected}");
}

/// Commands sent ahead are answered in their order, reads after the writes before them.
#[test]
fn pipelined_commands_are_answered_in_order() {
    let cluster = Cluster::start(&Options::default());
    let mut client = cluster.nodes[0].client();
    const ROUNDS: usize = 500;
    for n in 0..ROUNDS {
        // Keys of all groups: their answers become ready in any order.
        client.send(&["SET", &format!("p:{n}"), &n.to_string()]).expect("sent");
        client.send(&["GET", &format!("p:{n}")]).expect("sent");
        client.send(&["PING", &n.to_string()]).expect("sent");
    }
    for n in 0..ROUNDS {
        assert_eq!(client.reply().expect("an answer"), Reply::OK, "{n}");
        assert_eq!(client.reply().expect("an answer"), bulk(&n.to_string()), "{n}");
        assert_eq!(client.reply().expect("an answer"), bulk(&n.to_string()), "{n}");
    }
}

/// A replica answers reads of a `READONLY` connection with what was acknowledged before.
#[test]
fn readonly_connections_read_from_any_replica() {
    let cluster = Cluster::start(&Options::default());
    let mut writer = cluster.nodes[0].client();
    let mut readers: Vec<_> = cluster.nodes.iter().map(|node| node.core_client()).collect();
    for reader in &mut readers {
        assert_eq!(reader.run("READONLY"), Reply::OK);
    }
    for n in 0..200 {
        assert_eq!(writer.run(&format!("SET ro {n}")), Reply::OK);
        for reader in &mut readers {
            assert_eq!(reader.run("GET ro"), bulk(&n.to_string()), "{n}");
        }
    }
}

/// `node check-config` shows each value with its origin.
#[test]
fn check_config_tells_where_values_come_from() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir");
    let file = dir.path().join("c.toml");
    let text = "id = 1\ncluster = \"t\"\ndata_dir = \"d\"\ngroups = 3\n[wal]\n\
                segment_size = \"32MiB\"\n";
    std::fs::write(&file, text).expect("write");
    let output = Command::new(CORACLE)
        .args(["node", "check-config", "--groups", "5", "--node", "1=h:1/2/3", "--config"])
        .arg(&file)
        .env_clear()
        .env("CORACLE_MAXCLIENTS", "77")
        .env("CORACLE_REQUIREPASS", "canary-5")
        .output()
        .expect("start coracle");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<String> =
        shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "id = 1 # file",
        "groups = 5 # flag",
        "maxclients = 77 # environment",
        "shards = 1024 # default",
        "wal.segment_size = \"32MiB\" # file",
        "requirepass = (hidden) # environment",
        "nodes = [\"1=h:1/2/3\"] # flag",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("canary"), "{shown}");
}

/// The fields of a line of `CLIENT LIST`, as redis-py reads them: words, each `name=value`.
fn client_fields(line: &str) -> BTreeMap<&str, &str> {
    line.split(' ').map(|word| word.split_once('=').expect(line)).collect()
}

/// Two connections to each of two cores and one to the plain port see each other, whichever is
/// asked, and any of them can close another one.
#[test]
fn clients_of_all_cores_are_listed_and_killed() {
    let cluster = Cluster::start(&Options { cores: 2, ..Options::single() });
    let ports = cluster.nodes[0].ports;
    let mut clients: Vec<Client> = [ports.core, ports.core, ports.core + 1, ports.core + 1]
        .iter()
        .map(|&port| Client::connect(port).expect("the node serves"))
        .collect();
    clients.push(cluster.nodes[0].client());
    let mut ids = Vec::new();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.run(&format!("CLIENT SETNAME c{n}")), Reply::OK);
        assert_eq!(client.run("CLIENT SETINFO LIB-NAME mine"), Reply::OK);
        let Reply::Integer(id) = client.run("CLIENT ID") else { panic!("a number") };
        ids.push(id);
    }
    assert!(matches!(clients[3].run("HELLO 3"), Reply::Map(_)));
    for asker in 0..clients.len() {
        let list = text(&clients[asker].run("CLIENT LIST"));
        for (n, id) in ids.iter().enumerate() {
            let line = list.lines().find(|line| line.starts_with(&format!("id={id} ")));
            let fields = client_fields(line.unwrap_or_else(|| panic!("{n} in {list}")));
            for (field, want) in [("name", format!("c{n}").as_str()), ("lib-name", "mine")] {
                assert_eq!(fields[field], want, "{n} in {list}");
            }
            assert_eq!((fields["fd"], fields["db"], fields["user"]), ("0", "0", "default"));
            assert!(fields["addr"].starts_with("127.0.0.1:"), "{list}");
            let port = [ports.core, ports.core, ports.core + 1, ports.core + 1, ports.plain][n];
            assert_eq!(fields["laddr"], format!("127.0.0.1:{port}"), "{list}");
            assert!(fields["age"].parse::<u64>().is_ok() && fields["idle"].parse::<u64>().is_ok());
            assert_eq!(fields["resp"], if n == 3 { "3" } else { "2" });
            assert!(["flags", "lib-ver", "tot-cmds"].iter().all(|name| fields.contains_key(name)));
        }
        let own = list.lines().find(|line| line.starts_with(&format!("id={} ", ids[asker])));
        assert_eq!(client_fields(own.expect("listed"))["cmd"], "client");
    }
    clients[1].run("GET nothing");
    let one = text(&clients[4].run(&format!("CLIENT LIST ID {}", ids[1])));
    assert_eq!((one.lines().count(), client_fields(one.trim_end())["cmd"]), (1, "get"));

    // By number from another core, by address, and not oneself.
    assert_eq!(clients[4].run(&format!("CLIENT KILL ID {}", ids[0])), Reply::Integer(1));
    assert!(clients[0].call(&["PING"]).is_err(), "killed");
    let addr = client_fields(one.trim_end())["addr"].to_owned();
    assert_eq!(clients[3].run(&format!("CLIENT KILL {addr}")), Reply::OK);
    assert!(clients[1].call(&["PING"]).is_err(), "killed");
    assert_eq!(clients[3].run(&format!("CLIENT KILL {addr}")), Reply::error("ERR No such client"));
    assert_eq!(clients[3].run(&format!("CLIENT KILL ID {}", ids[3])), Reply::Integer(0));
    // A pipeline goes on after the reply; oneself only on demand, after the reply.
    clients[2].send_raw(b"CLIENT LIST\r\nPING\r\nCLIENT LIST\r\nPING\r\n").expect("sent");
    for want in ["c2", "PONG", "c2", "PONG"] {
        assert!(text(&clients[2].reply().expect("an answer")).contains(want), "{want}");
    }
    let last = format!("CLIENT KILL ID {} SKIPME no", ids[2]);
    assert_eq!(clients[2].run(&last), Reply::Integer(1));
    assert!(clients[2].call(&["PING"]).is_err(), "killed itself");
    assert_eq!(clients[4].run("PING"), Reply::Status("PONG"));
}
