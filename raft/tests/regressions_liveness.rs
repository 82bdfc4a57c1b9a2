//! Named regressions of other systems that concern progress, disks and who counts: RB15 to RB21.

mod common;

use common::{Cluster, HEARTBEAT, TIMEOUT, append, change, entry, kind, node, position, voters};
use coracle_raft::{
    AppendOutcome, BatchSeq, Body, Drain, Entry, LogIndex, Membership, MembershipError, Ready, Role,
};

/// A voter that holds these entries, and no more.
fn feed(cluster: &mut Cluster, id: u32, term: u64, entries: Vec<Entry>) {
    let leader = if id == 3 { 1 } else { 3 };
    cluster.step(leader, id, term, append((0, 0), entries, 0));
    cluster.settle_alone(id);
    cluster.network.clear();
}

/// RB15: a PreVote of a lower term is answered, so that its sender learns the term.
#[test]
fn rb15_lower_terms_are_answered() {
    for body in [
        Body::PreVote { last: position(9, 9) },
        Body::Vote { last: position(9, 9), transfer: false },
        append((0, 0), Vec::new(), 0),
        Body::Heartbeat { commit: LogIndex::ZERO, round: 1 },
    ] {
        let mut cluster = Cluster::new(3);
        feed(&mut cluster, 1, 5, Vec::new());
        cluster.tick(1, TIMEOUT);
        cluster.step(2, 1, 3, body.clone());
        cluster.settle_alone(1);
        let answered: Vec<_> = cluster.network.iter().map(|m| (m.to, m.term.get())).collect();
        assert_eq!(answered, [(node(2), 5)], "{}", kind(&body));
        cluster.settle();
        assert_eq!(cluster.raft(2).term().get(), 5, "{}", kind(&body));
    }
}

/// RB15: the longest log has the lower term; the highest term has a short log.
#[test]
fn rb15_the_best_log_wins_from_a_lower_term() {
    let mut cluster = Cluster::new(3);
    let best = vec![entry(2, 1, "a"), entry(2, 2, "b")];
    feed(&mut cluster, 1, 2, best);
    feed(&mut cluster, 2, 7, vec![entry(1, 1, "z")]);
    cluster.crash(3);
    cluster.run_until(10 * TIMEOUT, |cluster| cluster.leader() == Some(1));
    assert!(cluster.raft(1).term().get() > 7);
}

/// RB15: a lagging replica that asks again and again does not keep others from winning.
#[test]
fn rb15_a_lagging_replica_does_not_hinder_the_election() {
    let mut cluster = Cluster::new(3);
    feed(&mut cluster, 1, 1, vec![entry(1, 1, "a")]);
    feed(&mut cluster, 2, 1, vec![entry(1, 1, "a")]);
    cluster.tick(1, TIMEOUT);
    cluster.tick(2, TIMEOUT);
    for _ in 0..3 * TIMEOUT {
        cluster.tick(3, 2 * TIMEOUT);
        cluster.run(1);
        if cluster.leader().is_some() {
            return assert_ne!(cluster.leader(), Some(3));
        }
    }
    panic!("nobody leads: {}", cluster.describe());
}

/// RB15: who asks for votes itself is no longer loyal to the leader that it misses.
#[test]
fn rb15_candidates_grant_pre_votes_to_others() {
    let mut cluster = Cluster::new(3);
    cluster.elect(3);
    cluster.crash(3);
    cluster.tick(1, 2 * TIMEOUT);
    cluster.drain(1, Drain::All);
    cluster.network.clear();
    assert_eq!(cluster.raft(1).role(), Role::PreCandidate);
    let last = position(1, 1);
    cluster.step(2, 1, 2, Body::PreVote { last });
    cluster.drain(1, Drain::Urgent);
    assert_eq!(cluster.network[0].body, Body::PreVoteResponse { granted: true });
}

/// RB15, liveness: a replica without a vote does not stay loyal to a leader that is gone.
#[test]
fn rb15_learners_forget_a_leader_that_is_gone() {
    let mut cluster = Cluster::new(3);
    cluster.elect(3);
    cluster.with_raft(3, |raft| raft.propose_membership(change(&[1, 3], &[2]))).expect("leads");
    cluster.run(2 * HEARTBEAT);
    cluster.crash(3);
    cluster.tick(2, 2 * TIMEOUT);
    assert_eq!(cluster.raft(2).leader(), None);
    assert_eq!(cluster.raft(2).role(), Role::Follower);
}

