//! Commands of one connection on one shard take effect in their order.

use super::show;
use crate::command::{Command, decode};
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, Order, ReadMode, Reply, Token, Via};

fn one_group() -> (Cluster, CoreAddr) {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    let leader = cluster.leader(0).unwrap();
    (cluster, leader)
}

fn command(cluster: &Cluster, text: &str) -> Command {
    let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    decode(&args, cluster.wall()).expect("a command")
}

fn follow(cluster: &mut Cluster, at: CoreAddr, text: &str) -> Token {
    let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    cluster.submit_as(at, Via::Plain, ReadMode::Leader, true, &args)
}

#[test]
fn commands_overlap_only_at_the_leader_and_never_a_write_over_a_read() {
    let (cluster, leader) = one_group();
    let follower = addr(leader.node.get() % 3 + 1, 0);
    let cases = [
        ("SET k 1", "SET k 2", Order::Follows, Order::Waits),
        ("SET k 1", "GET k", Order::Follows, Order::Waits),
        ("GET k", "GET k", Order::Follows, Order::Waits),
        ("GET k", "SET k 1", Order::Waits, Order::Waits),
        ("MSET {k}a 1 {k}b 2", "GET k", Order::Follows, Order::Waits),
        ("SET k 1", "SET q 1", Order::Free, Order::Free),
    ];
    for (first, second, at_leader, at_follower) in cases {
        let (first, second) = (command(&cluster, first), command(&cluster, second));
        for (at, want) in [(leader, at_leader), (follower, at_follower)] {
            let core = cluster.core(at);
            let unanswered = [core.unanswered(&first)];
            assert_eq!(core.order(&second, unanswered.iter()), want, "{first:?} {second:?}");
            // What one core took as leader says nothing about another.
            let elsewhere = if at == leader { follower } else { leader };
            let order = cluster.core(elsewhere).order(&second, unanswered.iter());
            assert_ne!(order, Order::Follows, "{first:?} {second:?}");
        }
    }
}

#[test]
pub(super) fn what_follows_sees_what_is_before_it() {
    let (mut cluster, leader) = one_group();
    for i in 0..30 {
        let first = cluster.submit(leader, &[b"SET", b"k", format!("{i}").as_bytes()]);
        let second = follow(&mut cluster, leader, "APPEND k x");
        let third = follow(&mut cluster, leader, "GET k");
        assert_eq!(show(&cluster.wait(third)), format!("${i}x"));
        assert_eq!(cluster.wait(first), Reply::OK);
        assert!(matches!(cluster.wait(second), Reply::Integer(_)));
    }
}

/// Found by the simulator: the write found its way to the next leader, and the read behind it,
/// sent on by itself, was there before it.
#[test]
pub(super) fn what_follows_a_write_that_lost_its_leader_is_refused() {
    let (mut cluster, old) = one_group();
    cluster.isolate(old.node.get());
    let first = cluster.submit(old, &[b"INCR", b"n"]);
    let behind = [follow(&mut cluster, old, "INCR n"), follow(&mut cluster, old, "GET n")];
    assert!(cluster.run_until(1000, |c| c.leader(0).is_some_and(|at| at != old)));
    cluster.heal();
    assert_eq!(cluster.wait(first), Reply::Integer(1));
    for token in behind {
        let got = show(&cluster.wait(token));
        assert!(got.starts_with("-TRYAGAIN the leader changed during the pipeline"), "{got}");
    }
    assert_eq!(show(&cluster.call(old, "GET n")), "$1");
    // A follower takes nothing that follows: it cannot know what became of the others.
    let late = follow(&mut cluster, old, "INCR n");
    let got = show(&cluster.wait(late));
    assert!(got.starts_with("-TRYAGAIN "), "{got}");
    cluster.assert_replicas_agree();
}
