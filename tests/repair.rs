//! Values and entries that rot on the disks of real nodes are fetched from the other nodes.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::client::Client;
use common::stored::{check_with, files, flip, in_flight, info, value, write};
use common::{CORACLE, Cluster, Node, Options, wait_until};
use coracle_engine::Reply;

const KEYS: usize = 300;
const VALUE: usize = 8 << 10;

/// Where the values of keys like `cold:7` stand in the oldest segment of a node: each behind its
/// length. `None` if one stands there twice.
fn places(node: &Node) -> Option<BTreeMap<String, u64>> {
    let bytes = fs::read(&files(node, ".seg")[0]).expect("a segment");
    let len = u32::try_from(VALUE).expect("small").to_le_bytes();
    let starts = (4..bytes.len() - VALUE).filter(|&at| bytes[at - 4..at] == len);
    let starts = starts.filter(|&at| bytes[at..].starts_with(b"cold:"));
    let key = |at: usize| {
        let end = bytes[at..].iter().position(|&byte| byte == b'/').expect("key/version");
        String::from_utf8(bytes[at..at + end].to_vec()).expect("text")
    };
    let mut places = BTreeMap::new();
    for start in starts {
        if places.insert(key(start), start as u64).is_some() {
            return None;
        }
    }
    Some(places)
}

/// Damages the values of some keys in a node's oldest segment.
fn damage<'a>(node: &Node, keys: impl Iterator<Item = &'a String>) -> u64 {
    let (file, places) = (&files(node, ".seg")[0], places(node).expect("each value once"));
    let mut count = 0;
    for key in keys {
        flip(file, places[key] + 100);
        count += 1;
    }
    count
}

/// A connection on which a node answers reads by itself.
fn reader(node: &Node) -> Client {
    let mut client = node.client();
    assert_eq!(client.run("READONLY"), Reply::OK);
    client
}

/// Writes other keys until no recovery reads the oldest segments.
fn bury(cluster: &Cluster, version: &mut u32) {
    let keys = Cluster::keys("filler", 64);
    let mut client = cluster.nodes[0].client();
    let newest = |node: &Node| files(node, ".ckp").pop();
    let before: Vec<_> = cluster.nodes.iter().map(newest).collect();
    let segments: Vec<_> = cluster.nodes.iter().map(|node| files(node, ".seg").len()).collect();
    wait_until("old segments hold values only", || {
        *version += 1;
        write(&mut client, &keys, *version, 64 << 10);
        cluster.nodes.iter().zip(&before).zip(&segments).all(|((node, before), &segments)| {
            newest(node) > *before && files(node, ".seg").len() >= segments + 4
        })
    });
}

/// A cluster whose nodes have all of the values once and in their oldest segments. `None` if they
/// were written twice or have been moved, as when leaders change meanwhile.
fn prepared(keys: &[String]) -> Option<Cluster> {
    let flags = "--value-cache 0 --checkpoint-bytes 1MiB";
    let flags = flags.split_whitespace().map(str::to_owned).collect();
    let cluster = Cluster::start(&Options { flags, ..Options::default() });
    write(&mut cluster.nodes[0].client(), keys, 1, VALUE);
    let mut version = 0;
    bury(&cluster, &mut version);
    bury(&cluster, &mut version);
    let has_all = |node| places(node).is_some_and(|places| places.len() == keys.len());
    cluster.nodes.iter().all(has_all).then_some(cluster)
}

