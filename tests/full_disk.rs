//! Disks that fill up under real processes (fault matrix, rows 11 and 12): writes are refused early
//! and clearly, everything else goes on, and service resumes by itself.

mod common;

use common::client::{Client, text};
use common::mount::Tmpfs;
use common::{Cluster, Node, Options, alone, wait_until};
use coracle_engine::Reply;

/// A log that is not emptied before the disk is full, where it can be bypassed or not.
const FLAGS: &str = "--wal-max-size 1GiB --wal-direct-io false";
const VALUE_BYTES: usize = 256 << 10;
/// Sixteen segments.
const DISK_BYTES: u64 = 256 << 20;

fn options(nodes: u32, more: &str) -> Options {
    let flags = format!("{FLAGS} {more}").split_whitespace().map(str::to_owned).collect();
    Options { nodes, flags, ..Options::default() }
}

fn value(key: &str) -> Vec<u8> {
    key.bytes().cycle().take(VALUE_BYTES).collect()
}

/// A line of `INFO`.
fn info(client: &mut Client, name: &str) -> String {
    let info = text(&client.run("INFO"));
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {info}")).to_owned()
}

/// Whether the reply says that the disk is full; every other error is wrong.
fn is_full(reply: &Reply) -> bool {
    match reply {
        Reply::Error(error) if error.starts_with("OOM ") => true,
        Reply::Error(error) => panic!("{error}"),
        _ => false,
    }
}

fn set(client: &mut Client, key: &str) -> Reply {
    client.call(&[&b"SET"[..], key.as_bytes(), &value(key)]).expect("an answer")
}

/// Writes keys `from`, `from + 1` and so on until one is refused; the number of that one.
fn fill(client: &mut Client, from: u32) -> u32 {
    for number in from..from + 4096 {
        if is_full(&set(client, &format!("k{number}"))) {
            return number;
        }
    }
    panic!("the disk never fills up");
}

fn check(client: &mut Client, keys: impl Iterator<Item = u32>) {
    for number in keys {
        let key = format!("k{number}");
        let reply = client.call(&["GET", &key]).expect("an answer");
        let Reply::Bulk(bytes) = reply else { panic!("{key}: {reply:?}") };
        assert!(bytes == value(&key), "{key} has another value");
    }
}

fn wait_until_written(node: &Node, key: &str) {
    let mut client = node.client();
    wait_until("writes are taken again", || !is_full(&set(&mut client, key)));
}

/// A node that fills its disk by itself refuses writes while it can still read, delete, and move
/// what it keeps; after deletes it takes writes again, over and over. Nothing is lost by a restart.
fn fills_up_and_goes_on(cluster: &mut Cluster, budget: u64) {
    let mut client = cluster.nodes[0].client();
    let mut next = 0;
    for round in 0..3 {
        let first = next;
        next = fill(&mut client, first);
        assert!(next - first > 100, "round {round}: {} values", next - first);
        assert_eq!(info(&mut client, "coracle_disk_space"), "low", "round {round}");
        let used: u64 = info(&mut client, "coracle_disk_used_bytes").parse().expect("a number");
        assert!(used <= budget, "round {round}: {used}");
        check(&mut client, first..next);
        assert_eq!(client.run("EXPIRE k0 100000"), Reply::Integer(i64::from(round == 0)));
        for number in first..next - 10 {
            let reply = client.run(&format!("DEL k{number}"));
            assert_eq!(reply, Reply::Integer(1), "round {round}: k{number}");
        }
        wait_until_written(&cluster.nodes[0], &format!("after{round}"));
        check(&mut client, next - 10..next);
    }
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    check(&mut client, next - 10..next);
    assert_eq!(client.run(&format!("EXISTS k{}", next - 11)), Reply::Integer(0));
    let log = cluster.nodes[0].log();
    let count = |text: &str| log.matches(text).count();
    assert!(count("the disk is nearly full") >= 3, "{log}");
    assert!(count("the disk has space again") >= 3, "{log}");
    assert!(count("the disk is") < 30, "one line for each change: {log}");
}

#[test]
fn a_node_with_a_small_disk_goes_on_after_deletes() {
    let _alone = alone();
    let mut cluster = Cluster::prepare(&options(1, ""));
    let at = &cluster.nodes[0].data_dir;
    let test = "a_node_with_a_small_disk_goes_on_after_deletes";
    let Some(_disk) = Tmpfs::mount(test, at, DISK_BYTES) else { return };
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    fills_up_and_goes_on(&mut cluster, DISK_BYTES);
}

/// The same with a budget instead of a small disk.
#[test]
fn a_node_with_a_disk_budget_goes_on_after_deletes() {
    let _alone = alone();
    let mut cluster = Cluster::start(&options(1, "--maxdisk 256MiB"));
    fills_up_and_goes_on(&mut cluster, DISK_BYTES);
}