/// RB16 (Cloudflare 2020): two of three do not hear each other; the third hears both. The one
/// that hears no leader must neither win nor raise terms.
#[test]
fn rb16_a_partial_partition_does_not_move_the_leader() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.partition(&[1], &[2]);
    for round in 0..20 {
        cluster.run(TIMEOUT);
        assert_eq!(cluster.leader(), Some(1));
        cluster.propose(1, &format!("p{round}"));
    }
    cluster.run(1);
    assert_eq!(cluster.raft(1).term().get(), 1);
    assert_eq!(cluster.raft(1).commit(), cluster.raft(1).last_index());
    cluster.heal();
    cluster.run(3 * TIMEOUT);
    assert_eq!(cluster.raft(2).commit(), cluster.raft(1).last_index());
    assert_eq!(cluster.raft(1).term().get(), 1);
}

/// RB16: a replica that hears nobody asks for ever, and changes nothing.
#[test]
fn rb16_a_deaf_replica_raises_no_terms() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.cut.extend([(1, 3), (2, 3)]);
    cluster.run(20 * TIMEOUT);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!((cluster.raft(1).term().get(), cluster.raft(3).term().get()), (1, 1));
}

/// RB16: a leader that hears nobody steps down, or its heartbeats would paralyse the group.
#[test]
fn rb16_a_deaf_leader_is_replaced() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.cut.extend([(2, 1), (3, 1)]);
    let ticks = cluster
        .run_until(6 * TIMEOUT, |cluster| cluster.leader().is_some_and(|leader| leader != 1));
    assert!(ticks <= 5 * TIMEOUT, "{ticks} ticks");
    cluster.run(20 * TIMEOUT);
    assert!(cluster.leader().is_some_and(|leader| leader != 1));
    assert!(cluster.raft(2).term().get() < 5, "terms do not race: {}", cluster.raft(2).term());
}

/// Everybody works, but node 1's disk completes nothing.
fn run_with_stuck_disk(cluster: &mut Cluster, ticks: u32) {
    for _ in 0..ticks {
        cluster.ids().into_iter().for_each(|id| cluster.tick(id, 1));
        for _ in 0..200 {
            cluster.drain(1, Drain::Urgent);
            cluster.settle_alone(2);
            cluster.settle_alone(3);
            if !cluster.network.is_empty() {
                cluster.deliver(0);
            }
        }
    }
}

/// RB17: a leader whose disk is stuck loses leadership within two election timeouts.
#[test]
fn rb17_a_leader_with_a_stuck_disk_is_replaced() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    run_with_stuck_disk(&mut cluster, 5 * TIMEOUT);
    assert_eq!(cluster.leader(), Some(1), "nothing is to be written: nothing is stuck");
    cluster.propose(1, "x");
    run_with_stuck_disk(&mut cluster, TIMEOUT);
    assert_eq!(cluster.raft(1).role(), Role::Follower);
    run_with_stuck_disk(&mut cluster, 2 * TIMEOUT + HEARTBEAT);
    let leader = cluster.leader().expect("the others can write");
    assert_ne!(leader, 1);
    // It comes back as a follower.
    cluster.run(TIMEOUT);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.raft(1).commit(), cluster.raft(leader).commit());
}

/// RB18: a write that completes for an entry that was replaced meanwhile counts for nothing.
#[test]
fn rb18_a_late_write_does_not_acknowledge_what_replaced_it() {
    let mut cluster = Cluster::new(3);
    let mut raft = cluster.node(1).raft.take().expect("it is up");
    let drained = |raft: &mut coracle_raft::Raft, batch: u64| {
        let mut ready = Ready::default();
        raft.drain(Drain::All, BatchSeq::new(batch), &mut ready);
        let sent = ready.messages.into_iter().filter(|m| kind(&m.body) == "AppendResponse");
        sent.map(|m| (m.to, m.body)).collect::<Vec<_>>()
    };
    let step = |raft: &mut coracle_raft::Raft, from, term, body| {
        let term = coracle_raft::Term::new(term);
        raft.step(coracle_raft::Message { from: node(from), to: node(1), term, body });
    };
    let old = vec![entry(1, 1, "a"), entry(1, 2, "b"), entry(1, 3, "c")];
    step(&mut raft, 2, 1, append((0, 0), old, 0));
    assert_eq!(drained(&mut raft, 1), []);
    step(&mut raft, 3, 2, append((1, 1), vec![entry(2, 2, "d"), entry(2, 3, "e")], 0));
    assert_eq!(drained(&mut raft, 2), []);
    raft.persisted(BatchSeq::new(1));
    assert_eq!(raft.durable_index(), LogIndex::new(1), "2 and 3 were replaced");
    assert_eq!(drained(&mut raft, 3), [], "and are not acknowledged to anyone");
    // And back to the first leader's entries: the same index and term as at first.
    step(&mut raft, 2, 3, append((1, 1), vec![entry(1, 2, "b"), entry(1, 3, "c")], 0));
    assert_eq!(drained(&mut raft, 4), []);
    raft.persisted(BatchSeq::new(2));
    assert_eq!(raft.durable_index(), LogIndex::new(1));
    assert_eq!(drained(&mut raft, 5), []);
    raft.persisted(BatchSeq::new(4));
    assert_eq!(raft.durable_index(), LogIndex::new(3));
    let outcome = AppendOutcome::Accepted { matched: LogIndex::new(3) };
    assert_eq!(drained(&mut raft, 6), [(node(2), Body::AppendResponse { outcome, round: 1 })]);
}

