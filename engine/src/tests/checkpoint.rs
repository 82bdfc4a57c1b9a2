//! Checkpoints, compaction, recovery from them, and snapshots to replicas that are too far
//! behind.

use coracle_raft::{GroupId, LogIndex, NodeId, Record};

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, Reply};

pub(super) fn cluster(groups: u32, seed: u64) -> Cluster {
    let options = ClusterOptions { groups, shards: 8, seed, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.cache_bytes_max = 1 << 20);
    cluster.wait_for_leaders();
    cluster
}

/// Writes of every kind, so that snapshots hold shared, computed and expiring values.
pub(super) fn write_some(cluster: &mut Cluster, at: CoreAddr, from: u32, to: u32) {
    let long = "x".repeat(300);
    for i in from..to {
        let k = i % 97;
        let command = match i % 5 {
            0 => format!("SET s{k} {long}{i}"),
            1 => format!("INCR n{k}"),
            2 => format!("APPEND a{k} {i}"),
            3 => format!("SET t{k} v PX {}", 100 + i % 1000),
            _ => format!("DEL s{}", (k * 5) % 97),
        };
        let reply = cluster.call(at, &command);
        assert!(!show(&reply).starts_with('-'), "{command}: {reply:?}");
    }
}

/// Steps until every shard of every core has been written `times` over.
pub(super) fn full_checkpoint(cluster: &mut Cluster, bytes: usize, times: u64) {
    let count = |cluster: &Cluster| {
        cluster.map().cores().map(|at| cluster.core(at).stats().checkpoints).min().unwrap()
    };
    let want = count(cluster) + times * u64::from(cluster.map().shard_count());
    for _ in 0..20_000 {
        if count(cluster) >= want {
            return;
        }
        cluster.checkpoint(bytes);
        cluster.run(1);
    }
    panic!("the checkpoint never ends: {} of {want}", count(cluster));
}

pub(super) fn base(cluster: &Cluster, at: CoreAddr, group: u32) -> LogIndex {
    cluster.core(at).group_status(GroupId::new(group)).unwrap().base
}

/// Logs are cut and disks shrink; everything is still there after a restart of all nodes.
#[test]
pub(super) fn checkpoints_cut_the_log_and_restarts_recover_from_them() {
    for (seed, bytes) in [(1, 1), (2, 1000), (3, 1 << 20)] {
        let mut cluster = cluster(2, seed);
        write_some(&mut cluster, addr(1, 0), 0, 600);
        let before = cluster.disk(addr(1, 0)).count();
        full_checkpoint(&mut cluster, bytes, 2);
        write_some(&mut cluster, addr(2, 0), 600, 700);
        cluster.assert_replicas_agree();
        for at in cluster.map().cores().collect::<Vec<_>>() {
            assert!(base(&cluster, at, 0) > LogIndex::new(100), "the log of {at} was not cut");
            assert!(cluster.disk(at).count() < before, "the disk of {at} does not shrink");
        }
        let values: Vec<Reply> =
            (0..97).map(|k| cluster.call(addr(3, 0), &format!("GET s{k}"))).collect();
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.start(node);
        }
        cluster.wait_for_leaders();
        cluster.assert_replicas_agree();
        for (k, want) in values.iter().enumerate() {
            let got = show(&cluster.call(addr(1, 0), &format!("GET s{k}")));
            assert_eq!(got, show(want), "seed {seed}: s{k}");
        }
    }
}

/// A replica that restarts from a checkpoint in the middle of its life, with the other two going
/// on, holds the same data as they do, whatever was being written when it died.
#[test]
pub(super) fn a_replica_killed_during_a_checkpoint_recovers_the_same_data() {
    for seed in 1..=12 {
        let mut cluster = cluster(2, seed);
        let victim = 1 + (seed % 3) as u32;
        let other = addr(victim % 3 + 1, 0);
        write_some(&mut cluster, other, 0, 200);
        full_checkpoint(&mut cluster, 1 << 20, 1);
        for part in 0..seed {
            cluster.checkpoint(700);
            let from = 200 + part as u32 * 10;
            write_some(&mut cluster, other, from, from + 10);
        }
        cluster.checkpoint(700);
        cluster.run(seed % 4);
        cluster.kill(victim);
        // Leadership may have to move first: commands wait for it.
        cluster.run(1500);
        write_some(&mut cluster, other, 400, 450);
        cluster.start(victim);
        cluster.assert_replicas_agree();
        full_checkpoint(&mut cluster, 1 << 16, 2);
        cluster.assert_replicas_agree();
    }
}

