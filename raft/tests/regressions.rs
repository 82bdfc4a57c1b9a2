//! Bugs that other systems had (docs: "named regressions"), each as a test: RB1 to RB14, where
//! safety is at stake. RB15 to RB21 are in `regressions_liveness.rs`; RB2 concerns the disk, and
//! RB22 and later more than one group or the state machine: they are tested there.

mod common;

use common::{Cluster, TIMEOUT, append, change, entry, node, payload, position, voters};
use coracle_raft::{
    Body, Drain, Entry, EntryKind, LogIndex, LogPosition, Membership, MembershipError, ReadPolicy,
    Role,
};

/// RB1: no vote leaves before it is on disk, and one that was lost in a crash was never given.
#[test]
fn rb1_votes_wait_for_the_disk() {
    let mut cluster = Cluster::new(3);
    let ask = || Body::Vote { last: LogPosition::default(), transfer: false };
    cluster.step(1, 2, 1, ask());
    cluster.drain(2, Drain::All);
    assert_eq!(cluster.network, [], "the vote is not on disk");
    cluster.restart(2);
    cluster.step(3, 2, 1, ask());
    cluster.drain(2, Drain::All);
    cluster.persist(2);
    cluster.drain(2, Drain::Urgent);
    let bodies: Vec<_> = cluster.network.iter().map(|m| (m.to, &m.body)).collect();
    assert_eq!(bodies, [(node(3), &Body::VoteResponse { granted: true })]);
    // Now it stands, also after a crash.
    cluster.restart(2);
    assert_eq!(cluster.raft(2).vote(), Some(node(3)));
}

/// RB1: stepping down in the same term does not free the vote.
#[test]
fn rb1_stepping_down_keeps_the_vote() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.partition(&[1], &[2, 3]);
    cluster.tick(1, 3 * TIMEOUT);
    cluster.settle_alone(1);
    cluster.tick(1, TIMEOUT);
    assert_ne!(cluster.raft(1).role(), Role::Leader);
    assert_eq!((cluster.raft(1).term().get(), cluster.raft(1).vote()), (1, Some(node(1))));
    cluster.step(3, 1, 1, Body::Vote { last: position(9, 9), transfer: true });
    assert_eq!(cluster.raft(1).vote(), Some(node(1)));
}

/// RB3: before the first commit of its term a leader may not know what was committed.
#[test]
fn rb3_reads_wait_for_the_first_commit_of_the_term() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "x");
    cluster.settle();
    cluster.partition(&[1], &[2, 3]);
    cluster.run(TIMEOUT);
    cluster.campaign(2);
    while cluster.raft(2).role() != Role::Leader {
        cluster.settle_one(2);
        cluster.settle_one(3);
        cluster.deliver(0);
    }
    let read = cluster.read(2);
    assert!(!cluster.raft(2).can_read());
    cluster.settle_alone(2);
    // The first round reaches node 3, whose disk is slow: it echoes nothing yet.
    let round = cluster.take_messages(2, 3, "Append");
    round.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.settle_alone(2);
    assert_eq!(cluster.answer(2, read), None);
    cluster.settle();
    assert_eq!(cluster.answer(2, read), Some(Some(LogIndex::new(3))));
}

/// RB4: what an old leader answers late does not answer a read sent to a new one.
#[test]
fn rb4_read_contexts_do_not_outlive_a_leader_change() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let read = cluster.read(3);
    cluster.settle_alone(3);
    assert_eq!(cluster.take_messages(3, 1, "ReadIndex").len(), 1);
    cluster.step(2, 3, 2, Body::Heartbeat { commit: LogIndex::ZERO, round: 1 });
    cluster.settle_alone(3);
    assert_eq!(cluster.answer(3, read), Some(None), "refused when the leader changes");
    let late = Body::ReadIndexResponse { context: read, index: Some(LogIndex::new(1)) };
    cluster.step(1, 3, 1, late.clone());
    cluster.step(2, 3, 2, late.clone());
    let again = cluster.read(3);
    assert_ne!(again, read);
    cluster.step(2, 3, 2, late);
    cluster.settle_alone(3);
    assert_eq!(cluster.answer(3, again), None, "that was the answer to another read");
}

