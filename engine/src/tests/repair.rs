//! Values that a replica's disk does not give any more, and what becomes of those who need them.

use coracle_raft::{GroupId, LogIndex};

use super::checkpoint::{base, full_checkpoint};
use super::values::{cluster, long};
use super::{show, values};
use crate::testing::{Cluster, addr, map_of};
use crate::{CoreAddr, CoreStats, ReadMode, Reply, SlotId, Via};

/// Keys of the first group.
fn keys() -> impl Iterator<Item = String> {
    let map = map_of(3, 1, 4, 2);
    let here =
        move |key: &String| map.group_of_slot(SlotId::of_key(key.as_bytes())) == GroupId::new(0);
    (0..).map(|n| format!("{{{n}}}")).filter(here)
}

fn set(cluster: &mut Cluster, key: &str, value: &str) {
    let at = addr(1, 0);
    assert_eq!(cluster.call(at, &format!("SET {key} {value}")), Reply::OK);
}

/// What a replica itself answers.
fn read_at(cluster: &mut Cluster, at: CoreAddr, key: &str) -> String {
    let args: &[&[u8]] = &[b"GET", key.as_bytes()];
    let token = cluster.submit_as(at, Via::Plain, ReadMode::AnyReplica, false, args);
    show(&cluster.wait(token))
}

fn stats(cluster: &Cluster, at: CoreAddr) -> CoreStats {
    cluster.core(at).stats()
}

fn repaired(cluster: &Cluster) -> [u64; 3] {
    [1, 2, 3].map(|node| stats(cluster, addr(node, 0)).values_repaired)
}

fn followers(leader: CoreAddr) -> [CoreAddr; 2] {
    let node = leader.node.get();
    [addr(node % 3 + 1, 0), addr((node + 1) % 3 + 1, 0)]
}

/// The value of a damaged record comes from another replica and stands in the log once more; the
/// leader goes on leading.
#[test]
pub(super) fn a_damaged_value_is_fetched_from_another_replica() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let leader = cluster.leader(0).unwrap();
        let at = if seed % 2 == 0 { leader } else { followers(leader)[0] };
        let key = keys().next().unwrap();
        set(&mut cluster, &key, &long(1));
        cluster.assert_replicas_agree();
        cluster.damage_values(at, long(1).as_bytes());
        let want = format!("${}", long(1));
        assert_eq!(read_at(&mut cluster, at, &key), want, "seed {seed}");
        let seen = stats(&cluster, at);
        assert_eq!((seen.values_damaged, seen.values_repaired, seen.repairs_open), (1, 1, 0));
        assert_eq!((cluster.leader(0), seen.leaderships_shed), (Some(leader), 0), "seed {seed}");
        cluster.run(50);
        let failed = seen.failed_reads;
        assert_eq!(read_at(&mut cluster, at, &key), want, "seed {seed}");
        assert_eq!(stats(&cluster, at).failed_reads, failed, "it is read from its new place");
        let lent: u64 = (1..=3).map(|node| stats(&cluster, addr(node, 0)).values_lent).sum();
        assert_eq!(lent, 1, "seed {seed}: asked for once");
        // The new place is in the log that a restart reads.
        full_checkpoint(&mut cluster, 1 << 20, 2);
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.start(node);
        }
        cluster.wait_for_leaders();
        assert_eq!(read_at(&mut cluster, at, &key), want, "seed {seed}");
        assert_eq!(stats(&cluster, at).failed_reads, 0, "seed {seed}");
    }
}

/// Damage on all replicas in different places costs nothing, also where two of three have lost the
/// same value.
#[test]
pub(super) fn damage_on_all_replicas_is_repaired() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let keys: Vec<String> = keys().take(24).collect();
        for (n, key) in (0..).zip(&keys) {
            set(&mut cluster, key, &long(100 + n));
        }
        cluster.assert_replicas_agree();
        for n in 0..24 {
            let node = n % 3 + 1;
            cluster.damage_values(addr(node, 0), long(100 + n).as_bytes());
            if n >= 12 {
                cluster.damage_values(addr(node % 3 + 1, 0), long(100 + n).as_bytes());
            }
        }
        for node in 1..=3 {
            for (n, key) in (0..).zip(&keys) {
                let want = format!("${}", long(100 + n));
                assert_eq!(read_at(&mut cluster, addr(node, 0), key), want, "{key} at {node}");
            }
        }
        // Two replicas may refuse each other before the third one is asked.
        assert_eq!(repaired(&cluster).iter().sum::<u64>(), 36, "seed {seed}");
        cluster.assert_replicas_agree();
    }
}

