//! Bounds: what is refused, what waits, and what a leader may conclude from an answer.

mod common;

use common::disk::Write;
use common::{Cluster, HEARTBEAT, TIMEOUT, append, change, entry, node, payload, position, voters};
use coracle_raft::{
    AppendOutcome, BatchSeq, Body, Config, Drain, LogIndex, Message, ProposeError, Raft,
    ReadPolicy, Ready, Recovered, Role, SendState, Term,
};

/// Proposals are refused beyond the limit, and accepted again once some are committed.
#[test]
fn uncommitted_bytes_are_bounded() {
    let mut cluster =
        Cluster::with(1..=3, &voters(1..=3), |config| config.uncommitted_bytes_max = 200);
    cluster.elect(1);
    assert_eq!(cluster.raft(1).uncommitted_bytes(), 0);
    let propose = |cluster: &mut Cluster| {
        cluster.with_raft(1, |raft| raft.propose(payload("12 bytes each"))).map(|_| ())
    };
    let refused = Err(ProposeError::TooManyUncommitted { limit_bytes: 200 });
    let results: Vec<_> = (0..6).map(|_| propose(&mut cluster)).collect();
    let accepted = results.iter().position(|result| *result == refused).expect("a bound");
    assert!((2..=5).contains(&accepted), "{accepted} of 61 bytes each");
    cluster.settle();
    assert_eq!(cluster.raft(1).uncommitted_bytes(), 0);
    assert_eq!(propose(&mut cluster), Ok(()));
}

/// A new leader counts what earlier ones left uncommitted.
#[test]
fn inherited_entries_count_as_uncommitted() {
    let mut cluster = Cluster::new(1);
    cluster.step(2, 1, 1, append((0, 0), vec![entry(1, 1, "0123456789")], 0));
    cluster.settle_alone(1);
    cluster.tick(1, TIMEOUT);
    cluster.campaign(1);
    for _ in 0..3 {
        if cluster.raft(1).role() != Role::Leader {
            cluster.drain(1, Drain::All);
            cluster.persist(1);
        }
    }
    assert_eq!(cluster.raft(1).uncommitted_bytes(), 58 + 48, "the old entry and the empty one");
    cluster.settle_alone(1);
    assert_eq!(cluster.raft(1).uncommitted_bytes(), 0);
}

/// Reads beyond the limit are refused at once, those before it are not forgotten.
#[test]
fn reads_under_way_are_bounded() {
    let mut cluster = Cluster::with(1..=3, &voters(1..=3), |config| config.reads_max = 2);
    cluster.elect(1);
    let reads: Vec<_> = (0..3).map(|_| cluster.read(1)).collect();
    cluster.settle();
    let answers: Vec<_> = reads.iter().map(|&read| cluster.answer(1, read)).collect();
    let index = Some(Some(LogIndex::new(1)));
    assert_eq!(answers, [index, index, Some(None)]);
}

/// A follower is sent no more than its window holds, and the rest as it acknowledges.
#[test]
fn windows_bound_what_is_under_way() {
    let mut cluster = Cluster::with(1..=2, &voters(1..=2), |config| {
        config.append_entries_max = 2;
        config.inflight_messages_max = 3;
    });
    cluster.elect(1);
    for place in 0..20 {
        cluster.propose(1, &format!("p{place}"));
    }
    cluster.drain(1, Drain::All);
    assert_eq!(cluster.count(1, 2, "Append"), 3);
    cluster.tick(1, HEARTBEAT);
    cluster.drain(1, Drain::All);
    assert_eq!(cluster.count(1, 2, "Append"), 3);
    cluster.settle();
    assert_eq!(cluster.raft(1).commit(), LogIndex::new(21));
}