/// RB4: a duplicated request is answered once to the driver.
#[test]
fn rb4_duplicated_requests_are_answered_once() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let read = cluster.read(2);
    cluster.settle_alone(2);
    let asked = cluster.network.clone();
    cluster.network.extend(asked);
    cluster.settle();
    assert_eq!(cluster.node(2).reads.len(), 1);
    assert_eq!(cluster.answer(2, read), Some(Some(LogIndex::new(1))));
}

/// RB5: a follower's read that timed out stays refused, whatever comes later.
#[test]
fn rb5_follower_reads_time_out_once() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let read = cluster.read(2);
    for _ in 0..TIMEOUT {
        cluster.step(1, 2, 1, Body::Heartbeat { commit: LogIndex::new(1), round: 1 });
        cluster.tick(2, 1);
    }
    cluster.settle_alone(2);
    assert_eq!(cluster.answer(2, read), Some(None));
    let late = Body::ReadIndexResponse { context: read, index: Some(LogIndex::new(1)) };
    cluster.step(1, 2, 1, late);
    cluster.settle();
    assert_eq!(cluster.node(2).reads.len(), 1);
}

fn with_leases() -> Cluster {
    Cluster::with(1..=3, &voters(1..=3), |config| {
        config.read = ReadPolicy::Lease { drift_ticks: 1 };
    })
}

/// Whether a read is answered without asking anybody.
fn reads_at_once(cluster: &mut Cluster, id: u32) -> bool {
    let read = cluster.read(id);
    let before = cluster.network.len();
    cluster.drain(id, Drain::Urgent);
    cluster.network.truncate(before);
    cluster.answer(id, read).is_some_and(|index| index.is_some())
}

/// RB6: a lease ends before anybody else can have been elected, counted from the send.
#[test]
fn rb6_leases_end_before_the_next_election() {
    let mut cluster = with_leases();
    cluster.elect(1);
    cluster.run(4);
    assert!(reads_at_once(&mut cluster, 1));
    // A round is sent, and heard much later: the lease counts from the send.
    cluster.tick(1, 3);
    cluster.drain(1, Drain::All);
    let sent = std::mem::take(&mut cluster.network);
    cluster.tick(1, TIMEOUT - 3);
    sent.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.settle_alone(2);
    cluster.take_messages(2, 1, "HeartbeatResponse").into_iter().for_each(|m| {
        cluster.hand_over(m);
    });
    // Sent at tick 0, now it is 7, the lease is 10 - 1 for drift - 1 for the ticks' size = 8.
    assert!(reads_at_once(&mut cluster, 1));
    cluster.tick(1, 1);
    assert!(!reads_at_once(&mut cluster, 1), "the lease is over");
}

/// RB6: a TimeoutNow under way frees its target from stickiness at any later time.
#[test]
fn rb6_no_lease_after_a_transfer_was_tried() {
    let mut cluster = with_leases();
    cluster.elect(1);
    cluster.run(4);
    assert!(reads_at_once(&mut cluster, 1));
    cluster.with_raft(1, |raft| raft.transfer_leadership(node(2))).expect("2 votes");
    cluster.drain(1, Drain::All);
    assert!(!cluster.take_messages(1, 2, "TimeoutNow").is_empty(), "delayed on the network");
    assert!(!reads_at_once(&mut cluster, 1));
    cluster.run(TIMEOUT + 5);
    let refused = cluster.with_raft(1, |raft| raft.propose(payload("x")));
    assert!(refused.is_ok(), "the transfer has been given up");
    assert!(!reads_at_once(&mut cluster, 1), "but its target may still campaign");
}

/// RB6: a replica that restarts remembers nothing, but keeps what it may have promised.
#[test]
fn rb6_restarts_keep_the_lease_of_the_leader() {
    let mut cluster = with_leases();
    cluster.elect(1);
    cluster.run(4);
    cluster.restart(2);
    cluster.partition(&[1], &[2, 3]);
    cluster.tick(3, 2 * TIMEOUT);
    cluster.settle();
    assert!(reads_at_once(&mut cluster, 1));
    assert_ne!(cluster.raft(3).role(), Role::Leader);
    cluster.run(3 * TIMEOUT);
    assert!(cluster.leader().is_some_and(|id| id != 1));
}

