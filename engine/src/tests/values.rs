//! Values that are not in memory: reads from the log, commands that wait for them, moving them
//! out of old segments, and checkpoints that know where they are.

use std::collections::BTreeMap;

use coracle_raft::{GroupId, LogIndex};

use super::checkpoint::full_checkpoint;
use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, ReadMode, Reply, Token, Via};

/// A cluster that keeps no value in memory longer than it must.
pub(super) fn cluster(seed: u64) -> Cluster {
    let options = ClusterOptions { groups: 2, shards: 4, seed, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| {
        config.cache_bytes_max = 512 << 10;
        config.value_cache_bytes_max = 0;
        config.computed_bytes_max = 0;
        // Some tests depend on which entries meet in a step.
        config.check_interval_ticks = 0;
    });
    cluster.wait_for_leaders();
    cluster
}

pub(super) fn long(n: u32) -> String {
    format!("{n:0>90}")
}

/// What the keys should hold.
pub(super) type Model = BTreeMap<String, String>;

/// Random overwrites and appends of long values.
pub(super) fn write_long(cluster: &mut Cluster, model: &mut Model, range: std::ops::Range<u32>) {
    for n in range {
        let key = format!("v{}", n * 7 % 40);
        let value = long(n);
        let command = match n % 4 {
            0 => format!("APPEND {key} {value}"),
            3 if n % 5 == 0 => format!("GETDEL {key}"),
            _ => format!("SET {key} {value}"),
        };
        let reply = cluster.call(addr(1 + n % 3, 0), &command);
        assert!(!show(&reply).starts_with('-'), "{command}: {reply:?}");
        match command.split(' ').next() {
            Some("APPEND") => model.entry(key).or_default().push_str(&value),
            Some("GETDEL") => {
                let want = model.remove(&key).map_or("_".into(), |value| format!("${value}"));
                assert_eq!(show(&reply), want, "{command}");
            }
            _ => drop(model.insert(key, value)),
        }
    }
}

pub(super) fn check(cluster: &mut Cluster, model: &Model) {
    for n in 0..40 {
        let key = format!("v{n}");
        let at = addr(1 + n % 3, 0);
        let args: &[&[u8]] = &[b"GET", key.as_bytes()];
        let token = cluster.submit_as(at, Via::Plain, ReadMode::AnyReplica, false, args);
        let want = model.get(&key).map_or("_".to_owned(), |value| format!("${value}"));
        assert_eq!(show(&cluster.wait(token)), want, "{key} at {at}");
    }
}

fn restart(cluster: &mut Cluster, lose_newest_checkpoint: bool) {
    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        if lose_newest_checkpoint {
            cluster.lose_newest_checkpoint(node);
        }
        cluster.start(node);
    }
    cluster.wait_for_leaders();
}

fn read_count(cluster: &Cluster) -> u64 {
    (1..=3).map(|node| cluster.core(addr(node, 0)).stats().values_read).sum()
}

/// Every command that needs a long value gets it from the log, and answers as if it were in memory.
#[test]
fn cold_values_are_read_when_they_are_needed() {
    let mut cluster = cluster(1);
    let at = addr(1, 0);
    let (a, b) = (long(1), long(2));
    let cases: &[(&str, String)] = &[
        ("GET {t}a", format!("${a}")),
        ("STRLEN {t}a", ":90".into()),
        ("EXISTS {t}a {t}b", ":2".into()),
        ("GETRANGE {t}a -2 -1", "$01".into()),
        ("GETRANGE {t}a 5 4", "$".into()),
        ("MGET {t}a {t}none {t}b {t}a", format!("[${a} _ ${b} ${a}]")),
        ("SET {t}a z XX GET", format!("${a}")),
        ("GET {t}a", "$z".into()),
        ("GETSET {t}b zz", format!("${b}")),
    ];
    cluster.call(at, &format!("MSET {{t}}a {a} {{t}}b {b}"));
    for (command, want) in cases {
        assert_eq!(show(&cluster.call(at, command)), *want, "{command}");
    }
    cluster.call(at, &format!("SET c {a}"));
    assert_eq!(show(&cluster.call(at, "INCR c")), "-ERR value is not an integer or out of range");
    assert_eq!(show(&cluster.call(at, &format!("APPEND c {b}"))), ":180");
    assert_eq!(show(&cluster.call(at, "GET c")), format!("${a}{b}"));
    assert_eq!(show(&cluster.call(at, "SETRANGE c 89 xy")), ":180");
    assert_eq!(show(&cluster.call(at, "GETDEL c")), format!("${}xy{}", &a[..89], &b[1..]));
    assert_eq!(show(&cluster.call(at, "GET c")), "_");
    let read = read_count(&cluster);
    assert!(read > 10, "only {read} values came from the log");
    cluster.assert_replicas_agree();
}

