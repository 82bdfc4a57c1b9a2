//! Entries whose content a replica has lost, at a restart or while it runs, and what becomes of
//! those who need them.

use std::collections::BTreeSet;

use coracle_raft::{Entry, GroupId, LogIndex};

use super::checkpoint::{base, full_checkpoint};
use super::show;
use super::values::{Model, cluster, long, write_long};
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, CoreStats, ReadMode, Reply, Via};

fn stats(cluster: &Cluster, at: CoreAddr) -> CoreStats {
    cluster.core(at).stats()
}

fn next(at: CoreAddr) -> CoreAddr {
    addr(at.node.get() % 3 + 1, 0)
}

fn nodes() -> [CoreAddr; 3] {
    [1, 2, 3].map(|node| addr(node, 0))
}

fn sum(cluster: &Cluster, of: impl Fn(&CoreStats) -> u64) -> u64 {
    nodes().iter().map(|&at| of(&stats(cluster, at))).sum()
}

/// The last entry of a group.
fn last(cluster: &Cluster, group: u32) -> LogIndex {
    let at = cluster.leader(group).expect("it is led");
    cluster.core(at).group_status(GroupId::new(group)).expect("a replica").last
}

/// What a replica itself answers.
fn read_at(cluster: &mut Cluster, at: CoreAddr, key: &str) -> String {
    let args: &[&[u8]] = &[b"GET", key.as_bytes()];
    let token = cluster.submit_as(at, Via::Plain, ReadMode::AnyReplica, false, args);
    show(&cluster.wait(token))
}

/// Every replica itself answers what was written.
fn check_everywhere(cluster: &mut Cluster, model: &Model) {
    for at in nodes() {
        for n in 0..40 {
            let key = format!("v{n}");
            let want = model.get(&key).map_or("_".to_owned(), |value| format!("${value}"));
            assert_eq!(read_at(cluster, at, &key), want, "{key} at {at}");
        }
    }
}

fn restart_all(cluster: &mut Cluster) {
    (1..=3).for_each(|node| cluster.kill(node));
    (1..=3).for_each(|node| cluster.start(node));
}

/// Dice for one entry: the same on every replica.
fn dice(seed: u64, group: GroupId, entry: &Entry) -> u64 {
    let mixed = seed << 40 ^ u64::from(group.get()) << 32 ^ entry.index.get();
    let mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33
}

/// A follower that has lost entries in the middle of its log and at its end takes part at once, and
/// holds in the end what all hold.
#[test]
pub(super) fn a_follower_with_lost_entries_catches_up() {
    let mut repaired = 0;
    for seed in 1..=8 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        let at = next(cluster.leader(0).unwrap());
        let kept = |n: u32| (format!("{{v}}kept{n}"), long(1000 + n));
        for (key, value) in (0..20).map(kept) {
            assert_eq!(cluster.call(at, &format!("SET {key} {value}")), Reply::OK);
        }
        write_long(&mut cluster, &mut model, 0..100);
        cluster.assert_replicas_agree();
        full_checkpoint(&mut cluster, 1 << 20, 1);
        write_long(&mut cluster, &mut model, 100..300);
        cluster.assert_replicas_agree();
        let ends = [0, 1].map(|group| last(&cluster, group));
        cluster.kill(at.node.get());
        let lost = cluster.lose_entries(at, |group, entry| {
            let end = ends[group.get() as usize];
            entry.index.get() % 7 < 2 || (end.get() - 3..=end.get()).contains(&entry.index.get())
        });
        assert!(lost > 50, "seed {seed}: only {lost} are lost");
        cluster.start(at.node.get());
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
        assert_eq!(stats(&cluster, at).values_repaired, 0, "what was fetched can be read");
        // The checkpoint refers to values of entries that are lost.
        for (key, value) in (0..20).map(kept) {
            assert_eq!(read_at(&mut cluster, at, &key), format!("${value}"), "seed {seed}");
        }
        let seen = stats(&cluster, at);
        assert!(seen.entries_fetched > 20, "seed {seed}: {}", seen.entries_fetched);
        repaired += seen.values_repaired;
        assert_eq!((seen.fetches_open, seen.failed_loads), (0, 0), "seed {seed}");
        let lent = sum(&cluster, |stats| stats.entries_lent);
        assert!(lent >= seen.entries_fetched, "seed {seed}: {lent}");
        // What was fetched is in the next checkpoint.
        full_checkpoint(&mut cluster, 1 << 20, 2);
        cluster.kill(at.node.get());
        cluster.start(at.node.get());
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
    }
    assert!(repaired > 10, "only {repaired} long values were lost");
}

