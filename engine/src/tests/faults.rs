//! Crashes, partitions, restarts: nothing acknowledged is lost, nothing stale is read, and what
//! is unknown is said to be unknown.

use coracle_raft::GroupId;

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr, map_of};
use crate::{Core, CoreAddr, CoreConfig, Recovery, Reply};

fn one_group() -> Cluster {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    cluster
}

fn other_than(at: CoreAddr) -> CoreAddr {
    addr(at.node.get() % 3 + 1, 0)
}

/// Every acknowledged write survives the death of its leader.
#[test]
pub(super) fn acknowledged_writes_survive_the_leader() {
    for seed in 1..=10 {
        let options = ClusterOptions { seed, ..ClusterOptions::default() };
        let mut cluster = Cluster::new(options);
        cluster.wait_for_leaders();
        let victim = 1 + (seed % 3) as u32;
        let client = addr(victim % 3 + 1, 0);
        let mut acked = Vec::new();
        let mut open = Vec::new();
        for i in 0..200 {
            let (key, value) = (format!("k{i}"), format!("v{i}"));
            let token = cluster.submit(client, &[b"SET", key.as_bytes(), value.as_bytes()]);
            open.push((token, i));
            cluster.run(1 + seed % 3);
            if i == 100 {
                cluster.kill(victim);
            }
        }
        for (token, i) in open {
            match show(&cluster.wait(token)).as_str() {
                "+OK" => acked.push(i),
                other => assert!(other.starts_with("-UNCERTAIN "), "seed {seed}: {other}"),
            }
        }
        assert!(acked.len() > 120, "seed {seed}: only {} acknowledged", acked.len());
        for i in acked {
            let got = show(&cluster.call(client, &format!("GET k{i}")));
            assert_eq!(got, format!("$v{i}"), "seed {seed}");
        }
        cluster.start(victim);
        cluster.assert_replicas_agree();
    }
}

/// A leader that is cut off answers no read, however long it still believes in itself.
#[test]
fn a_stale_leader_answers_no_read() {
    let mut cluster = one_group();
    let old = cluster.leader(0).unwrap();
    let client = other_than(old);
    assert_eq!(cluster.call(client, "SET k old"), Reply::OK);
    cluster.isolate(old.node.get());
    let early = cluster.submit(old, &[b"GET", b"k"]);
    assert_eq!(cluster.call(client, "SET k new"), Reply::OK);
    let late = cluster.submit(old, &[b"GET", b"k"]);
    cluster.run(500);
    for token in [early, late] {
        if let Some(reply) = cluster.answer(token) {
            assert!(matches!(reply, Reply::Error(_)), "answered {reply:?}");
        }
    }
    cluster.heal();
    for token in [early, late] {
        let got = show(&cluster.wait(token));
        assert!(got == "$new" || got.starts_with('-'), "{got}");
    }
}

/// R15: a write that a deposed leader appended and another leader's entry replaced was
/// certainly not applied; it finds its way to the new leader and is executed once.
#[test]
pub(super) fn a_replaced_write_is_executed_elsewhere_exactly_once() {
    let mut cluster = one_group();
    let old = cluster.leader(0).unwrap();
    cluster.isolate(old.node.get());
    let token = cluster.submit(old, &[b"INCR", b"n"]);
    let elected = |cluster: &Cluster| cluster.leader(0).is_some_and(|at| at != old);
    assert!(cluster.run_until(1000, elected), "no new leader");
    assert_eq!(cluster.answer(token), None, "losing leadership alone decides nothing");
    cluster.heal();
    assert_eq!(cluster.wait(token), Reply::Integer(1));
    assert_eq!(cluster.core(old).stats().lost_proposals, 1);
    assert_eq!(show(&cluster.call(old, "GET n")), "$1");
    cluster.assert_replicas_agree();
}

