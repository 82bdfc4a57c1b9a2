//! Disks that fill up: what is refused where, and what goes on.

use coracle_raft::GroupId;

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{DiskSpace, Reply};

const GROUP: GroupId = GroupId::new(0);

/// One group on three nodes, led by the first.
fn cluster() -> Cluster {
    let options = ClusterOptions { groups: 1, shards: 1, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    until(&mut cluster, "the preferred leader leads", |cluster| leader(cluster) == 1);
    assert_eq!(cluster.call(addr(1, 0), "SET a 1"), Reply::OK);
    cluster
}

fn leader(cluster: &Cluster) -> u32 {
    let leads = |node: &u32| {
        let status = cluster.core(addr(*node, 0)).group_status(GROUP).expect("hosted");
        status.role == coracle_raft::Role::Leader
    };
    (1..=3).find(leads).unwrap_or(0)
}

fn until(cluster: &mut Cluster, what: &str, done: impl FnMut(&Cluster) -> bool) {
    assert!(cluster.run_until(10_000, done), "{what}");
}

fn set(cluster: &mut Cluster, node: u32, space: DiskSpace) {
    cluster.set_disk_space(node, space);
    cluster.run(20);
}

fn is_refused(cluster: &mut Cluster, command: &str) -> bool {
    let reply = show(&cluster.call(addr(1, 0), command));
    assert!(!reply.starts_with('-') || reply.starts_with("-OOM "), "{command}: {reply}");
    reply.starts_with('-')
}

const GROWING: [&str; 6] =
    ["SET b 1", "APPEND a x", "INCR n", "MSET b 1", "SETRANGE a 1 x", "SETNX b 1"];
const SHRINKING: [&str; 4] = ["DEL b", "UNLINK b", "EXPIRE a 1000", "PERSIST a"];
const READING: [&str; 2] = ["GET a", "EXISTS a"];

/// What is refused when all three disks are at a level, and that it is taken again afterwards.
#[test]
fn what_a_level_refuses_is_refused_and_nothing_else() {
    let mut cluster = cluster();
    for (space, growing, shrinking) in [
        (DiskSpace::Low, true, false),
        (DiskSpace::Scarce, true, true),
        (DiskSpace::Out, true, true),
        (DiskSpace::Low, true, false),
        (DiskSpace::Ample, false, false),
    ] {
        for node in 1..=3 {
            set(&mut cluster, node, space);
        }
        for command in READING {
            assert!(!is_refused(&mut cluster, command), "{space:?}: {command}");
        }
        for command in SHRINKING {
            assert_eq!(is_refused(&mut cluster, command), shrinking, "{space:?}: {command}");
        }
        for command in GROWING {
            assert_eq!(is_refused(&mut cluster, command), growing, "{space:?}: {command}");
        }
        assert_eq!(leader(&cluster), 1, "{space:?}: nobody else could do better");
    }
    assert!(cluster.core(addr(1, 0)).stats().refused_disk >= 20);
}

/// A leader goes on when one follower has no space, whatever level it is at, and refuses when
/// no majority has space, although its own disk has.
#[test]
fn a_leader_needs_a_majority_with_space() {
    let mut cluster = cluster();
    set(&mut cluster, 2, DiskSpace::Out);
    assert!(!is_refused(&mut cluster, "SET b 1"));
    let behind = cluster.core(addr(2, 0)).group_status(GROUP).expect("hosted");
    let ahead = cluster.core(addr(3, 0)).group_status(GROUP).expect("hosted");
    assert!(behind.last < ahead.last, "it takes no entries: {behind:?}");
    set(&mut cluster, 3, DiskSpace::Low);
    assert!(is_refused(&mut cluster, "SET c 1"));
    assert!(!is_refused(&mut cluster, "DEL b"));
    set(&mut cluster, 3, DiskSpace::Out);
    assert!(is_refused(&mut cluster, "DEL b"));
    assert!(!is_refused(&mut cluster, "GET a"));
    set(&mut cluster, 2, DiskSpace::Ample);
    assert!(!is_refused(&mut cluster, "SET c 1"));
    cluster.run(2000);
    let status = |node| cluster.core(addr(node, 0)).group_status(GROUP).expect("hosted");
    assert_eq!(status(2).applied, status(1).applied, "it has caught up");
    assert!(status(3).applied < status(1).applied);
    assert!(cluster.core(addr(3, 0)).stats().dropped_disk > 0);
}

/// A leader without space hands over to a follower with space, and gets its leadership back only
/// when it has space again.
#[test]
fn a_leader_without_space_hands_over() {
    let mut cluster = cluster();
    set(&mut cluster, 1, DiskSpace::Low);
    until(&mut cluster, "another node leads", |cluster| leader(cluster) > 1);
    assert!(!is_refused(&mut cluster, "SET b 1"), "through the full node");
    cluster.run(8000);
    assert_ne!(leader(&cluster), 1, "the preferred leader must wait");
    set(&mut cluster, 1, DiskSpace::Ample);
    until(&mut cluster, "the preferred leader leads", |cluster| leader(cluster) == 1);
    assert!(!is_refused(&mut cluster, "SET b 2"));
}

/// Votes need little space: also nodes that take nothing else elect a leader, which serves reads.
#[test]
fn elections_go_on_without_space() {
    let mut cluster = cluster();
    for node in 1..=3 {
        set(&mut cluster, node, DiskSpace::Out);
    }
    cluster.kill(1);
    until(&mut cluster, "another node leads", |cluster| {
        [2, 3].into_iter().any(|node| {
            let status = cluster.core(addr(node, 0)).group_status(GROUP).expect("hosted");
            status.role == coracle_raft::Role::Leader
        })
    });
    let status = |cluster: &Cluster, node| cluster.core(addr(node, 0)).group_status(GROUP);
    let terms = [2, 3].map(|node| status(&cluster, node).map(|status| status.term));
    assert_eq!(terms[0], terms[1]);
    assert_eq!(show(&cluster.call(addr(2, 0), "GET a")), "$1");
    for node in 2..=3 {
        set(&mut cluster, node, DiskSpace::Low);
    }
    assert_eq!(show(&cluster.call(addr(3, 0), "DEL a")), ":1");
}

/// What a node said of its disk is forgotten with the node.
#[test]
fn old_reports_do_not_hold() {
    let mut cluster = cluster();
    set(&mut cluster, 2, DiskSpace::Low);
    set(&mut cluster, 3, DiskSpace::Low);
    assert!(is_refused(&mut cluster, "SET b 1"));
    cluster.kill(3);
    cluster.start(3);
    cluster.run(1000);
    assert!(!is_refused(&mut cluster, "SET b 1"), "the new process has said nothing");
}
