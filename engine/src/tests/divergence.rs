//! Replicas that hold different things are found, told, and serve nothing.

use coracle_raft::NodeId;

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, Divergence, ReadMode, Standing, Token, Via};

/// Ticks between two checks.
const INTERVAL_TICKS: u32 = 40;
/// Steps in which a check comes to its end.
const PERIOD_STEPS: u64 = (INTERVAL_TICKS as u64 + 10) * 10;

fn cluster(nodes: u32, seed: u64) -> Cluster {
    let options = ClusterOptions { nodes, groups: 1, shards: 4, seed, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| {
        config.check_interval_ticks = INTERVAL_TICKS;
        config.value_cache_bytes_max = 0;
        config.balance_after_ticks = 20;
    });
    cluster.wait_for_leaders();
    cluster
}

fn write_some(cluster: &mut Cluster, keys: u32) {
    let leader = cluster.leader(0).unwrap();
    for n in 0..keys {
        let long = "v".repeat(n as usize * 7 % 200);
        for command in [
            format!("SET k{n} old"),
            format!("SET k{n} {n}-{long}"),
            format!("APPEND k{} tail", n / 2),
            format!("INCR n{n}"),
            format!("PEXPIRE n{n} {}", 100 + n * 50),
            format!("DEL k{}", n / 3),
        ] {
            let reply = show(&cluster.call(leader, &command));
            assert!(!reply.starts_with('-'), "{command}: {reply}");
        }
    }
}

fn followers(cluster: &Cluster) -> Vec<CoreAddr> {
    let leader = cluster.leader(0).unwrap();
    (1..=3).map(|n| addr(n, 0)).filter(|&at| at != leader).collect()
}

fn read_at(cluster: &mut Cluster, at: CoreAddr, key: &str) -> Token {
    cluster.submit_as(at, Via::Core, ReadMode::AnyReplica, false, &[b"GET", key.as_bytes()])
}

/// What `at` reported of another replica's or its own divergence.
fn reported(cluster: &Cluster, at: CoreAddr, of: CoreAddr) -> Option<&Divergence> {
    let found = cluster.divergences().iter().filter(|(by, _)| *by == at).map(|(_, found)| found);
    found.into_iter().find(|found| found.diverged == [of.node])
}

/// Checks run from the start, under restarts, snapshots and values that are not in memory, and find
/// nothing where nothing is wrong.
#[test]
pub(super) fn equal_replicas_are_found_equal() {
    for seed in 1..=5 {
        let mut cluster = cluster(3, seed);
        write_some(&mut cluster, 60);
        for victim in [1, 2, 3] {
            cluster.checkpoint(1 << 20);
            cluster.run(PERIOD_STEPS);
            cluster.kill(victim);
            cluster.wait_for_leaders();
            write_some(&mut cluster, 10 + victim);
            cluster.start(victim);
            cluster.wait_for_leaders();
            write_some(&mut cluster, 5);
        }
        cluster.run(2 * PERIOD_STEPS);
        assert_eq!(cluster.divergences(), [], "seed {seed}");
        for n in 1..=3 {
            let core = cluster.core(addr(n, 0));
            assert!(core.stats().checks > 2, "seed {seed}: {:?}", core.stats());
            assert_eq!((core.stats().diverged, core.stats().undecided), (0, 0));
        }
        cluster.assert_replicas_agree();
    }
}

/// A follower whose content was changed is found within one period, by all three, and answers no
/// read of the group any more; the others go on.
#[test]
pub(super) fn a_follower_that_has_diverged_is_found_and_serves_nothing() {
    let mut cluster = cluster(3, 7);
    write_some(&mut cluster, 30);
    cluster.run(PERIOD_STEPS);
    let (leader, bad) = (cluster.leader(0).unwrap(), followers(&cluster)[0]);
    let token = read_at(&mut cluster, bad, "k29");
    assert!(show(&cluster.wait(token)).starts_with("$29-"), "followers read");
    assert!(cluster.core_mut(bad).corrupt(b"k29"));
    cluster.run(PERIOD_STEPS);
    for n in 1..=3 {
        let found = reported(&cluster, addr(n, 0), bad).expect("every replica tells");
        assert_eq!((found.shard_count, found.clock_differs), (1, false));
        let map = cluster.map();
        let shard = map.shard_of(crate::SlotId::of_key(b"k29"));
        assert_eq!(found.shards, [shard]);
        let standing = if addr(n, 0) == bad { Standing::Diverged } else { Standing::Agreed };
        assert_eq!(found.standing, standing);
        let of = |node| found.digests.iter().find(|(at, _)| *at == node).map(|(_, digest)| *digest);
        assert!(of(bad.node) != of(leader.node), "{found:?}");
    }
    let token = read_at(&mut cluster, bad, "k28");
    let moved = show(&cluster.wait(token));
    assert!(moved.starts_with("-MOVED "), "{moved}");
    let good = followers(&cluster).into_iter().find(|&at| at != bad).unwrap();
    let token = read_at(&mut cluster, good, "k28");
    assert!(show(&cluster.wait(token)).starts_with("$28-"), "the other follower reads");
    assert_eq!(show(&cluster.call(bad, "SET x y")), "+OK", "it still passes commands on");
    assert_eq!(cluster.core(bad).stats().diverged, 1);
    assert_eq!(cluster.core(leader).stats().diverged, 0);
}