/// RB7 (Raft paper, figure 8): an entry of an old term on a majority is not committed by that.
#[test]
fn rb7_entries_of_old_terms_are_not_committed_by_counting() {
    let mut cluster = Cluster::with(1..=3, &voters(1..=3), |c| c.append_entries_max = 1);
    cluster.step(3, 1, 2, append((0, 0), vec![entry(1, 1, "a"), entry(2, 2, "b")], 0));
    cluster.settle_alone(1);
    cluster.network.clear();
    cluster.step(3, 2, 1, append((0, 0), vec![entry(1, 1, "a")], 0));
    cluster.settle_alone(2);
    cluster.network.clear();
    cluster.cut.insert((1, 3));
    cluster.tick(2, TIMEOUT);
    cluster.tick(1, 2 * TIMEOUT);
    while cluster.raft(1).role() != Role::Leader {
        cluster.settle_one(1);
        cluster.settle_one(2);
        cluster.deliver(0);
    }
    let mut on_majority = false;
    for _ in 0..100 {
        cluster.settle_alone(1);
        cluster.settle_alone(2);
        if !cluster.network.is_empty() {
            cluster.deliver(0);
        }
        if cluster.raft(1).progress().any(|(_, progress)| progress.matched.get() == 2) {
            on_majority = true;
            assert_eq!(cluster.raft(1).commit(), LogIndex::ZERO);
        }
    }
    assert!(on_majority, "the entry of term 2 was on nodes 1 and 2 alone");
    assert_eq!(cluster.raft(1).commit(), LogIndex::new(3), "with the first of its own");
}

/// RB8 (Ongaro, raft-dev 2015): no change before the leader has committed in its own term.
#[test]
fn rb8_no_membership_change_before_an_own_commit() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    while cluster.raft(1).role() != Role::Leader {
        cluster.ids().into_iter().for_each(|id| cluster.settle_alone(id));
        cluster.deliver(0);
    }
    let learner = change(&[1, 2, 3], &[4]);
    let refused = cluster.with_raft(1, |raft| raft.propose_membership(learner.clone()));
    assert_eq!(refused, Err(MembershipError::NoOwnCommit));
    cluster.settle();
    assert!(cluster.with_raft(1, |raft| raft.propose_membership(learner)).is_ok());
}

/// Lets messages flow between these nodes only, until there are none.
fn settle_among(cluster: &mut Cluster, ids: &[u32]) {
    for _ in 0..1000 {
        ids.iter().for_each(|&id| cluster.settle_alone(id));
        let inside = |id: coracle_raft::NodeId| ids.contains(&id.get());
        match cluster.network.iter().position(|m| inside(m.from) && inside(m.to)) {
            Some(at) => cluster.deliver(at),
            None => return,
        }
    }
    panic!("no rest among {ids:?}");
}

/// RB9: a membership counts from when it is in the log, not from when it is applied.
#[test]
fn rb9_candidates_use_the_newest_membership_of_their_log() {
    let mut cluster = Cluster::with(1..=4, &voters(1..=3), |_| {});
    cluster.elect(1);
    cluster
        .with_raft(1, |raft| raft.propose_membership(change(&[1, 2, 3, 4], &[])))
        .expect("leads");
    settle_among(&mut cluster, &[1, 2]);
    assert!(cluster.raft(2).membership().is_joint(), "in the log of 2");
    assert!(!cluster.raft(2).membership_at(cluster.raft(2).applied_index()).is_joint());
    cluster.network.clear();
    cluster.crash(1);
    cluster.tick(2, 2 * TIMEOUT);
    cluster.settle_alone(2);
    assert_eq!(cluster.count(2, 4, "PreVote"), 1, "the new voter is asked");
}

