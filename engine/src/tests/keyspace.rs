//! Commands on the whole keyspace: what they cover, what they promise, what they leave behind.

use std::collections::{BTreeMap, BTreeSet};

use coracle_raft::{GroupId, LogIndex, NodeId};

use super::checkpoint::{base, full_checkpoint, write_some};
use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, ReadMode, Reply, Via};

fn cluster(seed: u64) -> Cluster {
    let options = ClusterOptions { cores: 2, shards: 16, seed, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    cluster
}

fn call_as(cluster: &mut Cluster, at: CoreAddr, via: Via, command: &str) -> Reply {
    let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    let token = cluster.submit_as(at, via, ReadMode::Leader, false, &args);
    cluster.wait(token)
}

fn texts(reply: &Reply) -> Vec<String> {
    let Reply::Array(items) = reply else { panic!("{reply:?}") };
    items.iter().map(|item| show(item).trim_start_matches('$').to_owned()).collect()
}

/// One call of a scan: the next cursor and the keys.
fn scan(cluster: &mut Cluster, at: CoreAddr, via: Via, command: &str) -> (u64, Vec<String>) {
    let reply = call_as(cluster, at, via, command);
    let Reply::Array(fields) = &reply else { panic!("{command}: {reply:?}") };
    let cursor: u64 = show(&fields[0])[1..].parse().expect("a number");
    assert!(cursor < 1 << 53, "{cursor} is no exact number in every language");
    (cursor, texts(&fields[1]))
}

/// A whole scan, with something done between its calls.
fn scan_all(
    cluster: &mut Cluster,
    at: CoreAddr,
    via: Via,
    options: &str,
    mut between: impl FnMut(&mut Cluster, usize),
) -> Vec<String> {
    let (mut cursor, mut seen) = (0, Vec::new());
    for call in 0..10_000 {
        let (next, keys) = scan(cluster, at, via, &format!("SCAN {cursor}{options}"));
        assert!(next == 0 || next > cursor, "the cursor goes from {cursor} to {next}");
        seen.extend(keys);
        if next == 0 {
            return seen;
        }
        cursor = next;
        between(cluster, call);
    }
    panic!("the scan never ends");
}

fn fill(cluster: &mut Cluster, count: u32) -> BTreeSet<String> {
    let keys: BTreeSet<String> = (0..count).map(|n| format!("k{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        let at = addr(1 + n as u32 % 3, n as u16 % 2);
        assert_eq!(cluster.call(at, &format!("SET {key} v")), Reply::OK);
    }
    keys
}

fn led(cluster: &Cluster, at: CoreAddr) -> BTreeSet<u32> {
    (0..4).filter(|&group| cluster.leader(group) == Some(at)).collect()
}

fn group_of(cluster: &Cluster, key: &str) -> u32 {
    cluster.map().group_of_slot(crate::SlotId::of_key(key.as_bytes())).get()
}

/// The plain port shows everything from any core, a core's port what that core leads, each key
/// once; DBSIZE, KEYS and RANDOMKEY agree with that.
#[test]
fn plain_ports_cover_everything_and_core_ports_their_part() {
    let mut cluster = cluster(1);
    let keys = fill(&mut cluster, 300);
    let mut by_endpoint = BTreeMap::new();
    for at in cluster.map().cores().collect::<Vec<_>>() {
        for count in ["", " COUNT 1", " COUNT 7", " COUNT 100000"] {
            let seen = scan_all(&mut cluster, at, Via::Plain, count, |_, _| ());
            assert_eq!(seen.len(), 300, "{at}{count}: each once");
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), keys, "{at}{count}");
        }
        assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(300));
        let all = cluster.call(at, "KEYS k*");
        assert_eq!(texts(&all).into_iter().collect::<BTreeSet<_>>(), keys);
        let leads = led(&cluster, at);
        let mine: BTreeSet<String> =
            keys.iter().filter(|key| leads.contains(&group_of(&cluster, key))).cloned().collect();
        let seen = scan_all(&mut cluster, at, Via::Core, " COUNT 20", |_, _| ());
        assert_eq!(seen.len(), mine.len(), "{at}: each once");
        assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), mine, "{at}");
        let size = call_as(&mut cluster, at, Via::Core, "DBSIZE");
        assert_eq!(size, Reply::Integer(mine.len() as i64));
        assert_eq!(texts(&call_as(&mut cluster, at, Via::Core, "KEYS *")).len(), mine.len());
        let random = call_as(&mut cluster, at, Via::Core, "RANDOMKEY");
        assert_eq!(mine.is_empty(), random == Reply::Null, "{at}: {random:?}");
        by_endpoint.insert(at, seen);
    }
    let union: Vec<String> = by_endpoint.into_values().flatten().collect();
    assert_eq!(union.len(), 300, "the endpoints together show every key once");
}