/// RB19: a leader that cannot read an old entry sends nothing instead of an empty predecessor.
#[test]
fn rb19_failed_reads_send_nothing_and_are_tried_again() {
    let mut cluster = Cluster::with(1..=3, &voters(1..=3), |config| config.cache_bytes_max = 0);
    cluster.elect(1);
    cluster.crash(3);
    for text in ["a", "b", "c"] {
        cluster.propose(1, text);
        cluster.settle();
    }
    cluster.node(1).loads_fail = true;
    cluster.start(3);
    for _ in 0..5 * TIMEOUT {
        cluster.run(1);
        assert!(cluster.terms(3).len() <= 1 && cluster.raft(3).role() == Role::Follower);
    }
    cluster.node(1).loads_fail = false;
    cluster.run(3 * TIMEOUT);
    assert_eq!(cluster.terms(3), [1, 1, 1, 1]);
    assert_eq!(cluster.raft(3).commit(), LogIndex::new(4));
}

/// RB19: what comes back from the disk must be what the log holds there.
#[test]
fn rb19_wrong_entries_from_the_disk_are_not_sent() {
    let mut cluster = Cluster::with(1..=3, &voters(1..=3), |config| config.cache_bytes_max = 0);
    cluster.elect(1);
    cluster.crash(3);
    cluster.propose(1, "a");
    cluster.settle();
    cluster.start(3);
    cluster.tick(1, TIMEOUT);
    while cluster.node(1).loads.is_empty() {
        cluster.drain(1, Drain::All);
        cluster.settle_alone(3);
        cluster.settle_alone(2);
        cluster.deliver(0);
    }
    let first = cluster.node(1).loads.remove(0).first;
    cluster.network.clear();
    for wrong in [Vec::new(), vec![entry(9, first.get(), "z")], vec![entry(1, 77, "z")]] {
        cluster.with_raft(1, |raft| raft.entries_loaded(first, Ok(wrong)));
        cluster.drain(1, Drain::All);
        assert_eq!(cluster.count(1, 3, "Append"), 0);
    }
    cluster.run(3 * TIMEOUT);
    assert_eq!(cluster.raft(3).commit(), cluster.raft(1).commit());
}

/// RB20: an answer of a higher term is no vote for this one.
#[test]
fn rb20_a_vote_of_a_higher_term_does_not_count() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    while cluster.raft(1).role() != Role::Candidate {
        [1, 2, 3].into_iter().for_each(|id| cluster.settle_alone(id));
        cluster.deliver(0);
    }
    cluster.settle_alone(1);
    cluster.step(2, 1, 5, Body::VoteResponse { granted: true });
    assert_eq!((cluster.raft(1).role(), cluster.raft(1).term().get()), (Role::Follower, 5));
}

/// RB21: an answer that comes twice, or from a stranger, counts once, or not.
#[test]
fn rb21_votes_count_once_and_only_from_voters() {
    let mut cluster = Cluster::new(5);
    for from in [2, 2, 2, 9, 77] {
        cluster.campaign(1);
        cluster.step(from, 1, 1, Body::PreVoteResponse { granted: true });
        assert_eq!(cluster.raft(1).role(), Role::PreCandidate);
    }
    cluster.step(2, 1, 1, Body::PreVoteResponse { granted: true });
    cluster.step(3, 1, 1, Body::PreVoteResponse { granted: true });
    cluster.settle_alone(1);
    for from in [2, 2, 2, 9, 77] {
        cluster.step(from, 1, 1, Body::VoteResponse { granted: true });
        assert_eq!(cluster.raft(1).role(), Role::Candidate);
    }
    cluster.step(4, 1, 1, Body::VoteResponse { granted: true });
    assert_eq!(cluster.raft(1).role(), Role::Leader);
}

/// RB21: nobody is a member twice.
#[test]
fn rb21_a_membership_lists_nobody_twice() {
    assert_eq!(voters([2, 1, 2]), voters([1, 2]));
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    for twice in [change(&[1, 2, 2], &[]), change(&[1], &[2, 2]), change(&[1, 2], &[2])] {
        let refused = cluster.with_raft(1, |raft| raft.propose_membership(twice));
        assert!(matches!(refused, Err(MembershipError::Invalid(_))), "{refused:?}");
    }
    let twice = Membership { voters: common::nodes([1, 1]), ..Membership::default() };
    assert!(Membership::decode(twice.encode().bytes()).is_err());
}