/// Three replicas have each lost a third of the entries, and all restart: together they have
/// everything, whoever leads.
#[test]
fn replicas_that_have_lost_different_entries_help_each_other() {
    for seed in 1..=8 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        write_long(&mut cluster, &mut model, 0..200);
        cluster.assert_replicas_agree();
        for at in nodes() {
            let mine = u64::from(at.node.get()) - 1;
            assert!(cluster.lose_entries(at, |_, entry| entry.index.get() % 3 == mine) > 50);
        }
        restart_all(&mut cluster);
        cluster.wait_for_leaders();
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
        assert!(sum(&cluster, |stats| stats.entries_fetched) > 100, "seed {seed}");
        write_long(&mut cluster, &mut model, 200..240);
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
    }
}

/// Whoever leads after a restart sends a replica that was away what it has lost itself.
#[test]
fn a_leader_sends_on_what_it_has_lost() {
    for seed in 1..=8 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        let away = next(cluster.leader(0).unwrap());
        write_long(&mut cluster, &mut model, 0..20);
        cluster.assert_replicas_agree();
        cluster.kill(away.node.get());
        cluster.wait_for_leaders();
        for n in 0..200 {
            let (key, value) = (format!("v{}", n % 40), long(n));
            let client = next(away);
            assert_eq!(cluster.call(client, &format!("SET {key} {value}")), Reply::OK);
            model.insert(key, value);
        }
        let others = [next(away), next(next(away))];
        for (at, part) in others.into_iter().zip(0..) {
            cluster.lose_entries(at, |group, entry| dice(seed, group, entry) % 2 == part);
            cluster.kill(at.node.get());
        }
        (1..=3).for_each(|node| cluster.start(node));
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
    }
}

/// Entries that rot while their replica leads, and has applied them, still reach a follower that
/// lacks them.
#[test]
fn entries_that_rot_are_fetched_for_a_follower() {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.cache_bytes_max = 256 << 10);
    cluster.wait_for_leaders();
    let leader = cluster.leader(0).unwrap();
    let lagging = next(leader);
    cluster.kill(lagging.node.get());
    let value = "x".repeat(8 << 10);
    for i in 0..200 {
        assert_eq!(cluster.call(leader, &format!("SET k{} {value}{i}", i % 20)), Reply::OK);
    }
    // Some on the leader, others on the third.
    assert!(cluster.lose_entries(leader, |_, entry| entry.index.get() % 4 < 2) > 50);
    assert!(cluster.lose_entries(next(lagging), |_, entry| entry.index.get() % 4 == 2) > 20);
    cluster.start(lagging.node.get());
    cluster.assert_replicas_agree();
    assert_eq!(cluster.leader(0), Some(leader));
    assert_eq!(stats(&cluster, lagging).snapshots_installed, 0);
    let seen = stats(&cluster, leader);
    assert!(seen.entries_fetched > 50, "{}", seen.entries_fetched);
    assert_eq!((seen.fetches_open, seen.failed_loads, seen.leaderships_shed), (0, 0, 0));
    for i in 180..200 {
        let got = show(&cluster.call(lagging, &format!("GET k{}", i % 20)));
        assert_eq!(got, format!("${value}{i}"));
    }
}