/// A call looks at no more than COUNT keys, and a whole keyspace of few keys needs few calls.
#[test]
fn calls_of_a_scan_are_bounded() {
    let mut cluster = cluster(2);
    let at = addr(1, 0);
    assert_eq!(scan(&mut cluster, at, Via::Plain, "SCAN 0"), (0, vec![]));
    for n in 0..40 {
        let pairs: Vec<String> = (0..100).map(|i| format!("{{{}}}{n}.{i} v", n % 4)).collect();
        assert_eq!(cluster.call(at, &format!("MSET {}", pairs.join(" "))), Reply::OK);
    }
    for (count, most) in [(1, 1), (10, 10), (999, 999), (3000, 3000)] {
        let mut calls = 0;
        let mut cursor = 0;
        loop {
            let command = format!("SCAN {cursor} COUNT {count}");
            let (next, keys) = scan(&mut cluster, at, Via::Plain, &command);
            assert!(keys.len() <= most, "{} keys for COUNT {count}", keys.len());
            calls += 1;
            cursor = next;
            if next == 0 || calls == 500 {
                break;
            }
        }
        assert!(calls <= 4000 / most + 6, "{calls} calls of {count}");
    }
    let (next, keys) = scan(&mut cluster, at, Via::Plain, "SCAN 0 COUNT 10 MATCH no-key");
    assert!(next > 0 && keys.is_empty(), "keys that do not match count as looked at");
}

/// What is there from beginning to end is found, whatever grows and shrinks, and whoever leads
/// (Redis, "SCAN guarantees").
#[test]
pub(super) fn scans_find_what_stays() {
    for seed in 1..=4 {
        let mut cluster = cluster(seed);
        let keys = fill(&mut cluster, 150);
        let tagged: Vec<String> = (0..300).map(|n| format!("{{t}}{n}")).collect();
        for key in &tagged {
            cluster.call(addr(1, 0), &format!("SET {key} v"));
        }
        let seen = scan_all(&mut cluster, addr(2, 1), Via::Plain, " COUNT 9", |cluster, call| {
            // In the same slots, so that their tables are cut and joined.
            let pairs: Vec<String> = (0..300).map(|n| format!("{{t}}x{n}")).collect();
            if call % 8 < 4 {
                cluster.call(addr(3, 0), &format!("MSET {} v", pairs.join(" v ")));
            } else {
                cluster.call(addr(3, 0), &format!("DEL {}", pairs.join(" ")));
            }
            if call % 10 == 9 {
                let group = call as u32 / 10 % 4;
                let leader = cluster.leader(group).unwrap();
                let to = NodeId::new(leader.node.get() % 3 + 1);
                cluster.core_mut(leader).transfer_leadership(GroupId::new(group), to);
                cluster.run(200);
            }
        });
        let seen: BTreeSet<String> = seen.into_iter().collect();
        let missed: Vec<_> =
            keys.iter().chain(&tagged).filter(|key| !seen.contains(*key)).collect();
        assert!(missed.is_empty(), "seed {seed}: missed {missed:?}");
    }
}

/// Cluster clients scan endpoint by endpoint: a group whose leadership moves meanwhile, in either
/// direction, is not missed.
#[test]
fn scans_of_all_endpoints_miss_no_group_that_moves() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut cluster = cluster(3);
        let keys = fill(&mut cluster, 120);
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let moved = GroupId::new(0);
        let from = cluster.leader(0).unwrap();
        let to = addr(from.node.get() % 3 + 1, from.core.0);
        // Of the two endpoints one is scanned before the move and the other after it.
        let order = if first == 1 { [to, from] } else { [from, to] };
        assert_ne!(first, second);
        seen.extend(scan_all(&mut cluster, order[0], Via::Core, "", |_, _| ()));
        cluster.core_mut(from).transfer_leadership(moved, to.node);
        assert!(cluster.run_until(2000, |c| c.leader(0) == Some(to)), "it does not move");
        for at in cluster.map().cores().filter(|&at| at != order[0]).collect::<Vec<_>>() {
            seen.extend(scan_all(&mut cluster, at, Via::Core, "", |_, _| ()));
        }
        assert_eq!(seen, keys, "the endpoint of {} first", order[0]);
    }
}