/// Commands that wait for a value keep their order, reads between them see what was before them,
/// and other shards do not wait.
#[test]
pub(super) fn a_shard_that_waits_keeps_its_order() {
    let mut cluster = cluster(2);
    let at = cluster.leader(0).unwrap();
    cluster.call(at, &format!("SET {{s}}k {}", long(0)));
    let mut tokens: Vec<(Token, String)> = Vec::new();
    let mut want = long(0);
    for n in 1..30 {
        let part = long(n);
        let args: &[&[u8]] = &[b"APPEND", b"{s}k", part.as_bytes()];
        want.push_str(&part);
        tokens.push((cluster.submit(at, args), format!(":{}", want.len())));
        if n % 3 == 0 {
            let other: &[&[u8]] = &[b"SET", b"{s}other", part.as_bytes()];
            tokens.push((cluster.submit(at, other), "+OK".into()));
        }
    }
    for (token, want) in tokens {
        assert_eq!(show(&cluster.wait(token)), want);
    }
    assert_eq!(show(&cluster.call(at, "GET {s}k")), format!("${want}"));
    assert_eq!(show(&cluster.call(at, "GET {s}other")), format!("${}", long(27)));
    cluster.assert_replicas_agree();
}

/// Old segments are emptied and released while values are overwritten; what is not overwritten
/// moves on and can be read, before and after a restart.
#[test]
pub(super) fn values_move_out_of_old_segments() {
    for seed in 1..=4 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        for n in 0..10 {
            let (key, value) = (format!("v{}", 30 + n), long(1000 + n));
            cluster.call(addr(1, 0), &format!("SET {key} {value}"));
            model.insert(key, value);
        }
        for part in 0..12 {
            write_long(&mut cluster, &mut model, part * 40..part * 40 + 40);
            full_checkpoint(&mut cluster, 1 << 20, 1);
            for _ in 0..30 {
                cluster.checkpoint(200);
                cluster.run(2);
            }
            check(&mut cluster, &model);
        }
        for node in 1..=3 {
            let stats = cluster.core(addr(node, 0)).stats();
            assert!(stats.moved_bytes > 0, "seed {seed}: nothing was moved on node {node}");
            let (kept, last) = cluster.segments(addr(node, 0));
            assert!(kept.start > 5, "seed {seed}: node {node} keeps segments {kept:?} of {last}");
        }
        cluster.assert_replicas_agree();
        restart(&mut cluster, false);
        check(&mut cluster, &model);
        write_long(&mut cluster, &mut model, 1000..1040);
        check(&mut cluster, &model);
        cluster.assert_replicas_agree();
    }
}

/// A damaged checkpoint costs nothing: the one before it is there with all that it refers to, in
/// the log and among the values.
#[test]
pub(super) fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        for part in 0..6 {
            write_long(&mut cluster, &mut model, part * 40..part * 40 + 40);
            full_checkpoint(&mut cluster, 1 << (8 + 2 * seed), 1);
            for _ in 0..seed * 10 {
                cluster.checkpoint(200);
                cluster.run(2);
            }
        }
        restart(&mut cluster, true);
        check(&mut cluster, &model);
        cluster.assert_replicas_agree();
        write_long(&mut cluster, &mut model, 1000..1040);
        full_checkpoint(&mut cluster, 1 << 20, 2);
        restart(&mut cluster, true);
        check(&mut cluster, &model);
        cluster.assert_replicas_agree();
    }
}

fn base(cluster: &Cluster, at: CoreAddr) -> LogIndex {
    cluster.core(at).group_status(GroupId::new(0)).unwrap().base
}