/// New voters have echoed nothing yet: the next check of the quorum gives them time.
#[test]
fn a_change_of_voters_does_not_depose_the_leader() {
    let mut cluster = Cluster::with(1..=3, &voters([1]), |_| {});
    cluster.elect(1);
    for _ in 0..3 * TIMEOUT {
        cluster.run(1);
        assert_eq!(cluster.raft(1).role(), Role::Leader);
        let to = if cluster.raft(1).membership().voters.len() == 1 {
            change(&[1, 2, 3], &[])
        } else {
            change(&[1], &[])
        };
        cluster.with_raft(1, |raft| raft.propose_membership(to)).expect("nothing under way");
        // A check falls into this tick at the latest now and then; nobody has answered.
        cluster.drain(1, Drain::All);
        cluster.tick(1, 1);
        assert_eq!(cluster.raft(1).role(), Role::Leader, "{}", cluster.describe());
        cluster.settle();
    }
}

/// A piece that an earlier leadership of the same node sent confirms no round of this one.
#[test]
fn rounds_of_an_earlier_term_are_not_echoed() {
    let mut cluster = Cluster::new(3);
    let base = position(1, 5);
    let membership = voters(1..=3).encode();
    let (piece, done, round) = (0, false, 7);
    let body = Body::Snapshot { base, membership, piece, done, payload: payload(""), round };
    cluster.step(2, 1, 1, body);
    cluster.drain(1, Drain::All);
    // Node 2 restarts and leads again; it has counted to 3.
    cluster.step(2, 1, 2, Body::Heartbeat { commit: LogIndex::ZERO, round: 3 });
    cluster.settle_alone(1);
    let answers = cluster.take_messages(1, 2, "SnapshotResponse");
    let bodies: Vec<_> = answers.iter().map(|message| &message.body).collect();
    assert_eq!(bodies, [&Body::SnapshotResponse { base, next_piece: 1, round: 3 }]);
}

/// A silent snapshot transfer is started again after ten election timeouts, not before.
#[test]
fn silent_snapshots_are_started_again() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.crash(3);
    cluster.propose(1, "a");
    cluster.settle();
    cluster.compact(1);
    cluster.settle();
    cluster.start(3);
    cluster.tick(1, HEARTBEAT);
    // All pieces are lost until the transfer is started a second time.
    let (mut first, mut again) = (None, None);
    for tick in 0..20 * TIMEOUT {
        cluster.tick(1, 1);
        cluster.settle_alone(1);
        if cluster.count(1, 3, "Snapshot") > 0 {
            again = first.map(|first| tick - first);
            first = first.or(Some(tick));
        }
        if again.is_some() {
            break;
        }
        cluster.take_messages(1, 3, "Snapshot");
        cluster.settle();
    }
    let ticks = again.expect("it is started again");
    assert!((10 * TIMEOUT - 2..=10 * TIMEOUT + 2).contains(&ticks), "{ticks} ticks");
    cluster.settle();
    assert_eq!(cluster.raft(3).base().index, LogIndex::new(2));
    assert!(cluster.raft(1).progress().all(|(_, p)| p.state == SendState::Replicate));
}

/// A group of one elects itself as soon as its vote is on disk, and commits on its own.
#[test]
fn a_single_voter_needs_nobody() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    let at = cluster.propose(1, "a");
    let read = cluster.read(1);
    cluster.settle();
    assert_eq!(cluster.raft(1).applied_index(), at.index);
    assert_eq!(cluster.answer(1, read), Some(Some(LogIndex::new(1))));
    cluster.run(5 * TIMEOUT);
    assert_eq!((cluster.leader(), cluster.raft(1).term().get()), (Some(1), 1));
}

/// Numbers that nobody can have counted to are not believed.
#[test]
fn absurd_terms_are_ignored() {
    let mut cluster = Cluster::new(3);
    for term in [u64::MAX, u64::MAX / 2 + 1] {
        cluster.step(2, 1, term, Body::Heartbeat { commit: LogIndex::ZERO, round: 1 });
        cluster.step(2, 1, term, Body::VoteResponse { granted: false });
    }
    assert_eq!(cluster.raft(1).term(), Term::default());
    let membership = voters(1..=3).encode();
    let (piece, done, round) = (0, true, 1);
    let base = position(0, u64::MAX);
    let body = Body::Snapshot { base, membership, piece, done, payload: payload(""), round };
    cluster.step(2, 1, 1, body);
    cluster.drain(1, Drain::All);
    let pieces = |write: &Write| matches!(write, Write::Piece(_));
    assert!(!cluster.node(1).disk.writes.iter().any(pieces));
}

