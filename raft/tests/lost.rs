//! Entries whose content is lost here and cannot be had elsewhere: a snapshot takes their place.

mod common;

use common::{Cluster, TIMEOUT, config, entry, node, payload, position, voters};
use coracle_raft::{
    AppendOutcome, BatchSeq, Body, Drain, LogIndex, Message, Raft, Ready, Recovered, SendState,
    Term,
};

/// A follower with five entries on disk only, of which none is applied and four are committed.
fn follower() -> Raft {
    let recovered = Recovered {
        membership: voters(1..=3),
        runs: vec![position(1, 1)],
        last: LogIndex::new(5),
        ..Recovered::default()
    };
    let mut raft = Raft::new(config(2, 7), recovered);
    step(&mut raft, Body::Heartbeat { commit: LogIndex::new(4), round: 3 });
    assert!(raft.next_committed(1 << 20).is_empty());
    assert!(raft.waits_to_apply(LogIndex::new(1)));
    sent(&mut raft, 1);
    raft
}

fn step(raft: &mut Raft, body: Body) {
    raft.step(Message { from: node(1), to: node(2), term: Term::new(1), body });
}

/// What it sends once its disk has written everything.
fn sent(raft: &mut Raft, batch: u64) -> Vec<Body> {
    let mut ready = Ready::default();
    raft.drain(Drain::All, BatchSeq::new(batch), &mut ready);
    raft.persisted(BatchSeq::new(batch));
    raft.drain(Drain::Urgent, BatchSeq::new(batch), &mut ready);
    ready.messages.into_iter().map(|message| message.body).collect()
}

fn snapshot(term: u64, index: u64) -> Body {
    Body::Snapshot {
        base: position(term, index),
        membership: voters(1..=3).encode(),
        piece: 0,
        done: true,
        payload: payload(""),
        round: 4,
    }
}

fn pieces(raft: &mut Raft, body: Body) -> usize {
    let mut ready = Ready::default();
    step(raft, body);
    raft.drain(Drain::Urgent, BatchSeq::new(99), &mut ready);
    ready.snapshot_pieces.len()
}

/// A snapshot from before the commit index is taken by a follower that lacks an entry, and the log
/// goes on behind it.
#[test]
fn a_follower_that_lacks_an_entry_takes_a_snapshot_of_what_is_committed() {
    let mut raft = follower();
    let first = LogIndex::new(1);
    assert_eq!(pieces(&mut raft, snapshot(1, 3)), 0, "it could have the entries");
    raft.lacks(first);
    let bodies = sent(&mut raft, 2);
    assert!(bodies.contains(&Body::SnapshotWanted { first }), "{bodies:?}");
    assert!(raft.entries_loaded(first, Err("lost".to_owned())).is_empty());
    assert_eq!(pieces(&mut raft, snapshot(2, 3)), 0, "it contradicts what is committed");
    assert_eq!(pieces(&mut raft, snapshot(1, 3)), 1);
    assert!(raft.snapshot_installed(node(1), position(1, 3), voters(1..=3), 4));
    raft.check_invariants();
    let seen = [raft.base().index, raft.applied_index(), raft.commit(), raft.last_index()];
    assert_eq!(seen.map(LogIndex::get), [3, 3, 4, 5]);
    let accepted = AppendOutcome::Accepted { matched: LogIndex::new(4) };
    assert!(
        sent(&mut raft, 3).iter().any(
            |body| matches!(body, Body::AppendResponse { outcome, .. } if *outcome == accepted)
        )
    );
    assert_eq!(pieces(&mut raft, snapshot(1, 4)), 0, "it lacks nothing that it knows of");
    // What follows is loaded as ever.
    (0..2 * TIMEOUT).for_each(|_| raft.tick());
    assert!(raft.next_committed(1 << 20).is_empty());
    let loaded = raft.entries_loaded(LogIndex::new(4), Ok(vec![entry(1, 4, "d")]));
    assert_eq!(loaded.len(), 1);
}

/// An entry that comes after all is applied, and a snapshot from before it is not needed then.
#[test]
fn an_entry_that_comes_after_all_is_applied() {
    let mut raft = follower();
    let first = LogIndex::new(1);
    raft.lacks(first);
    let entries = (1..=4).map(|index| entry(1, index, "x")).collect();
    assert_eq!(raft.entries_loaded(first, Ok(entries)).len(), 4);
    assert_eq!(pieces(&mut raft, snapshot(1, 3)), 0);
    assert!(!raft.snapshot_installed(node(1), position(1, 3), voters(1..=3), 4));
    raft.check_invariants();
}

