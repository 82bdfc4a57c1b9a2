//! Commands on the whole keyspace against real nodes, on both kinds of port.

mod common;

use std::collections::BTreeSet;

use common::client::{Client, text};
use common::{Cluster, Options};
use coracle_engine::Reply;

/// A whole scan of one port.
fn scan(client: &mut Client, options: &str) -> Vec<String> {
    let (mut cursor, mut seen) = ("0".to_owned(), Vec::new());
    loop {
        let reply = client.run(&format!("SCAN {cursor} {options}"));
        let Reply::Array(fields) = &reply else { panic!("{reply:?}") };
        let [next, Reply::Array(keys)] = &fields[..] else { panic!("{reply:?}") };
        seen.extend(keys.iter().map(text));
        cursor = text(next);
        if cursor == "0" {
            return seen;
        }
    }
}

fn all(keys: &[String]) -> BTreeSet<String> {
    keys.iter().cloned().collect()
}

/// Every plain port shows all keys, the endpoints together do, and a flush through any of them
/// leaves none, on any node, also after a restart of all of them.
#[test]
fn scans_and_flushes_reach_every_node() {
    let mut cluster = Cluster::start(&Options { cores: 2, ..Options::default() });
    let keys = Cluster::keys("scan", 400);
    let mut client = cluster.nodes[1].client();
    for key in &keys {
        assert_eq!(client.run(&format!("SET {key} v")), Reply::OK);
    }
    assert_eq!(client.run("SET short v PX 1"), Reply::OK);
    let mut endpoints = Vec::new();
    for node in &cluster.nodes {
        let mut plain = node.client();
        // Every node has a clock of its own.
        while plain.run("GET short") != Reply::Null {}
        for options in ["", "COUNT 100", "COUNT 7 TYPE string"] {
            let seen = scan(&mut plain, options);
            assert_eq!((seen.len(), all(&seen)), (400, all(&keys)), "node {}", node.id);
        }
        assert_eq!(scan(&mut plain, "MATCH *:7?").len(), 10);
        let Reply::Array(listed) = plain.run("KEYS scan:*") else { panic!("a list") };
        assert_eq!(listed.len(), 400);
        assert!(keys.contains(&text(&plain.run("RANDOMKEY"))));
        for port in [node.ports.core, node.ports.core + 1] {
            let mut core = Client::connect(port).expect("it listens");
            endpoints.extend(scan(&mut core, "COUNT 50"));
        }
    }
    assert_eq!(all(&endpoints), all(&keys), "the endpoints together");
    assert_eq!(cluster.nodes[2].core_client().run("FLUSHALL"), Reply::OK);
    for node in &cluster.nodes {
        let mut plain = node.client();
        assert_eq!(plain.run("DBSIZE"), Reply::Integer(0), "node {}", node.id);
        assert_eq!(scan(&mut plain, ""), Vec::<String>::new());
    }
    assert_eq!(client.run("SET after v"), Reply::OK);
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    assert_eq!(scan(&mut client, ""), ["after"]);
    assert_eq!(client.run("DBSIZE"), Reply::Integer(1));
}

/// What stands before a flush in a pipeline is gone, what stands behind it stays.
#[test]
fn a_flush_keeps_its_place_in_a_pipeline() {
    let cluster = Cluster::start(&Options { cores: 2, ..Options::default() });
    let mut client = cluster.nodes[0].client();
    for round in 0..20 {
        for n in 0..10 {
            client.send(&["SET", &format!("old{n}"), "v"]).expect("sent");
        }
        client.send(&["FLUSHALL"]).expect("sent");
        for n in 0..10 {
            client.send(&["SET", &format!("new{n}"), "v"]).expect("sent");
        }
        client.send(&["DBSIZE"]).expect("sent");
        for _ in 0..21 {
            assert_eq!(client.reply().expect("an answer"), Reply::OK, "round {round}");
        }
        assert_eq!(client.reply().expect("an answer"), Reply::Integer(10), "round {round}");
    }
}

/// A memory limit that is reached leaves a way out: everything can be removed, and then there is
/// room again.
#[test]
fn a_full_node_can_be_flushed() {
    let flags = vec!["--maxmemory".to_owned(), "64MiB".to_owned()];
    let cluster = Cluster::start(&Options { flags, ..Options::single() });
    let mut client = cluster.nodes[0].client();
    let pairs: Vec<String> = (0..5000).map(|n| format!("{{m}}{n:060} {n:060}")).collect();
    let mut full = false;
    for part in 0..200 {
        let line = pairs.join(" ").replace("{m}", &format!("{{m{part}}}"));
        match client.run(&format!("MSET {line}")) {
            Reply::OK => {}
            Reply::Error(text) if text.starts_with("OOM") => {
                full = true;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(full, "the limit is never reached");
    assert_eq!(client.run("FLUSHALL"), Reply::OK);
    assert_eq!(client.run("DBSIZE"), Reply::Integer(0));
    // The memory is given back in parts.
    common::wait_until("there is room", || client.run("SET k v") == Reply::OK);
}