/// What a leader has applied but can send no more, while nobody else has it, reaches a follower as
/// a snapshot.
#[test]
fn a_follower_gets_a_snapshot_for_what_its_leader_has_lost() {
    let options = ClusterOptions { groups: 1, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::with_config(options, |config| config.cache_bytes_max = 256 << 10);
    cluster.wait_for_leaders();
    let leader = cluster.leader(0).unwrap();
    let (lagging, third) = (next(leader), next(next(leader)));
    cluster.kill(lagging.node.get());
    let value = "x".repeat(8 << 10);
    for i in 0..200 {
        assert_eq!(cluster.call(leader, &format!("SET k{} {value}{i}", i % 20)), Reply::OK);
    }
    // Values that count stay.
    for at in [leader, third] {
        assert!(cluster.lose_entries(at, |_, entry| entry.index.get() % 150 == 9) > 0);
    }
    cluster.start(lagging.node.get());
    cluster.assert_replicas_agree();
    assert_eq!(stats(&cluster, lagging).snapshots_installed, 1);
    for i in 180..200 {
        let got = show(&cluster.call(lagging, &format!("GET k{}", i % 20)));
        assert_eq!(got, format!("${value}{i}"));
    }
}

/// An entry that a follower must apply, and that all the others have compacted away: it gets a
/// snapshot, though its log reaches to the end. Clients go on writing meanwhile.
#[test]
fn a_follower_that_lacks_a_compacted_entry_gets_a_snapshot() {
    for seed in 1..=8 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        let leader = cluster.leader(0).unwrap();
        let (at, other) = (next(leader), next(next(leader)));
        write_long(&mut cluster, &mut model, 0..200);
        cluster.assert_replicas_agree();
        let end = last(&cluster, 0);
        cluster.kill(at.node.get());
        let cut = |cluster: &Cluster| {
            [leader, other].iter().all(|&at| base(cluster, at, 0) > LogIndex::new(60))
        };
        for _ in 0..2000 {
            if cut(&cluster) {
                break;
            }
            [leader, other].iter().for_each(|&at| cluster.checkpoint_on(at, 1 << 20));
            cluster.run(1);
        }
        assert!(cut(&cluster) && base(&cluster, leader, 0) <= end, "seed {seed}: not cut");
        assert!(cluster.lose_entries(at, |_, entry| entry.index.get() % 40 == 30) > 2);
        cluster.start(at.node.get());
        // Where it leads for a moment the outcome may stay open.
        for n in 0..80 {
            let value = long(n);
            let token = cluster.submit(addr(1 + n % 3, 0), &[b"SET", b"other", value.as_bytes()]);
            cluster.wait(token);
        }
        cluster.assert_replicas_agree();
        let seen = stats(&cluster, at);
        assert!(seen.snapshots_installed > 0, "seed {seed}");
        assert!(seen.snapshots_installed <= 4, "seed {seed}: again and again");
        check_everywhere(&mut cluster, &model);
        full_checkpoint(&mut cluster, 1 << 20, 2);
        restart_all(&mut cluster);
        cluster.wait_for_leaders();
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
    }
}

/// A replica that is up alone, or with one that has lost the same entry, serves nothing that it
/// cannot know, and goes on when the others are back.
#[test]
fn a_lost_entry_that_nobody_has_is_waited_for() {
    for seed in 1..=6 {
        let mut cluster = cluster(seed);
        let mut model = Model::new();
        write_long(&mut cluster, &mut model, 0..100);
        cluster.assert_replicas_agree();
        (1..=3).for_each(|node| cluster.kill(node));
        let whole = addr(seed as u32 % 3 + 1, 0);
        let damaged = [next(whole), next(next(whole))];
        for at in damaged {
            assert!(cluster.lose_entries(at, |_, entry| entry.index.get() % 10 == 5) > 5);
        }
        let try_all = |cluster: &mut Cluster, at: CoreAddr, model: &Model| {
            for n in 0..40 {
                let key = format!("v{n}");
                let args: &[&[u8]] = &[b"GET", key.as_bytes()];
                let token = cluster.submit_as(at, Via::Plain, ReadMode::AnyReplica, false, args);
                let answered = cluster.run_until(400, |c| c.answer(token).is_some());
                if answered {
                    let got = show(&cluster.wait(token));
                    let want = model.get(&key).map_or("_".to_owned(), |v| format!("${v}"));
                    assert!(got == want || got.starts_with('-'), "seed {seed}, {key}: {got}");
                }
            }
        };
        cluster.start(damaged[0].node.get());
        cluster.run(300);
        try_all(&mut cluster, damaged[0], &model);
        cluster.start(damaged[1].node.get());
        cluster.run(300);
        for at in damaged {
            try_all(&mut cluster, at, &model);
        }
        for group in 0..2 {
            for at in damaged {
                let status = cluster.core(at).group_status(GroupId::new(group)).unwrap();
                assert!(status.applied < LogIndex::new(5), "seed {seed}: past a lost entry");
            }
        }
        cluster.start(whole.node.get());
        cluster.assert_replicas_agree();
        check_everywhere(&mut cluster, &model);
    }
}