/// A follower that denies what it has acknowledged is asked again at the pace of heartbeats.
#[test]
fn contradictions_are_not_answered_at_once() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.propose(1, "a");
    let probing = |cluster: &Cluster| {
        let mut progress = cluster.raft(1).progress();
        progress.any(|(_, p)| p.state == SendState::Probe && p.matched == LogIndex::new(1))
    };
    // Appends are lost, so the window stalls and is probed; heartbeats arrive.
    for _ in 0..2 * TIMEOUT {
        cluster.settle_alone(1);
        cluster.take_messages(1, 2, "Append");
        if probing(&cluster) {
            break;
        }
        cluster.settle();
        cluster.tick(1, 1);
    }
    assert!(probing(&cluster), "{}", cluster.describe());
    cluster.network.clear();
    let (prev, hint) = (LogIndex::new(1), position(0, 0));
    let outcome = AppendOutcome::Rejected { prev, hint };
    cluster.step(2, 1, 1, Body::AppendResponse { outcome, round: 0 });
    cluster.drain(1, Drain::All);
    assert_eq!(cluster.count(1, 2, "Append"), 0, "not until a heartbeat is answered");
    cluster.step(2, 1, 1, Body::HeartbeatResponse { round: 0 });
    cluster.drain(1, Drain::All);
    assert_eq!(cluster.count(1, 2, "Append"), 1);
    assert!(probing(&cluster));
}

/// A log on disk that is ahead of the term on disk: the vote of the older term is void.
#[test]
fn recovery_takes_the_term_of_the_log() {
    let recovered = Recovered {
        hard_state: coracle_raft::HardState { term: Term::new(2), vote: Some(node(1)) },
        membership: voters(1..=3),
        runs: vec![position(5, 1)],
        last: LogIndex::new(1),
        tail: vec![entry(5, 1, "a")],
        ..Recovered::default()
    };
    let raft = Raft::new(common::config(1, 1), recovered);
    assert_eq!((raft.term().get(), raft.vote()), (5, None));
}

/// Values outside their range are named, with both ends of it.
#[test]
fn configurations_are_checked() {
    let good = || Config::new(node(1), 0);
    assert_eq!(good().validate(), Ok(()));
    let bad: [(&str, Config); 6] = [
        ("id", Config::new(node(0), 0)),
        ("election_timeout_ticks", Config { election_timeout_ticks: 1, ..good() }),
        ("heartbeat_ticks", Config { heartbeat_ticks: 20, ..good() }),
        ("drift_ticks", Config { read: ReadPolicy::Lease { drift_ticks: 20 }, ..good() }),
        ("append_entries_max", Config { append_entries_max: 0, ..good() }),
        ("reads_max", Config { reads_max: 0, ..good() }),
    ];
    for (what, config) in bad {
        let error = config.validate().expect_err(what);
        assert_eq!(error.what, what);
        let (value, max) = (error.value.to_string(), error.max.to_string());
        let text = error.to_string();
        assert!(text.contains(&value) && text.contains(&max), "{text}");
    }
}

/// Batches ascend; a driver that repeats a number has a bug, and is told.
#[test]
#[should_panic(expected = "is not new")]
fn batch_numbers_must_ascend() {
    let recovered = Recovered { membership: voters(1..=3), ..Recovered::default() };
    let mut raft = Raft::new(common::config(1, 1), recovered);
    let mut ready = Ready::default();
    for term in 1..3 {
        let body = Body::Heartbeat { commit: LogIndex::ZERO, round: 1 };
        raft.step(Message { from: node(2), to: node(1), term: Term::new(term), body });
        raft.drain(Drain::All, BatchSeq::new(1), &mut ready);
    }
}