/// A leader that cannot read what a follower needs sends a snapshot of what it has applied.
#[test]
fn a_leader_sends_a_snapshot_for_what_it_lacks() {
    let mut cluster = Cluster::with(1..=3, &voters(1..=3), |config| config.cache_bytes_max = 0);
    cluster.elect(1);
    cluster.crash(3);
    for text in ["a", "b", "c"] {
        cluster.propose(1, text);
        cluster.settle();
    }
    let leader = cluster.node(1);
    (leader.loads_fail, leader.loads_lost) = (true, true);
    cluster.start(3);
    cluster.run(3 * TIMEOUT);
    assert_eq!(cluster.raft(3).base().index, LogIndex::new(4));
    assert_eq!(cluster.raft(3).commit(), cluster.raft(1).commit());
    cluster.propose(1, "d");
    cluster.run(1);
    assert_eq!(cluster.raft(3).last_index(), cluster.raft(1).last_index());
}

/// A request for a snapshot changes nothing that a follower has acknowledged, and is granted once.
#[test]
fn a_follower_that_asks_for_a_snapshot_goes_on_counting() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "a");
    cluster.settle();
    let before = cluster.raft(1).commit();
    let (_, progress) = cluster.raft(1).progress().find(|(id, _)| *id == node(3)).unwrap();
    let matched = progress.matched;
    for first in [before.next(), LogIndex::new(1), LogIndex::new(1)] {
        cluster.step(3, 1, 1, Body::SnapshotWanted { first });
        cluster.drain(1, Drain::All);
    }
    let (_, progress) = cluster.raft(1).progress().find(|(id, _)| *id == node(3)).unwrap();
    assert_eq!(progress.matched, matched);
    assert!(matches!(progress.state, SendState::Snapshot { base } if base.index == before));
    let pieces = cluster.take_messages(1, 3, "Snapshot").len();
    assert_eq!(pieces, 1, "begun once, and not for what is not applied");
    // An answer from before the request does not end it.
    let accepted = |round| {
        let outcome = AppendOutcome::Accepted { matched };
        Body::AppendResponse { outcome, round }
    };
    let sends_snapshot = |cluster: &Cluster| cluster.raft(1).wants_snapshot(node(3));
    cluster.step(3, 1, 1, accepted(1));
    assert!(sends_snapshot(&cluster));
    cluster.step(3, 1, 1, accepted(u64::MAX / 4));
    assert!(!sends_snapshot(&cluster));
    cluster.settle();
    assert_eq!(cluster.raft(1).commit(), before);
}

/// A leader that has lost the end of its log, which nobody else has, can commit nothing. It lets
/// the others elect one of them, if they can.
#[test]
fn a_leader_that_lacks_the_end_of_its_log_stands_aside() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "a");
    cluster.settle();
    cluster.propose(1, "never acknowledged");
    cluster.drain(1, Drain::All);
    cluster.persist(1);
    (1..=3).for_each(|id| cluster.crash(id));
    cluster.network.clear();
    let leader = cluster.node(1);
    (leader.loads_fail, leader.loads_lost, leader.tail_count) = (true, true, 0);
    cluster.start(1);
    cluster.start(2);
    // While the third may have it, nobody else can lead.
    for _ in 0..20 * TIMEOUT {
        cluster.run(1);
        assert!(cluster.leader().is_none_or(|leader| leader == 1));
        assert!(cluster.raft(2).commit() <= LogIndex::new(2), "{}", cluster.describe());
    }
    assert!(cluster.raft(1).term() > Term::new(2), "it has led now and then");
    cluster.start(3);
    cluster.run_until(20 * TIMEOUT, |cluster| cluster.leader().is_some_and(|id| id != 1));
    let leader = cluster.leader().expect("just seen");
    cluster.node(1).loads_fail = false;
    let at = cluster.propose(leader, "b");
    cluster.run(3 * TIMEOUT);
    assert!((1..=3).all(|id| cluster.raft(id).commit() >= at.index), "{}", cluster.describe());
}
