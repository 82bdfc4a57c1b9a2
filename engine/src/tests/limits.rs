//! What is bounded is refused beyond its bound, with a retryable answer, and recovers.

use coracle_raft::{GroupId, Role};

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, CoreConfig, Reply};

fn single(configure: fn(&mut CoreConfig)) -> Cluster {
    let options =
        ClusterOptions { nodes: 1, shards: 1, groups: 1, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, configure);
    cluster.wait_for_leaders();
    cluster
}

/// Reaching the memory budget refuses what adds data; deleting still works and makes room.
#[test]
fn a_full_memory_budget_refuses_what_adds_data() {
    let mut cluster = single(|config| config.memory_budget_bytes = 64 << 10);
    let at = addr(1, 0);
    // Longer ones stay in the log.
    let value = "x".repeat(60);
    let mut stored = 0;
    while cluster.call(at, &format!("SET k{stored} {value}")) == Reply::OK {
        stored += 1;
        assert!(stored < 500, "the budget is never reached");
    }
    assert!(stored > 300, "refused after {stored} values");
    for command in ["SET a b", "APPEND k0 x", "INCR n", "MSET a b", "SETRANGE k0 1 x", "SETNX a b"]
    {
        let got = show(&cluster.call(at, command));
        assert_eq!(got, "-OOM command not allowed when used memory > 'maxmemory'.", "{command}");
    }
    for command in ["GET k0", "EXPIRE k0 100", "PERSIST k0", "STRLEN k0"] {
        let got = show(&cluster.call(at, command));
        assert!(!got.starts_with('-'), "{command}: {got}");
    }
    for i in 0..stored {
        assert_eq!(show(&cluster.call(at, &format!("DEL k{i}"))), ":1");
    }
    assert_eq!(cluster.core(at).stats().memory_bytes, 0);
    assert_eq!(cluster.call(at, "SET a b"), Reply::OK);
}

/// Writes in flight are bounded in bytes; the refused ones were certainly not executed.
#[test]
fn writes_in_flight_are_bounded() {
    let mut cluster = single(|config| config.inflight_bytes_max = 10 << 20);
    let at = addr(1, 0);
    cluster.freeze_disk(1, true);
    let value = vec![b'v'; 1 << 20];
    let tokens: Vec<_> = (0..20)
        .map(|i| cluster.submit(at, &[b"SET", format!("k{i}").as_bytes(), &value]))
        .collect();
    let refused = |cluster: &Cluster, token| {
        cluster
            .answer(token)
            .is_some_and(|reply| show(reply).starts_with("-TRYAGAIN server is overloaded"))
    };
    let count = tokens.iter().filter(|&&token| refused(&cluster, token)).count();
    assert_eq!(count, 11, "nine of a little more than 1 MiB fit in 10 MiB");
    cluster.freeze_disk(1, false);
    cluster.run(100);
    for (i, token) in tokens.into_iter().enumerate() {
        let done = cluster.wait(token) == Reply::OK;
        let exists = cluster.call(at, &format!("EXISTS k{i}"));
        assert_eq!(exists, Reply::Integer(i64::from(done)), "k{i}");
    }
    assert_eq!(cluster.core(at).stats().uncommitted_bytes, 0);
}

/// Without a leader commands wait, in bounded number, and are then refused as not executed.
#[test]
fn parked_commands_are_bounded_in_number_and_time() {
    let configure: fn(&mut CoreConfig) = |config| {
        config.parked_max = 10;
        config.forward_timeout_ticks = 30;
    };
    let mut cluster = Cluster::with_config(ClusterOptions::default(), configure);
    cluster.wait_for_leaders();
    cluster.kill(2);
    cluster.kill(3);
    cluster.run(2000);
    let at = addr(1, 0);
    let tokens: Vec<_> = (0..15).map(|_| cluster.submit(at, &[b"INCR", b"n"])).collect();
    let answered = tokens.iter().filter(|&&token| cluster.answer(token).is_some()).count();
    assert_eq!(answered, 5, "ten of fifteen may wait");
    for token in tokens {
        assert_eq!(show(&cluster.wait(token)), "-CLUSTERDOWN Hash slot not served");
    }
    assert_eq!(cluster.core(at).stats().parked, 0);
    cluster.start(2);
    cluster.start(3);
    assert_eq!(cluster.call(at, "GET n"), Reply::Null, "none of them was executed");
}

fn leads(cluster: &Cluster, at: CoreAddr) -> bool {
    let status = cluster.core(at).group_status(GroupId::new(0));
    status.is_some_and(|status| status.role == Role::Leader)
}

/// A cluster with a new leader whose quorum hears it, but cannot write: it confirms no read, for as
/// long as that lasts. Commands may take 60 ticks, of ten steps each.
fn leader_that_confirms_nothing() -> (Cluster, CoreAddr) {
    let options = ClusterOptions { groups: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.forward_timeout_ticks = 60);
    cluster.wait_for_leaders();
    // To another one and back: the preferred leader keeps the leadership.
    let next = cluster.leader(0).expect("a leader");
    let other = addr(next.node.get() % 3 + 1, 0);
    assert!(cluster.core_mut(next).transfer_leadership(GroupId::new(0), other.node));
    assert!(cluster.run_until(200, |cluster| leads(cluster, other)), "the leadership moves");
    assert!(cluster.run_until(4000, |cluster| leads(cluster, next)), "and comes back");
    let followers = (1..=3).filter(|&node| node != next.node.get());
    followers.for_each(|node| cluster.freeze_disk(node, true));
    (cluster, next)
}

#[test]
fn reads_that_nobody_can_confirm_are_refused_in_time() {
    let (mut cluster, leader) = leader_that_confirms_nothing();
    let token = cluster.submit(leader, &[b"GET", b"k"]);
    cluster.run(400);
    assert_eq!(cluster.answer(token), None, "nothing of its term is committed");
    cluster.run(400);
    assert!(show(cluster.answer(token).expect("answered")).starts_with("-TRYAGAIN"));
    assert!(leads(&cluster, leader), "it goes on leading");
    (1..=3).for_each(|node| cluster.freeze_disk(node, false));
    assert_eq!(cluster.call(leader, "GET k"), Reply::Null);
}

/// A read goes to the leader again when the link to it breaks, but not for ever.
#[test]
fn reads_are_given_up_although_links_come_and_go() {
    let (mut cluster, leader) = leader_that_confirms_nothing();
    let at = addr(leader.node.get() % 3 + 1, 0);
    let token = cluster.submit(at, &[b"GET", b"k"]);
    for _ in 0..2 {
        assert!(!cluster.run_until(550, |cluster| cluster.answer(token).is_some()), "it waits");
        cluster.cut(at.node.get(), leader.node.get());
        cluster.heal();
    }
    cluster.run(20);
    assert!(show(cluster.answer(token).expect("answered")).starts_with("-TRYAGAIN"));
}