/// A shard whose command needs a damaged value goes on: with the old value while others have it,
/// and with the result of the command, or of a later one, when they have passed it by.
#[test]
pub(super) fn a_shard_that_waits_for_a_damaged_value_goes_on() {
    for seed in 1..=12 {
        let mut cluster = cluster(seed);
        let leader = cluster.leader(0).unwrap();
        let all = [leader, followers(leader)[0], followers(leader)[1]];
        let at = all[seed as usize % 3];
        let keys: Vec<String> = keys().take(6).collect();
        for (n, key) in (0..).zip(&keys) {
            set(&mut cluster, key, &long(n));
        }
        cluster.assert_replicas_agree();
        for n in 0..6 {
            cluster.damage_values(at, long(n).as_bytes());
        }
        let commands = [
            format!("APPEND {} {}", keys[0], long(50)),
            format!("SETRANGE {} 200 end", keys[1]),
            format!("APPEND {} x", keys[2]),
            format!("APPEND {} y", keys[3]),
            format!("APPEND {} z", keys[2]),
            format!("PEXPIRE {} 10000000", keys[2]),
            format!("DEL {}", keys[3]),
            format!("APPEND {} x", keys[4]),
            format!("SET {} {}", keys[4], long(60)),
            format!("APPEND {} x", keys[4]),
        ];
        let sender = followers(leader)[1];
        let sent = commands.iter().map(|command| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            cluster.submit(sender, &args)
        });
        let sent: Vec<_> = sent.collect();
        for (token, command) in sent.into_iter().zip(&commands) {
            let reply = show(&cluster.wait(token));
            assert!(!reply.starts_with('-'), "seed {seed}, {command}: {reply}");
        }
        cluster.assert_replicas_agree();
        let want = [
            format!("${}{}", long(0), long(50)),
            format!("${}{}end", long(1), "\0".repeat(110)),
            format!("${}xz", long(2)),
            "_".to_owned(),
            format!("${}x", long(60)),
            format!("${}", long(5)),
        ];
        for node in 1..=3 {
            for (key, want) in keys.iter().zip(&want) {
                assert_eq!(read_at(&mut cluster, addr(node, 0), key), *want, "{seed}: {key}");
            }
        }
        assert_eq!(stats(&cluster, at).repairs_open, 0, "seed {seed}");
        full_checkpoint(&mut cluster, 1 << 20, 1);
    }
}

/// The bytes that another replica has are put in where they belong, also if they are those of a
/// version that is far ahead of what this replica has applied.
#[test]
pub(super) fn a_shard_goes_on_with_what_is_far_ahead() {
    for seed in 1..=8 {
        let mut cluster = cluster(seed);
        let leader = cluster.leader(0).unwrap();
        let at = followers(leader)[0];
        let key = keys().next().unwrap();
        set(&mut cluster, &key, &long(1));
        cluster.assert_replicas_agree();
        cluster.damage_values(at, long(1).as_bytes());
        cluster.isolate(at.node.get());
        let mut want = long(1);
        for n in 0..40 {
            cluster.call(leader, &format!("APPEND {key} {n}"));
            want.push_str(&n.to_string());
        }
        cluster.heal();
        cluster.assert_replicas_agree();
        assert_eq!(read_at(&mut cluster, at, &key), format!("${want}"), "seed {seed}");
        let seen = stats(&cluster, at);
        assert_eq!((seen.values_repaired, seen.repairs_open), (1, 0), "seed {seed}");
        cluster.kill(at.node.get());
        cluster.start(at.node.get());
        cluster.assert_replicas_agree();
        assert_eq!(read_at(&mut cluster, at, &key), format!("${want}"), "seed {seed}");
    }
}

/// A replica that cannot tell is not taken for one that has passed the command by: while nobody
/// has the value, the shard waits, and it goes on as soon as somebody has it.
#[test]
pub(super) fn a_shard_waits_while_no_replica_has_the_value() {
    let mut cluster = cluster(3);
    let leader = cluster.leader(0).unwrap();
    let [whole, other] = followers(leader);
    let key = keys().next().unwrap();
    set(&mut cluster, &key, &long(1));
    cluster.assert_replicas_agree();
    for at in [leader, other] {
        cluster.damage_values(at, long(1).as_bytes());
    }
    cluster.kill(whole.node.get());
    let token = cluster.submit(leader, &[b"APPEND", key.as_bytes(), b"x"]);
    let reply = show(&cluster.wait(token));
    assert!(reply.starts_with("-UNCERTAIN") || reply.starts_with("-TRYAGAIN"), "{reply}");
    for at in [leader, other] {
        let seen = stats(&cluster, at);
        assert_eq!(seen.values_repaired, 0, "{at}");
        assert!(seen.repairs_failed > 0, "{at}");
    }
    let other_key = keys().find(|other| {
        map_of(3, 1, 4, 2).shard_of(SlotId::of_key(other.as_bytes()))
            != map_of(3, 1, 4, 2).shard_of(SlotId::of_key(key.as_bytes()))
    });
    assert_eq!(cluster.call(leader, &format!("SET {} v", other_key.unwrap())), Reply::OK);
    cluster.start(whole.node.get());
    cluster.assert_replicas_agree();
    for node in 1..=3 {
        assert_eq!(read_at(&mut cluster, addr(node, 0), &key), format!("${}x", long(1)), "{node}");
    }
}