/// Damage on all nodes, in different values and in part in the same ones on two of three: while
/// they run and while they are down. Nothing is lost, and every node has all of it again.
#[test]
fn values_that_rot_on_all_nodes_are_repaired() {
    let keys = Cluster::keys("cold", KEYS);
    let mut cluster = (0..5).find_map(|_| prepared(&keys)).expect("one of five");

    // Of the first half each value rots on one running node, some on two.
    let (first, second) = keys.split_at(KEYS / 2);
    let mut damaged = 0;
    for node in 0..3 {
        let here = first.iter().enumerate().filter(|&(n, _)| n % 3 == node || n % 7 == node);
        damaged += damage(&cluster.nodes[node], here.map(|(_, key)| key));
    }
    // Of these some are changed before anybody reads them.
    let changed: Vec<String> = first.iter().step_by(10).cloned().collect();
    let at = VALUE.to_string();
    let append = |client: &mut Client, key: &String| {
        client.send(&["SETRANGE", key, &at, "more"]).expect("send");
    };
    in_flight(&mut cluster.nodes[1].client(), &changed, &append, &|key, reply| {
        assert_eq!(reply, Reply::Integer(VALUE as i64 + 4), "{key}");
    });
    let want = |key: &str| {
        let mut value = value(key, 1, VALUE);
        if changed.iter().any(|changed| changed == key) {
            value.extend_from_slice(b"more");
        }
        value
    };
    for node in &cluster.nodes {
        check_with(&mut reader(node), &keys, &want);
    }
    let count = |cluster: &Cluster, name: &str| -> u64 {
        cluster.nodes.iter().map(|node| info(&mut node.client(), name)).sum()
    };
    wait_until("all is repaired", || {
        count(&cluster, "coracle_values_repaired") >= damaged
            && count(&cluster, "coracle_repairs_open") == 0
            && count(&cluster, "coracle_values_lent") >= damaged
    });
    for node in &cluster.nodes {
        let log = node.log();
        let found = log.lines().find(|line| line.contains("a value is damaged"));
        let found = found.unwrap_or_else(|| panic!("nothing in {log}"));
        assert!(
            ["group=", "segment=", "offset="].iter().all(|part| found.contains(part)),
            "{found}"
        );
        assert!(log.contains("a damaged value is repaired"), "node {}", node.id);
    }
    // What was repaired is read from its new place.
    let failed = count(&cluster, "coracle_failed_reads");
    for node in &cluster.nodes {
        check_with(&mut reader(node), &keys, &want);
    }
    assert_eq!(count(&cluster, "coracle_failed_reads"), failed);

    // The second half rots on nodes that are down.
    cluster.nodes.iter_mut().for_each(Node::kill);
    for node in 0..3 {
        let here = second.iter().enumerate().filter(|&(n, _)| n % 3 == node || n % 7 == node);
        damage(&cluster.nodes[node], here.map(|(_, key)| key));
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        assert_eq!(info(&mut node.client(), "coracle_groups_hosted"), 4, "node {}", node.id);
        check_with(&mut reader(node), &keys, &want);
    }
    assert!(count(&cluster, "coracle_values_repaired") > 100);
}

/// Where the entries that write these keys stand in the log of a node that is down.
fn entries(node: &Node) -> BTreeMap<String, (PathBuf, u64)> {
    let dir = node.data_dir.to_str().expect("UTF-8");
    let dump = Command::new(CORACLE).args(["ctl", "wal", "dump", dir, "--json"]).output();
    let dump = String::from_utf8(dump.expect("it runs").stdout).expect("UTF-8");
    let entry = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let (segment, offset) = (line["segment"].as_u64()?, line["offset"].as_u64()?);
        let file = node.data_dir.join(format!("core-0/{segment:010}.seg"));
        Some((line["keys"][0].as_str()?.to_owned(), (file, offset)))
    };
    dump.lines().filter_map(entry).collect()
}

/// Contents and headers of entries rot in the log proper of all nodes while they are down, and on
/// one of them 24 KiB in a row. All take part at once, and each has everything again.
#[test]
fn entries_that_rot_on_all_nodes_are_fetched() {
    const LEN: usize = 1500;
    const HEADER: u64 = 48;
    let keys = Cluster::keys("entry", 240);
    let mut cluster = Cluster::start(&Options::default());
    // Small batches: one at a time.
    let mut client = cluster.nodes[0].client();
    keys.iter().for_each(|key| write(&mut client, std::slice::from_ref(key), 1, LEN));
    // The logs say that all of it is durable, once they are idle.
    thread::sleep(Duration::from_millis(500));
    cluster.nodes.iter_mut().for_each(Node::kill);
    for (place, node) in cluster.nodes.iter().enumerate() {
        let entries = entries(node);
        for (n, key) in keys.iter().enumerate().filter(|(n, _)| n % 3 == place) {
            let (file, offset) = &entries[key];
            flip(file, offset + if n % 2 == 0 { HEADER + 700 } else { 20 });
        }
        if place == 1 {
            let (file, offset) = &entries[&keys[120]];
            let file = OpenOptions::new().write(true).open(file).expect("open");
            file.write_all_at(&[0; 24 << 10], offset & !4095).expect("write");
        }
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        assert_eq!(info(&mut node.client(), "coracle_groups_hosted"), 4, "node {}", node.id);
        check_with(&mut reader(node), &keys, &|key| value(key, 1, LEN));
        let log = node.log();
        for wanted in ["contents of entries are lost: ", "came from another replica"] {
            assert!(log.contains(wanted), "{wanted} in {log}");
        }
    }
    // Who asks whom depends on who is there first.
    let count =
        |name| -> u64 { cluster.nodes.iter().map(|node| info(&mut node.client(), name)).sum() };
    wait_until("all is fetched", || {
        count("coracle_fetches_open") == 0
            && count("coracle_entries_fetched").min(count("coracle_entries_lent")) >= 150
    });
    // They go on, and find the same damage at the next start.
    write(&mut cluster.nodes[2].client(), &keys, 2, LEN);
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        check_with(&mut reader(node), &keys, &|key| value(key, 2, LEN));
    }
}