/// Loses half of what another replica can still read. One replica also loses what no other ever
/// had: such a log cannot lead, and the others must be able to.
fn lose_what_is_spared(cluster: &mut Cluster, at: CoreAddr, seed: u64) {
    let others = [next(at), next(next(at))].map(|other| {
        let applied = [0, 1].map(|group| {
            let core = cluster.is_up(other.node.get()).then(|| cluster.core(other));
            let status = core.and_then(|core| core.group_status(GroupId::new(group)));
            // What it had when it went down may be a snapshot by now.
            status.map_or(LogIndex::new(u64::MAX), |status| status.applied)
        });
        (cluster.entries(other), applied)
    });
    let node = u64::from(at.node.get());
    cluster.lose_entries(at, |group, entry| {
        let (at, place) = ((group, entry.position()), group.get() as usize);
        let gives = others.iter().any(|(held, _)| held.get(&at) == Some(&true));
        let alone = others
            .iter()
            .all(|(held, applied)| !held.contains_key(&at) && applied[place] < entry.index);
        (gives || (alone && node == 1)) && dice(seed, group, entry) >> node & 8 == 0
    });
}

/// Losses everywhere and at any time, but never of what only one replica can give: nothing that was
/// acknowledged is missing. Logs are cut here and there, replicas are away and come back. Returns
/// how many entries were fetched and snapshots installed.
fn lose_at_random(seed: u64) -> (u64, u64) {
    let mut cluster = cluster(seed);
    let mut model = Model::new();
    let mut random = seed;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (random >> 33) % bound
    };
    let mut open = BTreeSet::new();
    let mut seen = (0, 0);
    let mut kill = |cluster: &mut Cluster, node: u32| {
        let stats = stats(cluster, addr(node, 0));
        seen.0 += stats.entries_fetched;
        seen.1 += stats.snapshots_installed;
        cluster.kill(node);
    };
    for part in 0..8 {
        let away = (below(2) == 0).then(|| below(3) as u32 + 1);
        if let Some(node) = away {
            kill(&mut cluster, node);
        }
        for n in 0..50 {
            // Short, so that it is in the index: of entries alone one copy is enough.
            let (key, value) = (format!("v{}", below(40)), format!("{part}-{n}"));
            let mut at = addr(below(3) as u32 + 1, 0);
            if away == Some(at.node.get()) {
                at = next(at);
            }
            // A new leader may have to ask for what it lacks; who is away may be the only one to
            // have it.
            let tries = if away.is_some() { 1 } else { 30 };
            let mut set = || show(&cluster.call(at, &format!("SET {key} {value}")));
            let mut replies = (0..tries).map(|_| set()).skip_while(|reply| {
                let expected = ["+OK", "-UNCERTAIN", "-CLUSTERDOWN", "-TRYAGAIN"];
                assert!(expected.iter().any(|text| reply.starts_with(text)), "{seed}: {reply}");
                reply != "+OK"
            });
            match replies.next() {
                Some(_) => drop(model.insert(key, value)),
                None => {
                    assert!(away.is_some(), "seed {seed}: {key} cannot be written");
                    open.insert(key);
                }
            }
        }
        let cut = below(6) as u32;
        for _ in 0..60 * below(3) {
            for at in nodes() {
                if cut != at.node.get() && away != Some(at.node.get()) {
                    cluster.checkpoint_on(at, 1 << 20);
                }
            }
            cluster.run(1);
        }
        for at in nodes() {
            lose_what_is_spared(&mut cluster, at, seed);
        }
        let (all, one) = (below(3) == 0, below(3) as u32 + 1);
        for node in (1..=3).filter(|&node| all || node == one) {
            if away != Some(node) {
                kill(&mut cluster, node);
                cluster.run(below(100));
            }
            cluster.start(node);
        }
        if let Some(node) = away.filter(|&node| !cluster.is_up(node)) {
            cluster.start(node);
        }
        cluster.wait_for_leaders();
    }
    cluster.assert_replicas_agree();
    for key in open {
        assert_eq!(cluster.call(addr(1, 0), &format!("SET {key} last")), Reply::OK);
        model.insert(key, "last".to_owned());
    }
    check_everywhere(&mut cluster, &model);
    assert_eq!(sum(&cluster, |stats| stats.fetches_open), 0, "seed {seed}");
    (1..=3).for_each(|node| kill(&mut cluster, node));
    seen
}