/// R15: a write that reached a majority before its leader fell gets its real answer, from the
/// entry committed with its term, although another leader commits it.
#[test]
fn a_write_committed_by_the_next_leader_gets_its_real_answer() {
    let mut cluster = one_group();
    let old = cluster.leader(0).unwrap();
    let last = |cluster: &Cluster, at: CoreAddr| {
        cluster.core(at).group_status(GroupId::new(0)).unwrap().last
    };
    let before = last(&cluster, old);
    let token = cluster.submit(old, &[b"INCR", b"n"]);
    // Its followers have it, but their acknowledgements are lost.
    let others = [other_than(old), other_than(other_than(old))];
    let arrived = |cluster: &Cluster| others.iter().all(|&at| last(cluster, at) > before);
    assert!(cluster.run_until(20, arrived), "not replicated");
    cluster.isolate(old.node.get());
    assert_eq!(cluster.answer(token), None);
    assert!(cluster.run_until(1000, |c| c.leader(0).is_some_and(|at| at != old)));
    cluster.heal();
    assert_eq!(cluster.wait(token), Reply::Integer(1));
    assert_eq!(show(&cluster.call(old, "GET n")), "$1");
    assert_eq!(cluster.core(old).stats().lost_proposals, 0);
}

/// R15: what stays unknown is answered as unknown, never with an error clients retry on.
#[test]
pub(super) fn an_unknown_outcome_is_said_to_be_unknown() {
    let mut cluster = one_group();
    let old = cluster.leader(0).unwrap();
    let client = other_than(old);
    // At the leader itself: no majority answers.
    cluster.isolate(old.node.get());
    let local = cluster.submit(old, &[b"INCR", b"n"]);
    let got = show(&cluster.wait(local));
    assert!(got.starts_with("-UNCERTAIN outcome unknown: "), "{got}");
    cluster.heal();
    cluster.wait_for_leaders();
    // Forwarded: the link breaks while the leader works on it.
    let leader = cluster.leader(0).unwrap();
    let client = if client == leader { old } else { client };
    let forwarded = cluster.submit(client, &[b"INCR", b"m"]);
    cluster.cut(client.node.get(), leader.node.get());
    cluster.step();
    let got = show(cluster.answer(forwarded).expect("answered at once"));
    assert!(got.starts_with("-UNCERTAIN outcome unknown: "), "{got}");
    let stats = cluster.core(client).stats();
    assert_eq!((stats.uncertain >= 1, stats.forwards_open), (true, 0));
}

/// A forwarded read is sent again when its link breaks: it changes nothing, so that is safe.
#[test]
fn forwarded_reads_are_retried() {
    let mut cluster = one_group();
    let leader = cluster.leader(0).unwrap();
    let client = other_than(leader);
    assert_eq!(cluster.call(client, "SET k v"), Reply::OK);
    let read = cluster.submit(client, &[b"GET", b"k"]);
    cluster.kill(leader.node.get());
    assert_eq!(show(&cluster.wait(read)), "$v");
}

/// The answer to a command of an earlier life of a core never reaches its next life.
#[test]
fn answers_do_not_cross_a_restart() {
    let mut cluster = one_group();
    let leader = cluster.leader(0).unwrap();
    let client = other_than(leader);
    for i in 0..20 {
        let _ = cluster.submit(client, &[b"SET", b"k", format!("{i}").as_bytes()]);
    }
    cluster.run(1);
    cluster.kill(client.node.get());
    cluster.start(client.node.get());
    for i in 0..20 {
        let got = cluster.call(client, &format!("INCR n{i}"));
        assert_eq!(got, Reply::Integer(1));
    }
    cluster.assert_replicas_agree();
}