/// A leader that was cut off answers no scan from what it has (thesis §6.4).
pub(super) fn a_deposed_leader_answers_no_scan() {
    let options = ClusterOptions { groups: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    let old = cluster.leader(0).unwrap();
    cluster.call(old, "SET before v");
    cluster.isolate(old.node.get());
    let led = |cluster: &Cluster| cluster.leader(0).is_some_and(|at| at != old);
    assert!(cluster.run_until(2000, led));
    let new = cluster.leader(0).unwrap();
    assert_eq!(cluster.call(new, "FLUSHALL"), Reply::OK);
    for command in ["SCAN 0", "KEYS *", "RANDOMKEY", "DBSIZE"] {
        let reply = show(&cluster.call(old, command));
        assert!(reply.starts_with('-'), "stale: {command} shows {reply}");
    }
}

#[test]
fn deposed_leaders_answer_no_scan() {
    a_deposed_leader_answers_no_scan();
}

/// Every key is drawn about as often as any other, wherever it is.
#[test]
fn random_keys_are_uniform() {
    let mut cluster = cluster(4);
    // Three keys of one slot, and others alone in theirs.
    let keys = ["{a}1", "{a}2", "{a}3", "b", "c", "d", "e", "f"];
    for key in keys {
        cluster.call(addr(1, 0), &format!("SET {key} v"));
    }
    let mut counts = BTreeMap::new();
    for n in 0..1600 {
        let reply = cluster.call(addr(1 + n % 3, 0), "RANDOMKEY");
        *counts.entry(show(&reply)).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), keys.len(), "{counts:?}");
    // 200 each; six standard deviations are 79.
    assert!(counts.values().all(|&count| (121..=279).contains(&count)), "{counts:?}");
}

/// Keys past their time are not shown, before and after they leave memory; whoever asks.
#[test]
fn expired_keys_are_not_shown() {
    let options = ClusterOptions { tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    for n in 0..40 {
        let ttl = if n % 2 == 0 { "" } else { " PX 1000" };
        cluster.call(addr(1, 0), &format!("SET k{n} v{ttl}"));
    }
    for (ms, want) in [(999, 40), (1, 20)] {
        cluster.advance_wall(ms);
        for node in 1..=3 {
            let at = addr(node, 0);
            assert_eq!(texts(&cluster.call(at, "KEYS *")).len(), want);
            let seen = scan_all(&mut cluster, at, Via::Plain, "", |_, _| ());
            assert_eq!(seen.len(), want);
        }
    }
    for _ in 0..60 {
        let key = show(&cluster.call(addr(1, 0), "RANDOMKEY"));
        let number: u32 = key[2..].parse().unwrap();
        assert_eq!(number % 2, 0, "{key} has expired");
    }
}

/// Many keys that are due at once go in batches, each bounded, each the same on every replica, and
/// one soon after the other.
#[test]
fn due_keys_leave_in_batches() {
    let options = ClusterOptions { groups: 1, shards: 2, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    let at = addr(1, 0);
    for n in 0..4000 {
        cluster.submit(at, &[b"SET", format!("k{n}").as_bytes(), b"v", b"PX", b"1000"]);
    }
    cluster.assert_replicas_agree();
    assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(4000));
    let last = |c: &Cluster| c.core(at).group_status(GroupId::new(0)).unwrap().last;
    let before = last(&cluster);
    cluster.advance_wall(1000);
    let mut keys = 4000;
    let mut steps = 0;
    while keys > 0 {
        assert!(steps < 2000, "{keys} keys are left after {steps} steps");
        let entries = last(&cluster);
        cluster.step();
        steps += 1;
        let now = cluster.core(at).keys_hosted();
        assert!(keys - now <= 512 + 16, "{} keys at once", keys - now);
        assert!(last(&cluster) <= entries.next(), "one batch at a time");
        keys = now;
    }
    let batches = last(&cluster).since(before);
    assert!((8..=12).contains(&batches), "{batches} batches");
    // One per tick, not one per look at the clock.
    assert!(steps <= 16 * 10, "{steps} steps");
    cluster.assert_replicas_agree();
    assert_eq!(cluster.core(at).stats().keys_expired, 4000);
}

fn cold(seed: u64) -> Cluster {
    let options = ClusterOptions { groups: 2, shards: 4, seed, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| {
        config.cache_bytes_max = 512 << 10;
        config.value_cache_bytes_max = 64 << 10;
        config.computed_bytes_max = 0;
    });
    cluster.wait_for_leaders();
    cluster
}

/// A flush leaves nothing, on any replica: no key, no expiry, no value in any segment, no memory.
/// Restarts, checkpoints from before and after it, and lost checkpoints do not bring keys back.
#[test]
pub(super) fn a_flush_leaves_nothing() {
    for seed in 1..=6 {
        let mut cluster = cold(seed);
        let at = addr(1 + seed as u32 % 3, 0);
        let idle = cluster.core(at).memory_bytes();
        write_some(&mut cluster, at, 0, 300);
        for n in 0..50 {
            cluster.call(at, &format!("SET later{n} v EX 1"));
        }
        cluster.call(at, "GET s0");
        if seed % 2 == 0 {
            full_checkpoint(&mut cluster, 500, 1);
        }
        // A checkpoint is under way when the flush comes.
        cluster.checkpoint(1);
        cluster.run(3);
        assert_eq!(cluster.call(at, "FLUSHALL"), Reply::OK);
        assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(0));
        cluster.assert_replicas_agree();
        for node in 1..=3 {
            let core = cluster.core(addr(node, 0));
            assert_eq!((core.keys_hosted(), core.live_bytes()), (0, 0), "node {node}");
            assert_eq!(core.memory_bytes(), idle, "node {node} keeps memory");
            let with_expiry: u64 = core.groups.iter().map(|g| g.store.keys_with_expiry()).sum();
            assert_eq!(with_expiry, 0, "node {node} keeps expiries");
        }
        // The keys come back with another life.
        for n in 0..50 {
            cluster.call(at, &format!("SET later{n} w"));
        }
        let expired = cluster.core(at).stats().keys_expired;
        cluster.advance_wall(10_000);
        cluster.run(300);
        assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(50), "seed {seed}");
        assert_eq!(cluster.core(at).stats().keys_expired, expired, "what was flushed expires");
        if seed % 2 == 1 {
            // The log still reaches back to the checkpoint before the flush.
            full_checkpoint(&mut cluster, 500, 1);
        }
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            if seed % 3 == 0 {
                cluster.lose_newest_checkpoint(node);
            }
            cluster.start(node);
        }
        cluster.wait_for_leaders();
        assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(50), "seed {seed}: after a restart");
        cluster.assert_replicas_agree();
    }
}