#[test]
pub(super) fn random_losses_cost_nothing() {
    let (mut fetched, mut snapshots) = (0, 0);
    // Those beyond the first ones found something once.
    for seed in (1..=12).chain([24, 70, 1115]) {
        let seen = lose_at_random(seed);
        fetched += seen.0;
        snapshots += seen.1;
    }
    assert!(fetched > 1000 && snapshots > 20, "{fetched} fetched, {snapshots} snapshots");
}

/// What another replica has at the index of a lost entry, but of another term, is another entry: it
/// is not taken, and the right one comes from who has it.
#[test]
pub(super) fn an_entry_of_another_term_is_not_taken() {
    for seed in 1..=4 {
        let options = ClusterOptions { groups: 1, shards: 4, seed, ..ClusterOptions::default() };
        let mut cluster = Cluster::new(options);
        cluster.wait_for_leaders();
        // The one that asks, the one that it asks first, and the one that leads in the end.
        let stale = cluster.leader(0).unwrap();
        let (leads, asks) = (next(stale), next(next(stale)));
        assert_eq!(cluster.call(stale, "SET k0 old"), Reply::OK);
        cluster.assert_replicas_agree();
        cluster.isolate(stale.node.get());
        for n in 0..300 {
            let key = format!("k{n}");
            cluster.submit(stale, &[b"SET", key.as_bytes(), b"never acknowledged"]);
        }
        let group = GroupId::new(0);
        let led = |cluster: &Cluster| cluster.leader(0).is_some_and(|at| at != stale);
        assert!(cluster.run_until(2000, led), "seed {seed}");
        if cluster.leader(0) != Some(leads) {
            cluster.core_mut(asks).transfer_leadership(group, leads.node);
        }
        assert!(cluster.run_until(2000, |c| c.leader(0) == Some(leads)), "seed {seed}");
        for n in 0..300 {
            assert_eq!(cluster.call(leads, &format!("SET k{n} v{n}")), Reply::OK);
        }
        cluster.kill(asks.node.get());
        assert!(cluster.lose_entries(asks, |_, entry| entry.index > LogIndex::new(9)) > 200);
        cluster.heal();
        cluster.cut(stale.node.get(), leads.node.get());
        cluster.start(asks.node.get());
        let applied =
            |cluster: &Cluster, at: CoreAddr| cluster.core(at).group_status(group).unwrap().applied;
        let caught_up = |c: &Cluster| applied(c, asks) == applied(c, leads);
        assert!(cluster.run_until(4000, caught_up), "seed {seed}");
        cluster.heal();
        cluster.assert_replicas_agree();
        for n in 0..300 {
            assert_eq!(show(&cluster.call(asks, &format!("GET k{n}"))), format!("$v{n}"));
        }
    }
}
