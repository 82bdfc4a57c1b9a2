//! Expiry is decided by the log: punctual, linearizable, the same on every replica.

use coracle_raft::GroupId;

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{ReadMode, Reply, Via};

fn cluster(groups: u32) -> Cluster {
    let options = ClusterOptions { groups, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    cluster
}

/// Keys leave the memory of every replica at the same entry, with writes and without.
#[test]
fn expiry_is_identical_on_all_replicas() {
    let mut cluster = cluster(4);
    for i in 0..400 {
        let ttl = 10 + i * 7 % 500;
        let reply = cluster.call(addr(1 + i % 3, 0), &format!("SET k{i} v{i} PX {ttl}"));
        assert_eq!(reply, Reply::OK);
        if i % 10 == 0 {
            cluster.advance_wall(13);
            cluster.assert_replicas_agree();
        }
    }
    cluster.advance_wall(1000);
    // Nobody writes or reads: the leaders move the log clocks.
    let empty = |cluster: &Cluster| (1..=3).all(|n| cluster.core(addr(n, 0)).keys_hosted() == 0);
    assert!(cluster.run_until(1000, empty), "keys past their time stay in memory");
    cluster.assert_replicas_agree();
}

/// A read at or after a key's time does not see it, even before any entry carries that time;
/// nor does a read on a follower.
#[test]
fn reads_see_no_key_past_its_time() {
    for read_mode in [ReadMode::Leader, ReadMode::AnyReplica] {
        let mut cluster = cluster(1);
        for node in 1..=3 {
            let at = addr(node, 0);
            assert_eq!(cluster.call(at, "SET k v PX 1000"), Reply::OK);
            cluster.advance_wall(999);
            let args: &[&[u8]] = &[b"GET", b"k"];
            let token = cluster.submit_as(at, Via::Plain, read_mode, false, args);
            assert_eq!(show(&cluster.wait(token)), "$v", "{read_mode:?}");
            cluster.advance_wall(1);
            let token = cluster.submit_as(at, Via::Plain, read_mode, false, args);
            assert_eq!(show(&cluster.wait(token)), "_", "{read_mode:?}");
            // Once gone it stays gone, also for a reader whose clock is behind.
            assert_eq!(cluster.call(at, "SET k w NX"), Reply::OK);
        }
    }
}

/// Without keys that are due no clock entries are written: an idle group stays idle.
#[test]
fn idle_groups_write_nothing() {
    let mut cluster = cluster(1);
    assert_eq!(cluster.call(addr(1, 0), "SET k v EX 1000"), Reply::OK);
    cluster.assert_replicas_agree();
    let last =
        |cluster: &Cluster| cluster.core(addr(1, 0)).group_status(GroupId::new(0)).unwrap().last;
    let before = last(&cluster);
    cluster.advance_wall(999_000);
    cluster.run(1000);
    assert_eq!(last(&cluster), before);
    cluster.advance_wall(1_000);
    cluster.run(1000);
    assert_eq!(last(&cluster), before.next(), "one clock entry removes it");
    assert_eq!(cluster.core(addr(1, 0)).keys_hosted(), 0);
}

/// A stamp from a clock that runs ahead does not move the log clock.
#[test]
fn a_wrong_wall_clock_does_not_poison_the_log_clock() {
    let mut cluster = cluster(1);
    assert_eq!(cluster.call(addr(1, 0), "SET a v EX 3600"), Reply::OK);
    let ahead = crate::WallMillis(cluster.wall().0 + 10_000_000);
    let command = crate::command::decode(&[b"SET", b"b", b"v"], ahead).unwrap();
    let leader = cluster.leader(0).unwrap();
    let from = addr(leader.node.get() % 3 + 1, 0);
    let forward = crate::Forward { id: 1, at: ahead, command };
    let message = crate::PeerMessage::Forward(forward);
    cluster.core_mut(leader).handle(crate::Input::Peer { from, message });
    cluster.run(200);
    assert_eq!(show(&cluster.call(from, "GET b")), "$v");
    assert_eq!(show(&cluster.call(from, "TTL a")), ":3600");
}