/// A snapshot whose leader cannot read some of its values arrives whole.
#[test]
pub(super) fn a_snapshot_with_damaged_values_arrives() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let leader = cluster.leader(0).unwrap();
        let victim = followers(leader)[0];
        let keys: Vec<String> = keys().take(30).collect();
        for (n, key) in (0..).zip(&keys) {
            set(&mut cluster, key, &long(n));
        }
        cluster.kill(victim.node.get());
        cluster.run(1500);
        for (n, key) in (0..).zip(&keys) {
            cluster.call(followers(leader)[1], &format!("SET {key} {}", long(500 + n)));
        }
        for _ in 0..4000 {
            if base(&cluster, followers(leader)[1], 0) > LogIndex::new(31)
                && base(&cluster, leader, 0) > LogIndex::new(31)
            {
                break;
            }
            cluster.checkpoint(1 << 20);
            cluster.run(1);
        }
        // Some here, others there.
        for n in 0..30 {
            let at = if n % 2 == 0 { leader } else { followers(leader)[1] };
            if n % 5 < 2 {
                cluster.damage_values(at, long(500 + n).as_bytes());
            }
        }
        cluster.start(victim.node.get());
        cluster.assert_replicas_agree();
        assert!(stats(&cluster, victim).snapshots_installed > 0, "seed {seed}");
        assert!(repaired(&cluster).iter().sum::<u64>() > 0, "seed {seed}");
        for (n, key) in (0..).zip(&keys) {
            assert_eq!(read_at(&mut cluster, victim, key), format!("${}", long(500 + n)));
        }
    }
}

/// A segment with values that cannot be read is emptied all the same, and used again.
#[test]
pub(super) fn a_segment_with_damaged_values_is_emptied() {
    for seed in 1..=4 {
        let mut cluster = cluster(seed);
        for n in 0..20 {
            set(&mut cluster, &format!("once{n}"), &long(1000 + n));
        }
        cluster.assert_replicas_agree();
        for n in 0..20 {
            cluster.damage_values(addr(n % 3 + 1, 0), long(1000 + n).as_bytes());
        }
        for part in 0..10 {
            for n in 0..40 {
                set(&mut cluster, &format!("often{n}"), &long(part * 40 + n));
            }
            full_checkpoint(&mut cluster, 1 << 20, 1);
            for _ in 0..30 {
                cluster.checkpoint(200);
                cluster.run(2);
            }
        }
        for node in 1..=3 {
            let (kept, last) = cluster.segments(addr(node, 0));
            assert!(kept.start > 5, "seed {seed}: node {node} keeps segments {kept:?} of {last}");
            assert!(stats(&cluster, addr(node, 0)).values_repaired > 3, "seed {seed}: {node}");
            for n in 0..20 {
                let want = format!("${}", long(1000 + n));
                assert_eq!(read_at(&mut cluster, addr(node, 0), &format!("once{n}")), want);
            }
        }
        cluster.assert_replicas_agree();
    }
}

/// Of a value that all replicas have lost nobody invents anything. What is beside it goes on, and
/// the next write heals the key.
#[test]
fn a_value_that_all_replicas_have_lost_is_not_invented() {
    let mut cluster = cluster(5);
    let keys: Vec<String> = keys().take(2).collect();
    set(&mut cluster, &keys[0], &long(1));
    set(&mut cluster, &keys[1], &long(2));
    cluster.assert_replicas_agree();
    for node in 1..=3 {
        cluster.damage_values(addr(node, 0), long(1).as_bytes());
    }
    let read = cluster.call(addr(1, 0), &format!("GET {}", keys[0]));
    assert!(matches!(read, Reply::Error(_)), "{read:?}");
    assert_eq!(
        show(&cluster.call(addr(2, 0), &format!("GET {}", keys[1]))),
        format!("${}", long(2))
    );
    set(&mut cluster, &keys[0], &long(3));
    cluster.assert_replicas_agree();
    for node in 1..=3 {
        assert_eq!(read_at(&mut cluster, addr(node, 0), &keys[0]), format!("${}", long(3)));
        cluster.run(500);
        assert_eq!(stats(&cluster, addr(node, 0)).repairs_open, 0);
    }
}

/// Random overwrites and appends, damage everywhere but where a value was damaged already, values
/// moved and nodes restarted meanwhile: every replica has what was written.
#[test]
pub(super) fn random_damage_is_repaired() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let mut model = values::Model::new();
        for part in 0..10 {
            values::write_long(&mut cluster, &mut model, part * 40..part * 40 + 40);
            cluster.assert_replicas_agree();
            for (n, value) in (part..).zip(model.values()) {
                // What was written last; its copies on two replicas are whole.
                let last = &value[value.len() - 90..];
                cluster.damage_values(addr(n % 3 + 1, 0), last.as_bytes());
            }
            full_checkpoint(&mut cluster, 1 << 20, 1);
            let node = part % 3 + 1;
            cluster.kill(node);
            cluster.start(node);
            cluster.wait_for_leaders();
            for _ in 0..20 {
                cluster.checkpoint(200);
                cluster.run(2);
            }
            values::check(&mut cluster, &model);
        }
        cluster.assert_replicas_agree();
        // Counted since their last starts.
        assert!(repaired(&cluster).iter().sum::<u64>() > 15, "{:?}", repaired(&cluster));
    }
}