/// Segments full of flushed values are released without moving a byte.
#[test]
fn flushed_values_are_not_moved() {
    let mut cluster = cold(7);
    let at = addr(1, 0);
    let long = "x".repeat(500);
    for n in 0..300 {
        cluster.call(at, &format!("SET k{n} {long}"));
    }
    assert_eq!(cluster.call(at, "FLUSHALL"), Reply::OK);
    cluster.assert_replicas_agree();
    let moved = |cluster: &Cluster| -> u64 {
        (1..=3).map(|node| cluster.core(addr(node, 0)).stats().moved_bytes).sum()
    };
    let before = moved(&cluster);
    for _ in 0..4 {
        full_checkpoint(&mut cluster, 1 << 20, 1);
        cluster.run(50);
    }
    assert_eq!(moved(&cluster), before);
    for node in 1..=3 {
        let (kept, last) = cluster.segments(addr(node, 0));
        assert!(kept.start + 2 >= last, "node {node} keeps segments {kept:?} of {last}");
    }
}

/// A replica that is far behind gets a snapshot from after the flush, or the flush itself between
/// a snapshot's entries; either way it ends as the others.
#[test]
fn a_replica_that_missed_a_flush_forgets_too() {
    for seed in 1..=4 {
        let options = ClusterOptions { groups: 2, shards: 8, seed, ..ClusterOptions::default() };
        let mut cluster = Cluster::with_config(options, |config| config.cache_bytes_max = 1 << 20);
        cluster.wait_for_leaders();
        let victim = 1 + seed as u32 % 3;
        let at = addr(victim % 3 + 1, 0);
        write_some(&mut cluster, at, 0, 100);
        cluster.assert_replicas_agree();
        cluster.kill(victim);
        cluster.run(1000);
        write_some(&mut cluster, at, 100, 400);
        if seed % 2 == 0 {
            assert_eq!(cluster.call(at, "FLUSHALL"), Reply::OK);
            write_some(&mut cluster, at, 400, 420);
        }
        for _ in 0..4000 {
            if base(&cluster, at, 0) > LogIndex::new(40) {
                break;
            }
            cluster.checkpoint(1 << 20);
            cluster.run(1);
        }
        cluster.start(victim);
        if seed % 2 == 1 {
            cluster.run(seed * 3);
            assert_eq!(cluster.call(at, "FLUSHALL"), Reply::OK);
            write_some(&mut cluster, at, 400, 420);
        }
        cluster.assert_replicas_agree();
        let size = cluster.call(at, "DBSIZE");
        assert!(matches!(size, Reply::Integer(1..=20)), "seed {seed}: {size:?}");
    }
}