/// RB9, liveness: a voter that a change removes still campaigns while the change is not
/// committed; its log may be the only one that can win (thesis §4.2.2).
#[test]
fn rb9_a_removed_voter_can_finish_its_own_removal() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let remove = change(&[3], &[1, 2]);
    cluster.with_raft(1, |raft| raft.propose_membership(remove)).expect("leads");
    // The joint entry is committed, and the final one reaches 1 and 2 only.
    while cluster.raft(1).membership_at(LogIndex::new(3)).is_joint() {
        cluster.ids().into_iter().for_each(|id| cluster.settle_alone(id));
        cluster.deliver(0);
    }
    cluster.partition(&[3], &[1, 2]);
    cluster.settle();
    cluster.heal();
    [1, 2, 3].into_iter().for_each(|id| cluster.restart(id));
    assert!(!cluster.raft(1).membership().is_voter(node(1)), "in the log of 1 it is removed");
    assert!(cluster.raft(3).membership().is_joint(), "3 cannot win: its log is shorter");
    cluster.run_until(20 * TIMEOUT, |cluster| cluster.leader() == Some(3));
    cluster.run(1);
    assert_eq!(cluster.raft(3).membership().voters, [node(3)]);
    assert!(cluster.raft(3).can_read() && !cluster.raft(3).membership().is_joint());
}

/// RB9, liveness: the same after a restart, when the change that gave it a vote is not known to
/// be committed either.
#[test]
fn rb9_a_removed_voter_campaigns_by_any_open_membership() {
    let mut cluster = Cluster::with(1..=3, &voters([2, 3]), |_| {});
    let joint = voters([1, 3]).enter(&change(&[2, 3], &[])).expect("voters only");
    let make = |index, membership: &Membership| {
        let (kind, payload) = (EntryKind::Membership, membership.encode());
        Entry { kind, payload, ..entry(1, index, "") }
    };
    let entries = vec![make(1, &joint), make(2, &joint.leave())];
    cluster.step(2, 1, 1, append((0, 0), entries, 0));
    cluster.settle_alone(1);
    cluster.restart(1);
    assert!(!cluster.raft(1).membership().is_voter(node(1)));
    assert!(!cluster.raft(1).membership_at(cluster.raft(1).commit()).is_voter(node(1)));
    cluster.tick(1, 2 * TIMEOUT);
    assert_eq!(cluster.raft(1).role(), Role::PreCandidate);
}

/// RB10: the final membership waits until the joint one is committed, also after a restart.
#[test]
fn rb10_a_recovered_joint_membership_is_left_only_once_committed() {
    let mut cluster = Cluster::with(1..=4, &voters(1..=3), |_| {});
    cluster.elect(1);
    cluster.with_raft(1, |raft| raft.propose_membership(change(&[1, 2, 4], &[]))).expect("leads");
    settle_among(&mut cluster, &[1]);
    cluster.network.clear();
    assert!(cluster.raft(1).membership().is_joint());
    cluster.restart(1);
    cluster.tick(2, TIMEOUT);
    cluster.tick(3, TIMEOUT);
    cluster.campaign(1);
    settle_among(&mut cluster, &[1, 2, 3]);
    let joint_at = LogIndex::new(2);
    assert_eq!(cluster.raft(1).role(), Role::Leader);
    assert_eq!(cluster.raft(1).last_index(), LogIndex::new(4), "joint, empty, and final");
    assert!(cluster.raft(1).commit() >= joint_at && !cluster.raft(1).membership().is_joint());
    cluster.network.clear();
    cluster.run_until(5 * TIMEOUT, |cluster| cluster.raft(4).commit() >= LogIndex::new(4));
}

/// RB11: the leader of two leaves; the other one goes on alone.
#[test]
fn rb11_the_leader_can_leave_a_group_of_two() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.with_raft(1, |raft| raft.propose_membership(change(&[2], &[]))).expect("leads");
    cluster.settle();
    assert_eq!(cluster.raft(1).role(), Role::Follower, "stepped down when it was committed");
    assert_eq!(*cluster.raft(2).membership(), voters([2]));
    cluster.crash(1);
    cluster.run_until(3 * TIMEOUT, |cluster| cluster.leader() == Some(2));
    cluster.propose(2, "alone");
    cluster.settle();
    assert_eq!(cluster.raft(2).commit(), cluster.raft(2).last_index());
}