/// A snapshot whose values its leader must read first arrives whole, is recovered from the log
/// before any checkpoint holds it, and from the log again if the first checkpoint after it is lost.
#[test]
pub(super) fn a_snapshot_of_cold_values_arrives() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let victim = 1 + (seed % 3) as u32;
        let mut model = Model::new();
        write_long(&mut cluster, &mut model, 0..80);
        cluster.kill(victim);
        cluster.run(1500);
        let other = addr(victim % 3 + 1, 0);
        for n in 0..60 {
            let (key, value) = (format!("v{}", n * 3 % 40), long(5000 + n));
            assert_eq!(cluster.call(other, &format!("SET {key} {value}")), Reply::OK);
            model.insert(key, value);
        }
        for _ in 0..4000 {
            if base(&cluster, other) > LogIndex::new(40) {
                break;
            }
            cluster.checkpoint(1 << 20);
            cluster.run(1);
        }
        assert!(base(&cluster, other) > LogIndex::new(40), "the log was not cut");
        cluster.start(victim);
        cluster.assert_replicas_agree();
        let at = addr(victim, 0);
        assert!(cluster.core(at).stats().snapshots_installed > 0, "seed {seed}");
        check(&mut cluster, &model);
        cluster.kill(victim);
        cluster.start(victim);
        cluster.assert_replicas_agree();
        check(&mut cluster, &model);
        full_checkpoint(&mut cluster, 1 << 20, 1);
        cluster.run(50);
        cluster.kill(victim);
        cluster.lose_newest_checkpoint(victim);
        cluster.start(victim);
        cluster.assert_replicas_agree();
        check(&mut cluster, &model);
    }
}

/// A replica may apply what its own disk does not have yet. A checkpoint of that is good only once
/// the disk has it.
#[test]
pub(super) fn a_checkpoint_waits_for_what_it_refers_to() {
    for seed in 1..=4 {
        let mut cluster = cluster(seed);
        let victim = 1 + (seed % 3) as u32;
        let other = addr(victim % 3 + 1, 0);
        let mut model = Model::new();
        write_long(&mut cluster, &mut model, 0..40);
        for group in 0..2 {
            let core = cluster.core_mut(addr(victim, 0));
            core.transfer_leadership(GroupId::new(group), other.node);
        }
        cluster.run(100);
        cluster.freeze_disk(victim, true);
        for n in 0..40 {
            let (key, value) = (format!("v{n}"), long(7000 + n));
            assert_eq!(cluster.call(other, &format!("SET {key} {value}")), Reply::OK);
            model.insert(key, value);
        }
        cluster.run(50);
        for _ in 0..50 {
            cluster.checkpoint_on(addr(victim, 0), 1 << 20);
            cluster.run(1);
        }
        cluster.kill(victim);
        cluster.start(victim);
        cluster.freeze_disk(victim, false);
        cluster.assert_replicas_agree();
        for n in 0..40 {
            let at = addr(victim, 0);
            let key = format!("v{n}");
            let args: &[&[u8]] = &[b"GET", key.as_bytes()];
            let token = cluster.submit_as(at, Via::Plain, ReadMode::AnyReplica, false, args);
            assert_eq!(show(&cluster.wait(token)), format!("${}", model[&key]), "{key}");
        }
    }
}

/// Computed values beyond the limit are written to the log, once each, and leave memory.
#[test]
fn computed_values_are_written_out() {
    let mut cluster = cluster(3);
    let at = addr(1, 0);
    for n in 0..200 {
        let key = format!("k{}", n % 20);
        cluster.call(at, &format!("APPEND {key} {}", long(n)));
    }
    cluster.run(100);
    for node in 1..=3 {
        let core = cluster.core(addr(node, 0));
        assert_eq!(core.totals.dirty, 0, "node {node} keeps computed values in memory");
        assert!(core.live_bytes() > 20 * 900);
    }
    assert_eq!(show(&cluster.call(at, "STRLEN k3")), ":900");
    cluster.assert_replicas_agree();
}

/// A leader that cannot read a value which a follower's snapshot needs gets it from another
/// replica (seed `mix 20 811461032244`: it began the same snapshot for ever).
#[test]
fn a_snapshot_that_its_leader_cannot_read_comes_from_another() {
    for seed in 1..=3 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        write_long(&mut cluster, &mut model, 0..80);
        let leader = cluster.leader(0).unwrap();
        let victim = leader.node.get() % 3 + 1;
        cluster.kill(victim);
        for n in 0..60 {
            let (key, value) = (format!("v{}", n * 3 % 40), long(5000 + n));
            assert_eq!(cluster.call(leader, &format!("SET {key} {value}")), Reply::OK);
            model.insert(key, value);
        }
        for _ in 0..4000 {
            if base(&cluster, leader) > LogIndex::new(40) {
                break;
            }
            cluster.checkpoint(1 << 20);
            cluster.run(1);
        }
        assert!(base(&cluster, leader) > LogIndex::new(40), "the log was not cut");
        let leader = cluster.leader(0).unwrap();
        for value in model.values() {
            cluster.damage_values(leader, value.as_bytes());
        }
        cluster.start(victim);
        cluster.assert_replicas_agree();
        let installed = cluster.core(addr(victim, 0)).stats().snapshots_installed;
        assert!(installed > 0, "seed {seed}");
        assert!(cluster.core(leader).stats().values_repaired > 0, "seed {seed}");
    }
}