/// A flush comes behind commands that wait for a value, and is not waited for by those that nobody
/// asks about; what follows it sees nothing.
#[test]
pub(super) fn a_flush_keeps_its_place_behind_commands_that_wait() {
    for seed in 1..=8 {
        let options = ClusterOptions { groups: 2, shards: 4, seed, ..ClusterOptions::default() };
        let mut cluster = Cluster::with_config(options, |config| {
            config.cache_bytes_max = 512 << 10;
            config.value_cache_bytes_max = 0;
        });
        cluster.wait_for_leaders();
        let at = cluster.leader(0).unwrap();
        let long = "y".repeat(200_000);
        // Consensus forgets the first ones, so that their values must be read.
        for n in 0..12 {
            cluster.call(at, &format!("SET {{s}}{n} {long}"));
        }
        let appended = cluster.submit(at, &[b"APPEND", b"{s}0", b"z"]);
        let taken = cluster.submit(at, &[b"GETDEL", b"{s}1"]);
        let flush = cluster.submit(at, &[b"FLUSHALL"]);
        let size = cluster.submit(at, &[b"DBSIZE"]);
        assert_eq!(show(&cluster.wait(appended)), ":200001");
        assert!(matches!(cluster.wait(taken), Reply::Bulk(_) | Reply::Value(_)));
        assert_eq!(cluster.wait(flush), Reply::OK);
        drop(cluster.wait(size));
        assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(0), "seed {seed}");
        assert_eq!(show(&cluster.call(at, "APPEND {s}0 new")), ":3");
        cluster.assert_replicas_agree();
        assert_eq!(show(&cluster.call(at, "GET {s}0")), "$new");
    }
}

/// Replicas that cannot read a value which a command needs, and find it nowhere else, go on with
/// the flush that makes the value worthless.
#[test]
fn a_flush_frees_replicas_that_wait_for_ever() {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| {
        config.cache_bytes_max = 512 << 10;
        config.value_cache_bytes_max = 0;
    });
    cluster.wait_for_leaders();
    let leader = cluster.leader(0).unwrap();
    let first = "q".repeat(100);
    cluster.call(leader, &format!("SET k {first}"));
    for n in 0..10 {
        cluster.call(leader, &format!("SET other{n} {}", "y".repeat(200_000)));
    }
    cluster.run(50);
    let all = || (1..=3).map(|node| addr(node, 0));
    all().for_each(|at| cluster.damage_values(at, first.as_bytes()));
    assert_eq!(show(&cluster.call(leader, "APPEND k x")).split(' ').next(), Some("-UNCERTAIN"));
    cluster.run(300);
    let stuck = |cluster: &Cluster| {
        all().filter(|&at| cluster.core(at).content(GroupId::new(0)).is_none()).count()
    };
    assert_eq!(stuck(&cluster), 3, "what is damaged everywhere can be read");
    assert_eq!(cluster.call(leader, "FLUSHALL"), Reply::OK);
    assert!(cluster.run_until(300, |cluster| stuck(cluster) == 0), "they wait for ever");
    cluster.assert_replicas_agree();
}

/// A flush that could not be done is refused in words that allow a retry; one that was done in
/// part, or perhaps, says where.
#[test]
fn failed_flushes_say_what_may_have_happened() {
    let mut cluster = cluster(5);
    fill(&mut cluster, 60);
    let at = addr(1, 0);
    cluster.isolate(1);
    cluster.run(2000);
    let reply = show(&cluster.call(at, "FLUSHALL"));
    assert!(reply.starts_with("-CLUSTERDOWN"), "nothing was done: {reply}");
    cluster.heal();
    cluster.wait_for_leaders();
    assert_eq!(cluster.call(at, "DBSIZE"), Reply::Integer(60));
    // The leaders of some groups are cut off when they have the command.
    let some = |c: &Cluster| {
        (0..4).any(|group| c.leader(group).is_some_and(|leader| leader.node == at.node))
    };
    assert!(cluster.run_until(20_000, some), "its groups do not come back to it");
    cluster.wait_for_leaders();
    let near: Vec<u32> = (0..4).filter(|&g| cluster.leader(g).unwrap().node == at.node).collect();
    assert!(!near.is_empty() && near.len() < 4, "{near:?}");
    cluster.isolate(1);
    let reply = show(&cluster.call(at, "FLUSHALL"));
    assert!(reply.starts_with("-UNCERTAIN outcome unknown: flushed groups: none;"), "{reply}");
    let perhaps = reply.split("perhaps: ").nth(1).unwrap().split(' ').next().unwrap();
    let perhaps: Vec<u32> = perhaps.split(',').map(|group| group.parse().unwrap()).collect();
    assert_eq!(perhaps, near, "{reply}");
}