/// A whole cluster restarted from its disks holds every acknowledged write.
#[test]
fn a_cluster_recovers_from_its_records() {
    let options = ClusterOptions { cores: 2, groups: 8, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    for round in 0..3 {
        for i in 0..100 {
            let command = format!("SET k{i} {round}-{i}");
            assert_eq!(cluster.call(addr(1 + i % 3, 0), &command), Reply::OK);
        }
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.start(node);
        }
        cluster.wait_for_leaders();
        for i in 0..100 {
            let got = show(&cluster.call(addr(1 + i % 3, 1), &format!("GET k{i}")));
            assert_eq!(got, format!("${round}-{i}"));
        }
        cluster.assert_replicas_agree();
    }
}

/// A replica that comes back catches up from entries that only the disks still hold.
#[test]
fn a_lagging_replica_catches_up_from_disk() {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.cache_bytes_max = 256 << 10);
    cluster.wait_for_leaders();
    let leader = cluster.leader(0).unwrap();
    let lagging = other_than(leader);
    cluster.kill(lagging.node.get());
    let value = "x".repeat(8 << 10);
    for i in 0..200 {
        assert_eq!(cluster.call(leader, &format!("SET k{} {value}{i}", i % 20)), Reply::OK);
    }
    cluster.start(lagging.node.get());
    cluster.assert_replicas_agree();
    assert_eq!(cluster.core(lagging).keys_hosted(), 20);
}

/// Leadership returns to the preferred leader once it has been healthy for a while.
#[test]
fn leadership_returns_to_the_preferred_leader() {
    let mut cluster = one_group();
    let preferred = cluster.leader(0).unwrap();
    cluster.kill(preferred.node.get());
    let moved = |cluster: &Cluster| cluster.leader(0).is_some_and(|at| at != preferred);
    assert!(cluster.run_until(2000, moved), "no new leader");
    cluster.start(preferred.node.get());
    cluster.run(1000);
    assert!(moved(&cluster), "not before it has been caught up for 200 ticks");
    let token = cluster.submit(other_than(preferred), &[b"INCR", b"n"]);
    assert_eq!(cluster.wait(token), Reply::Integer(1));
    assert!(cluster.run_until(4000, |c| c.leader(0) == Some(preferred)), "it never returned");
}

/// A node that starts after the others have elected leaders gets its leaderships at once.
#[test]
fn the_last_node_to_start_gets_its_leaderships() {
    let mut cluster = Cluster::new(ClusterOptions::default());
    cluster.kill(3);
    let groups = 0..cluster.map().group_count();
    assert!(cluster.run_until(2000, |c| groups.clone().all(|g| c.leader(g).is_some())));
    assert_eq!(cluster.core(addr(1, 0)).stats().balanced, 0);
    cluster.start(3);
    let placed = |c: &Cluster| {
        let preferred = |g| c.map().replicas(GroupId::new(g)).next();
        groups.clone().all(|g| c.leader(g).map(|at| at.node) == preferred(g))
    };
    assert!(cluster.run_until(400, placed), "not placed soon");
}

/// A node that is about to stop leads nothing soon after, while its clients' and the others'
/// writes go on without a single error.
#[test]
fn a_core_that_resigns_hands_over_everything() {
    for seed in 1..=10 {
        let mut cluster = Cluster::new(ClusterOptions { seed, ..ClusterOptions::default() });
        cluster.wait_for_leaders();
        let leaver = addr(1 + (seed % 3) as u32, 0);
        assert!(cluster.core(leaver).stats().leaders > 0, "seed {seed}: it leads something");
        let mut open = Vec::new();
        let mut left = usize::MAX;
        for step in 0..300 {
            let key = format!("k{step}");
            open.push(cluster.submit(addr(1 + step % 3, 0), &[b"INCR", key.as_bytes()]));
            if step % 4 == 0 && left > 0 {
                left = cluster.core_mut(leaver).resign();
            }
            cluster.run(1);
        }
        assert_eq!(left, 0, "seed {seed}");
        assert_eq!(cluster.core(leaver).stats().leaders, 0, "seed {seed}");
        for token in open {
            assert_eq!(cluster.wait(token), Reply::Integer(1), "seed {seed}");
        }
        cluster.kill(leaver.node.get());
        let token = cluster.submit(other_than(leaver), &[b"INCR", b"k1"]);
        assert!(cluster.run_until(20, |c| c.answer(token).is_some()), "seed {seed}: a gap");
    }
}