/// A leader whose content was changed hands over, to a replica that is right, and answers nothing
/// of its own meanwhile; it gets the leadership back only when it is right again.
#[test]
pub(super) fn a_leader_that_has_diverged_steps_down() {
    let mut cluster = cluster(3, 3);
    write_some(&mut cluster, 30);
    cluster.run(PERIOD_STEPS);
    let bad = cluster.leader(0).unwrap();
    assert!(cluster.core_mut(bad).corrupt(b"k29"));
    assert!(cluster.run_until(PERIOD_STEPS, |c| c.core(bad).stats().diverged == 1));
    assert!(cluster.run_until(PERIOD_STEPS, |c| c.leader(0) != Some(bad)), "it does not step down");
    assert!(cluster.core(bad).stats().leaderships_shed > 0);
    cluster.wait_for_leaders();
    // The preferred leader of the group would have it back after 20 ticks.
    for _ in 0..10 {
        cluster.run(100);
        assert_ne!(cluster.leader(0), Some(bad));
    }
    let other = cluster.leader(0).unwrap();
    assert!(show(&cluster.call(bad, "GET k29")).starts_with("$29-"));
    // Whoever writes the key again makes them equal.
    assert_eq!(show(&cluster.call(other, "SET k29 new")), "+OK");
    cluster.run(2 * PERIOD_STEPS);
    assert_eq!(cluster.core(bad).stats().diverged, 0, "all is well again");
    let (_, last) = cluster.divergences().iter().rfind(|(at, _)| *at == bad).unwrap();
    assert_eq!((last.standing, last.shard_count), (Standing::Agreed, 0));
    cluster.assert_replicas_agree();
}

/// Two that differ while the third is away: nobody knows who is right. Followers leave all to the
/// leader, which goes on; the third decides.
#[test]
fn without_a_majority_only_the_leader_serves() {
    let mut cluster = cluster(3, 5);
    write_some(&mut cluster, 30);
    cluster.run(PERIOD_STEPS);
    let [bad, away] = followers(&cluster)[..] else { panic!("three replicas") };
    cluster.isolate(away.node.get());
    assert!(cluster.core_mut(bad).corrupt(b"k29"));
    cluster.run(2 * PERIOD_STEPS);
    let leader = cluster.leader(0).unwrap();
    for at in [leader, bad] {
        assert_eq!(cluster.core(at).stats().undecided, 1, "{at}");
        let (_, told) = cluster.divergences().iter().find(|(by, _)| *by == at).expect("told");
        assert_eq!((told.standing, &told.diverged[..]), (Standing::Undecided, &[] as &[NodeId]));
    }
    assert!(show(&cluster.call(leader, "GET k29")).starts_with("$29-"));
    let token = read_at(&mut cluster, bad, "k28");
    assert!(show(&cluster.wait(token)).starts_with("-MOVED "));
    cluster.heal();
    cluster.run(3 * PERIOD_STEPS);
    assert_eq!(cluster.core(bad).stats().diverged, 1);
    assert_eq!(cluster.core(leader).stats().undecided, 0);
}

/// Two replicas that differ have no majority, ever.
#[test]
fn of_two_replicas_the_leader_goes_on() {
    let mut cluster = cluster(2, 5);
    write_some(&mut cluster, 10);
    cluster.run(PERIOD_STEPS);
    let leader = cluster.leader(0).unwrap();
    assert!(cluster.core_mut(leader).corrupt(b"k9"));
    cluster.run(PERIOD_STEPS);
    let told: Vec<_> = cluster.divergences().iter().map(|(at, _)| at.node.get()).collect();
    assert!(told.contains(&1) && told.contains(&2), "{told:?}");
    assert_eq!(cluster.leader(0), Some(leader));
    assert!(show(&cluster.call(leader, "GET k9")).starts_with("$9-"));
}

/// A check is asked for by hand where none are made by themselves.
#[test]
fn checks_can_be_asked_for() {
    let options = ClusterOptions { groups: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.check_interval_ticks = 0);
    cluster.wait_for_leaders();
    cluster.run(1000);
    assert_eq!(cluster.core(addr(1, 0)).digests(), []);
    for n in 1..=3 {
        cluster.core_mut(addr(n, 0)).check_soon();
    }
    cluster.run(100);
    let first = cluster.core(addr(1, 0)).digests();
    assert_eq!(first.len(), 4);
    assert_eq!(cluster.core(addr(2, 0)).digests(), first);
    cluster.run(1000);
    assert_eq!(cluster.core(addr(3, 0)).digests(), first, "once");
}