/// Flushed keys are dropped a bounded number at a time, and count as memory until then.
#[test]
fn flushed_memory_is_given_back_in_parts() {
    let options =
        ClusterOptions { nodes: 1, shards: 4, groups: 1, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    let at = addr(1, 0);
    for n in 0..20_000 {
        cluster.submit(at, &[b"SET", format!("k{n}").as_bytes(), b"v", b"EX", b"9"]);
    }
    assert!(cluster.run_until(1000, |c| c.core(at).keys_hosted() == 20_000));
    let before = cluster.core(at).memory_bytes();
    let command = crate::command::decode(&[b"FLUSHALL"], cluster.wall()).unwrap();
    assert!(command.spans_groups());
    let core = cluster.core_mut(at);
    core.groups[0].store.flush(LogIndex::new(1 << 40), &mut core.graveyard);
    core.totals = core.groups[0].store.totals();
    assert_eq!((core.keys_hosted(), core.memory_bytes()), (0, before), "nothing is dropped yet");
    let (mut effects, mut drains, mut memory) = (crate::Effects::default(), 0, before);
    assert!(!core.has_pending(crate::Drain::All), "nothing is urgent about it");
    while core.is_dropping() {
        core.drain(crate::Drain::Urgent, &mut effects);
        drains += 1;
        let now = core.memory_bytes();
        assert!(memory - now < before / 10, "{} of {before} bytes at once", memory - now);
        memory = now;
    }
    assert_eq!(memory, 0);
    assert!((60..=100).contains(&drains), "{drains} turns for 20000 keys and expiries");
}

/// `KEYS` gives up beyond its limits and says what to do instead.
#[test]
fn keys_is_bounded() {
    let options =
        ClusterOptions { nodes: 1, shards: 4, groups: 2, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    let at = addr(1, 0);
    for part in 0..101 {
        let pairs: Vec<String> =
            (0..1000).map(|n| format!("{{{}}}{part}.{n} v", part % 7)).collect();
        cluster.call(at, &format!("MSET {}", pairs.join(" ")));
    }
    assert_eq!(
        show(&cluster.call(at, "KEYS *")),
        "-ERR KEYS is given up: more than 100000 keys match, use SCAN instead"
    );
    assert_eq!(texts(&cluster.call(at, "KEYS {0}*.7")).len(), 15);
    assert_eq!(scan_all(&mut cluster, at, Via::Plain, " COUNT 10000", |_, _| ()).len(), 101_000);
    // A pattern that takes too long on one key.
    let key = "a".repeat(60_000);
    cluster.call(at, &format!("SET {key} v"));
    let reply = show(&cluster.call(at, &format!("KEYS *{}b", "a".repeat(500))));
    assert_eq!(reply, "-ERR the pattern takes too long on one key");
}

/// Commands on the whole keyspace wait for those before them on their connection, and are waited
/// for.
#[test]
fn pipelines_keep_their_order_around_keyspace_commands() {
    let mut cluster = cluster(6);
    let leader = cluster.leader(0).unwrap();
    let decode = |words: &[&[u8]]| crate::command::decode(words, crate::WallMillis(1)).unwrap();
    let (set, flush) = (decode(&[b"SET", b"k", b"v"]), decode(&[b"FLUSHALL"]));
    let core = cluster.core_mut(leader);
    let open = |command| [core.unanswered(command)];
    let order = |command, earlier: &crate::Unanswered| core.order(command, [earlier].into_iter());
    assert_eq!(core.order(&flush, [].into_iter()), crate::Order::Free);
    assert_eq!(order(&flush, &open(&set)[0]), crate::Order::Waits);
    assert_eq!(order(&set, &open(&flush)[0]), crate::Order::Waits);
    assert_eq!(order(&flush, &open(&flush)[0]), crate::Order::Waits);
}