/// Nobody there to take over: resigning does not wait. And when all resign at once, leaderships
/// do not go round for ever.
#[test]
fn resigning_ends_where_nobody_takes_over() {
    let mut cluster = one_group();
    let leader = cluster.leader(0).unwrap();
    for node in 1..=3 {
        if node != leader.node.get() {
            cluster.kill(node);
        }
    }
    cluster.run(1);
    assert_eq!(cluster.core_mut(leader).resign(), 0);

    let mut cluster = one_group();
    let mut rounds = 0;
    while (1..=3).map(|node| cluster.core_mut(addr(node, 0)).resign()).sum::<usize>() > 0 {
        cluster.run(4);
        rounds += 1;
        assert!(rounds < 200, "it goes round");
    }
}

/// A leader whose disk hangs commits through the others and goes on being useful.
#[test]
fn the_leaders_own_disk_need_not_be_in_the_majority() {
    let mut cluster = one_group();
    let leader = cluster.leader(0).unwrap();
    cluster.freeze_disk(leader.node.get(), true);
    let token = cluster.submit(leader, &[b"SET", b"k", b"v"]);
    assert!(cluster.run_until(50, |c| c.answer(token).is_some()));
    assert_eq!(cluster.wait(token), Reply::OK);
    assert_eq!(show(&cluster.call(leader, "GET k")), "$v");
}

/// A restarted replica numbers its reads anew, far from those of its earlier life: a late answer
/// to one of those must not confirm a read of this life (RB4).
#[test]
fn two_lives_of_a_core_number_their_reads_apart() {
    let map = map_of(3, 1, 8, 1);
    let first_context = |seed| {
        let config = CoreConfig { seed, ..CoreConfig::new(addr(1, 0), map.clone()) };
        Core::new(config, Recovery::new(map.clone(), addr(1, 0))).read_context()
    };
    assert_ne!(first_context(11 << 32), first_context(12 << 32));
}

/// A replica that cannot read the entries that it has to apply may win an election: its log is as
/// long as any. If no other replica can give them either, it serves nothing and hands over; then it
/// gets a snapshot.
#[test]
fn a_leader_that_cannot_read_what_it_must_apply_hands_over() {
    for seed in 1..=8 {
        let options = ClusterOptions { groups: 1, seed, ..ClusterOptions::default() };
        let mut cluster = Cluster::new(options);
        cluster.wait_for_leaders();
        // It campaigns first after a restart.
        let victim = cluster.leader(0).unwrap();
        let others = [other_than(victim), other_than(other_than(victim))];
        for n in 0..300 {
            assert_eq!(cluster.call(victim, &format!("SET k{n} v{n}")), Reply::OK);
        }
        cluster.assert_replicas_agree();
        // The others need not read what they have in their checkpoints.
        for _ in 0..200 {
            others.iter().for_each(|&at| cluster.checkpoint_on(at, 1 << 20));
            cluster.run(1);
        }
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.start(node);
            cluster.fail_loads(addr(node, 0), true);
        }
        let shed = |cluster: &Cluster| cluster.core(victim).stats().leaderships_shed > 0;
        assert!(cluster.run_until(2000, shed), "seed {seed}");
        let elsewhere = |cluster: &Cluster| cluster.leader(0).is_some_and(|at| at != victim);
        assert!(cluster.run_until(2000, elsewhere), "seed {seed}");
        assert_eq!(show(&cluster.call(others[0], "GET k7")), "$v7", "seed {seed}");
        cluster.assert_replicas_agree();
        let seen = cluster.core(victim).stats();
        assert_eq!((seen.snapshots_installed, seen.entries_fetched), (1, 0), "seed {seed}");
    }
}