/// A replica whose entries everybody has forgotten gets the shards instead, and then the rest.
#[test]
pub(super) fn a_replica_too_far_behind_gets_a_snapshot() {
    for seed in 1..=4 {
        let mut cluster = cluster(2, seed);
        let victim = 1 + (seed % 3) as u32;
        let other = addr(victim % 3 + 1, 0);
        write_some(&mut cluster, other, 0, 100);
        cluster.kill(victim);
        cluster.run(1500);
        write_some(&mut cluster, other, 100, 500);
        let live: Vec<_> = (1..=3).filter(|&n| n != victim).map(|n| addr(n, 0)).collect();
        let cut = |cluster: &Cluster| {
            live.iter().all(|&at| (0..2).all(|g| base(cluster, at, g) > LogIndex::new(100)))
        };
        for _ in 0..3000 {
            if cut(&cluster) {
                break;
            }
            cluster.checkpoint(1 << 20);
            cluster.run(1);
        }
        assert!(cut(&cluster), "seed {seed}: the logs were not cut");
        cluster.start(victim);
        for part in 0..20 {
            write_some(&mut cluster, other, 500 + part * 5, 505 + part * 5);
            cluster.run(3);
        }
        cluster.assert_replicas_agree();
        let stats = cluster.core(addr(victim, 0)).stats();
        assert_eq!(stats.snapshots_installed, 2, "seed {seed}: one for each group");
        // And what it got is on its own disk.
        cluster.kill(victim);
        cluster.start(victim);
        cluster.assert_replicas_agree();
        full_checkpoint(&mut cluster, 1 << 20, 2);
        cluster.kill(victim);
        cluster.start(victim);
        cluster.assert_replicas_agree();
    }
}

/// A snapshot that stops in the middle, because its leader or its receiver dies, is begun again.
#[test]
fn an_interrupted_snapshot_is_begun_again() {
    for seed in 1..=6 {
        let mut cluster = cluster(1, seed);
        let leader = cluster.leader(0).unwrap();
        let victim = leader.node.get() % 3 + 1;
        let third = victim % 3 + 1;
        write_some(&mut cluster, leader, 0, 50);
        cluster.kill(victim);
        // More than a window's worth of pieces.
        let value = vec![b'v'; 100_000];
        for i in 0..60 {
            let key = format!("big{i}");
            let token = cluster.submit(leader, &[b"SET", key.as_bytes(), &value]);
            assert_eq!(cluster.wait(token), Reply::OK);
        }
        while base(&cluster, leader, 0) < LogIndex::new(60)
            || base(&cluster, addr(third, 0), 0) < LogIndex::new(60)
        {
            cluster.checkpoint(8 << 20);
            cluster.run(1);
        }
        cluster.start(victim);
        let begun = |cluster: &Cluster| {
            let state = |record: &&Record| matches!(record, Record::State { .. });
            cluster.disk(addr(victim, 0)).filter(state).count() > 5
        };
        assert!(cluster.run_until(5000, begun), "seed {seed}: no pieces arrive");
        let at = addr(victim, 0);
        assert_eq!(cluster.core(at).stats().snapshots_installed, 0, "seed {seed}: too late");
        match seed % 3 {
            0 => {
                cluster.kill(victim);
                cluster.run(10);
                cluster.start(victim);
            }
            1 => {
                cluster.isolate(leader.node.get());
                cluster.run(1500);
                cluster.heal();
            }
            _ => {
                let core = cluster.core_mut(leader);
                assert!(core.transfer_leadership(GroupId::new(0), NodeId::new(third)));
            }
        }
        cluster.run(100);
        cluster.assert_replicas_agree();
        assert!(cluster.core(at).stats().snapshots_installed >= 1, "seed {seed}");
    }
}

/// No index refers to the long values of a shard that is arriving, and checkpoints go on: no
/// segment with one of them is let go. The cluster checks that at every release.
#[test]
pub(super) fn values_of_a_shard_that_arrives_are_kept() {
    let mut caught = 0;
    for seed in 1..=6 {
        let mut cluster = cluster(2, seed);
        let leaders = [0, 1].map(|group| cluster.leader(group).unwrap());
        let victim = (1..=3).find(|&n| leaders.iter().all(|at| at.node.get() != n)).unwrap();
        let at = addr(victim, 0);
        cluster.kill(victim);
        let value = vec![b'v'; 100_000];
        for i in 0..80 {
            let key = format!("big{i}");
            let token = cluster.submit(leaders[0], &[b"SET", key.as_bytes(), &value]);
            assert_eq!(cluster.wait(token), Reply::OK);
        }
        let is_cut = |cluster: &Cluster, group: u32| {
            let live = (1..=3).filter(|&n| n != victim);
            live.map(|n| base(cluster, addr(n, 0), group)).all(|base| base > LogIndex::new(20))
        };
        while !is_cut(&cluster, 0) || !is_cut(&cluster, 1) {
            cluster.checkpoint(8 << 20);
            cluster.run(1);
        }
        cluster.start(victim);
        let arrives = |cluster: &Cluster| cluster.core(at).oldest_arriving().is_some();
        assert!(cluster.run_until(5000, arrives), "seed {seed}: no long value arrives");
        let oldest = cluster.core(at).oldest_arriving();
        // One of the two shards stops in the middle, and the other group goes on.
        cluster.cut(leaders[(seed % 2) as usize].node.get(), victim);
        for n in 0..200 {
            cluster.checkpoint_on(at, 1 << 20);
            cluster.run(1);
            if n % 2 == 0 {
                let (key, goes_on) = (format!("small{n}"), leaders[1 - (seed % 2) as usize]);
                cluster.submit(goes_on, &[b"SET", key.as_bytes(), b"v"]);
            }
        }
        caught += u64::from(cluster.core(at).oldest_arriving() == oldest);
        cluster.heal();
        cluster.assert_replicas_agree();
    }
    assert!(caught > 0, "no shard was ever in the middle for long");
}