/// RB12: one change at a time, until the joint membership is left and that is applied.
#[test]
fn rb12_changes_do_not_overlap() {
    let mut cluster = Cluster::with(1..=5, &voters(1..=3), |_| {});
    cluster.elect(1);
    let propose = |cluster: &mut Cluster, to: &[u32]| {
        let change = change(to, &[]);
        cluster.with_raft(1, |raft| raft.propose_membership(change))
    };
    let joint = propose(&mut cluster, &[1, 2, 4]).expect("nothing under way");
    let refused = Err(MembershipError::InProgress { at: joint.index });
    assert_eq!(propose(&mut cluster, &[1, 2, 5]), refused);
    // The joint entry is applied, the final one is under way.
    while !cluster.raft(1).membership().outgoing.is_empty() {
        [1, 2, 3, 4].into_iter().for_each(|id| cluster.settle_alone(id));
        cluster.deliver(0);
    }
    let refused = Err(MembershipError::InProgress { at: joint.index.next() });
    assert_eq!(propose(&mut cluster, &[1, 2, 5]), refused);
    cluster.settle();
    assert!(propose(&mut cluster, &[1, 2, 5]).is_ok());
    cluster.settle();
    assert_eq!(*cluster.raft(1).membership(), voters([1, 2, 5]));
}

/// RB13: an uncommitted membership that a snapshot replaces is gone with its entry.
#[test]
fn rb13_a_snapshot_drops_memberships_it_contradicts() {
    let mut cluster = Cluster::new(3);
    let next = voters([1, 2, 9]).encode();
    let kind = EntryKind::Membership;
    let uncommitted = Entry { kind, payload: next, ..entry(1, 2, "") };
    cluster.step(3, 1, 1, append((0, 0), vec![entry(1, 1, "a"), uncommitted], 0));
    cluster.settle_alone(1);
    assert_eq!(*cluster.raft(1).membership(), voters([1, 2, 9]));
    cluster.step(2, 1, 2, Body::Heartbeat { commit: LogIndex::ZERO, round: 1 });
    let mut raft = cluster.node(1).raft.take().expect("it is up");
    assert!(raft.snapshot_installed(node(2), position(2, 5), voters(1..=3), 1));
    assert_eq!(*raft.membership(), voters(1..=3));
    assert_eq!((raft.last_index(), raft.base()), (LogIndex::new(5), position(2, 5)));
}

/// RB13: entries that agree with a snapshot stay, with their memberships.
#[test]
fn rb13_a_snapshot_keeps_what_follows_it() {
    let mut cluster = Cluster::new(3);
    let kind = EntryKind::Membership;
    let change = Entry { kind, payload: voters([1, 2]).encode(), ..entry(1, 3, "") };
    let entries = vec![entry(1, 1, "a"), entry(1, 2, "b"), change];
    cluster.step(3, 1, 1, append((0, 0), entries, 0));
    cluster.settle_alone(1);
    let base = position(1, 2);
    let mut raft = cluster.node(1).raft.take().expect("it is up");
    assert!(raft.snapshot_installed(node(3), base, voters(1..=3), 1));
    assert_eq!((raft.base(), raft.last_index()), (base, LogIndex::new(3)));
    assert_eq!(*raft.membership(), voters([1, 2]));
    assert_eq!(*raft.membership_at(base.index), voters(1..=3));
}

/// RB14: a snapshot carries the membership as of its last entry, not an older or newer one.
#[test]
fn rb14_a_snapshot_carries_the_membership_of_its_base() {
    let mut cluster = Cluster::with(1..=4, &voters(1..=3), |_| {});
    cluster.elect(1);
    cluster.partition(&[3], &[1, 2, 4]);
    cluster.with_raft(1, |raft| raft.propose_membership(change(&[1, 2, 3], &[4]))).expect("leads");
    cluster.settle();
    cluster.compact(1);
    cluster.settle();
    assert_eq!(cluster.raft(1).base().index, LogIndex::new(2), "right at the change");
    // A newer change that is not committed must not be in it.
    cluster.partition(&[1], &[2, 4]);
    cluster.with_raft(1, |raft| raft.propose_membership(change(&[1, 2, 3], &[]))).expect("leads");
    cluster.heal();
    cluster.partition(&[2], &[1, 3, 4]);
    cluster.run_until(4 * TIMEOUT, |cluster| cluster.raft(3).base().index.get() == 2);
    let base = cluster.raft(3).base().index;
    assert_eq!(cluster.raft(3).membership_at(base).learners, [node(4)]);
    cluster.heal();
    cluster.run(2 * TIMEOUT);
    assert_eq!(*cluster.raft(3).membership(), voters(1..=3));
}