/// Somebody else takes all of the disk: writes are refused before the log is full, reads, deletes
/// and restarts go on, and writes too as soon as there is space.
#[test]
fn a_disk_filled_by_others_stops_writes_until_there_is_space() {
    let _alone = alone();
    let mut cluster = Cluster::prepare(&options(1, ""));
    let test = "a_disk_filled_by_others_stops_writes_until_there_is_space";
    let at = cluster.nodes[0].data_dir.clone();
    let Some(disk) = Tmpfs::mount(test, &at, DISK_BYTES) else { return };
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    for number in 0..20 {
        assert_eq!(set(&mut client, &format!("k{number}")), Reply::OK);
    }
    disk.fill();
    let refused = fill(&mut client, 20);
    wait_until("it is known that nothing is free", || {
        info(&mut client, "coracle_disk_free_bytes") == "0"
    });
    check(&mut client, 0..refused);
    wait_until("it is known that all is taken", || {
        info(&mut client, "coracle_disk_space") != "low" || client.run("DEL k0") == Reply::OK
    });
    check(&mut client, 1..refused);
    disk.unfill();
    wait_until_written(&cluster.nodes[0], "after");
    check(&mut client, 1..refused);
    assert_eq!(info(&mut client, "coracle_disk_space"), "ok");
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    check(&mut client, 1..refused);
}

/// One of three nodes has no space: the other two go on, it leads
/// nothing, and when it has space it catches up with everything.
#[test]
fn a_full_follower_is_left_behind_and_catches_up() {
    let _alone = alone();
    let mut cluster = Cluster::prepare(&options(3, ""));
    let test = "a_full_follower_is_left_behind_and_catches_up";
    let at = cluster.nodes[2].data_dir.clone();
    let Some(disk) = Tmpfs::mount(test, &at, DISK_BYTES) else { return };
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_until_ready();
    disk.fill();
    let mut full = cluster.nodes[2].client();
    wait_until("its disk is full", || info(&mut full, "coracle_disk_space") != "ok");
    wait_until("it leads nothing", || info(&mut full, "coracle_groups_led") == "0");
    let mut client = cluster.nodes[0].client();
    const COUNT: u32 = 400;
    for number in 0..COUNT {
        assert_eq!(set(&mut client, &format!("k{number}")), Reply::OK, "k{number}");
    }
    assert_eq!(info(&mut full, "coracle_disk_space"), "out");
    check(&mut full, 0..10);
    for number in 100..COUNT {
        assert_eq!(client.run(&format!("DEL k{number}")), Reply::Integer(1), "k{number}");
    }
    // It cannot write down whom it meets, and does not die of that.
    let waits = (0..10).any(|_| {
        // What was given up meanwhile has left a little space.
        disk.fill();
        cluster.nodes[1].kill();
        cluster.nodes[1].start();
        wait_until("it serves", || {
            let client = Client::connect(cluster.nodes[1].ports.plain).ok();
            let reply = client.map(|mut client| client.call(&["GET", "k0"]));
            matches!(reply, Some(Ok(Reply::Bulk(_))))
        });
        cluster.nodes[2].log().contains("a peer has to wait")
    });
    assert!(waits, "it could write all the time");
    assert!(cluster.nodes[2].is_running());
    check(&mut cluster.nodes[0].client(), 0..10);

    disk.unfill();
    wait_until("it has caught up", || {
        let mut full = cluster.nodes[2].core_client();
        full.run("READONLY") == Reply::OK
            && matches!(full.call(&["GET", "k0"]), Ok(Reply::Bulk(_)))
            && info(&mut full, "coracle_disk_space") == "ok"
    });
    cluster.nodes[0].kill();
    cluster.wait_until_ready();
    check(&mut cluster.nodes[2].client(), 0..100);
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    // However they came there: by entries, a snapshot or a restart.
    wait_until("all are equally far", || {
        let offset = |node: &Node| info(&mut node.client(), "master_repl_offset");
        let offsets: Vec<_> = cluster.nodes.iter().map(offset).collect();
        offsets[0] != "0" && offsets.iter().all(|offset| *offset == offsets[0])
    });
    assert_eq!(cluster.nodes[2].client().run("GET k300"), Reply::Null);
}

/// All three nodes fill up together: refusals everywhere, deletes go on, and then writes.
#[test]
fn a_full_cluster_refuses_and_resumes() {
    let _alone = alone();
    let cluster = Cluster::start(&options(3, "--maxdisk 256MiB"));
    let mut client = cluster.nodes[1].client();
    let next = fill(&mut client, 0);
    assert!(next > 100, "{next} values");
    for node in &cluster.nodes {
        check(&mut node.client(), 0..next);
    }
    assert_eq!(client.run("SET small 1"), set(&mut client, "large"), "refused, however small");
    for number in 10..next {
        assert_eq!(client.run(&format!("DEL k{number}")), Reply::Integer(1), "k{number}");
    }
    wait_until_written(&cluster.nodes[1], "after");
    for node in &cluster.nodes {
        check(&mut node.client(), 0..10);
    }
    assert_eq!(client.run("GET k10"), Reply::Null);
    let sum: u64 = cluster
        .nodes
        .iter()
        .map(|node| {
            info(&mut node.client(), "coracle_refused_disk").parse::<u64>().expect("a number")
        })
        .sum();
    assert!(sum >= 3, "{sum} refusals");
}