/// Records that do not add up make a group unfit: it is left out instead of forgetting.
#[test]
pub(super) fn a_group_whose_records_do_not_add_up_is_left_out() {
    let mut cluster = cluster(1, 1);
    for part in 0..4 {
        write_some(&mut cluster, addr(1, 0), part * 30, part * 30 + 30);
        full_checkpoint(&mut cluster, 1 << 20, 1);
    }
    cluster.run(20);
    let at = addr(1, 0);
    let records: Vec<Record> = cluster.disk(at).cloned().collect();
    let recover = |files: usize, keep: &dyn Fn(&Record) -> bool| {
        let mut recovery = crate::Recovery::new(cluster.map().clone(), at);
        let files: Vec<_> = cluster.files(at).take(files).collect();
        for (number, sections) in files.into_iter().rev() {
            sections.iter().for_each(|section| recovery.section(number, section));
        }
        let place = coracle_raft::Place::new(1, 0);
        records.iter().filter(|record| keep(record)).for_each(|record| {
            recovery.record(place, record.clone());
        });
        recovery.damaged().into_values().next()
    };
    assert_eq!(recover(2, &|_| true), None);
    assert_eq!(recover(1, &|_| true), None, "the log reaches back to the older checkpoint");
    let why = recover(0, &|_| true).unwrap();
    assert!(why.contains("has no snapshot"), "{why}");
    let why = recover(2, &|record| !matches!(record, Record::Purge { .. })).unwrap();
    assert!(why.contains("are missing"), "{why}");
    let mut recovery = crate::Recovery::new(cluster.map().clone(), addr(1, 0));
    recovery.mark_damaged(GroupId::new(0), "bad sector");
    let core =
        crate::Core::new(crate::CoreConfig::new(addr(1, 0), cluster.map().clone()), recovery);
    assert_eq!(core.groups_hosted().count(), 0);
}

/// A leader that starts from shards of different ages serves a follower that needs a snapshot,
/// although the two of them are the only quorum: what the newest shard holds is committed.
/// (Simulator: mix 20 215, when the third replica was damaged.)
#[test]
fn a_restarted_leader_and_a_replica_far_behind_are_a_quorum() {
    for seed in 1..=6 {
        let mut cluster = cluster(1, seed);
        let (leader, behind, dead) = (addr(1, 0), addr(2, 0), addr(3, 0));
        write_some(&mut cluster, leader, 0, 50);
        cluster.kill(behind.node.get());
        cluster.run(1500);
        write_some(&mut cluster, leader, 50, 300);
        for part in 0..2000 {
            if base(&cluster, leader, 0) > LogIndex::new(200) {
                break;
            }
            cluster.checkpoint(2000);
            write_some(&mut cluster, leader, 300 + part, 301 + part);
        }
        cluster.run(20);
        cluster.kill(leader.node.get());
        cluster.kill(dead.node.get());
        cluster.start(leader.node.get());
        let oldest = base(&cluster, leader, 0);
        assert!(oldest > LogIndex::new(200), "the log was not cut");
        assert!(
            cluster.core(leader).groups[0].is_ahead(),
            "seed {seed}: all shards are of one age"
        );
        cluster.start(behind.node.get());
        cluster.wait_for_leaders();
        let serves = cluster.run_until(5000, |cluster| {
            let status = cluster.core(leader).group_status(GroupId::new(0));
            status.is_some_and(|status| status.commit == status.last)
        });
        let status = cluster.core(leader).group_status(GroupId::new(0));
        assert!(serves, "seed {seed}: {status:?}");
        write_some(&mut cluster, behind, 0, 20);
        assert_eq!(cluster.core(behind).stats().snapshots_installed, 1, "seed {seed}");
        cluster.start(dead.node.get());
        cluster.assert_replicas_agree();
    }
}
