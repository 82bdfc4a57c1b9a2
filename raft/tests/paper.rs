//! Raft as it is written: one test for each sentence of the paper (§5 to §8) and of the thesis
//! (§3.10, §4, §6.2, §6.4, §9.6, §10.2.1) that constrains what a replica does.

mod common;

use common::{
    Cluster, HEARTBEAT, TIMEOUT, append, change, entry, kind, node, payload, position, voters,
};
use coracle_raft::{
    AppendOutcome, Body, Drain, LogIndex, LogPosition, ProposeError, Role, Term, TransferError,
};

/// What a replica sends now, without its disk.
fn sent(cluster: &mut Cluster, id: u32, mode: Drain) -> Vec<Body> {
    let before = cluster.network.len();
    cluster.drain(id, mode);
    cluster.network.split_off(before).into_iter().map(|message| message.body).collect()
}

/// What a replica sends once its disk is done.
fn sent_durably(cluster: &mut Cluster, id: u32) -> Vec<Body> {
    let before = cluster.network.len();
    cluster.settle_alone(id);
    cluster.network.split_off(before).into_iter().map(|message| message.body).collect()
}

fn vote(last: (u64, u64)) -> Body {
    Body::Vote { last: position(last.0, last.1), transfer: false }
}

/// A replica that follows node 2 in `term` with these entries on its disk.
fn following(term: u64, terms: &[u64]) -> Cluster {
    let mut cluster = Cluster::new(3);
    let entries = terms.iter().zip(1..).map(|(&term, index)| entry(term, index, "x")).collect();
    cluster.step(2, 1, term, append((0, 0), entries, 0));
    cluster.settle_alone(1);
    cluster.network.clear();
    cluster
}

/// §5.1: "If one server's current term is smaller than the other's, then it updates its current
/// term to the larger value. If a candidate or leader discovers that its term is out of date, it
/// immediately reverts to follower state."
#[test]
fn every_role_takes_a_higher_term_and_follows() {
    type Way = fn(&mut Cluster);
    let ways: &[(Role, Way)] = &[
        (Role::Follower, |_| {}),
        (Role::PreCandidate, |cluster| cluster.campaign(1)),
        (Role::Candidate, |cluster| {
            cluster.campaign(1);
            cluster.step(2, 1, 1, Body::PreVoteResponse { granted: true });
        }),
        (Role::Leader, |cluster| cluster.elect(1)),
    ];
    for (role, get_there) in ways {
        let mut cluster = Cluster::new(3);
        get_there(&mut cluster);
        assert_eq!(cluster.raft(1).role(), *role);
        cluster.step(3, 1, 9, append((0, 0), Vec::new(), 0));
        let raft = cluster.raft(1);
        let now = (raft.role(), raft.term().get(), raft.leader(), raft.vote());
        assert_eq!(now, (Role::Follower, 9, Some(node(3)), None), "{role:?}");
    }
}

/// §5.1: "If a server receives a request with a stale term number, it rejects the request."
#[test]
fn requests_of_old_terms_change_nothing() {
    let mut cluster = following(3, &[1, 3]);
    cluster.tick(1, TIMEOUT);
    for body in [append((0, 0), vec![entry(2, 1, "old")], 1), vote((9, 9))] {
        cluster.step(3, 1, 2, body);
    }
    assert_eq!(cluster.terms(1), [1, 3]);
    assert_eq!((cluster.raft(1).vote(), cluster.raft(1).commit()), (None, LogIndex::ZERO));
    let answers = sent_durably(&mut cluster, 1);
    assert_eq!(answers[1..], [Body::VoteResponse { granted: false }]);
}

/// §5.2: "When servers start up, they begin as followers."
#[test]
fn replicas_start_as_followers() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.restart(1);
    assert_eq!((cluster.raft(1).role(), cluster.raft(1).leader()), (Role::Follower, None));
    assert_eq!((cluster.raft(1).term().get(), cluster.raft(1).vote()), (1, Some(node(1))));
}

/// §5.2: "Leaders send periodic heartbeats to all followers in order to maintain their
/// authority."
#[test]
fn leaders_send_heartbeats() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(1, HEARTBEAT - 1);
    assert!(!cluster.raft(1).needs_drain(Drain::All));
    cluster.tick(1, 1);
    let heartbeats = sent(&mut cluster, 1, Drain::Urgent);
    assert_eq!(heartbeats.iter().map(kind).collect::<Vec<_>>(), ["Heartbeat", "Heartbeat"]);
    cluster.run(20 * TIMEOUT);
    assert_eq!((cluster.leader(), cluster.raft(1).term().get()), (Some(1), 1));
}

/// §5.2: "If a follower receives no communication over a period of time called the election
/// timeout, then it [...] begins an election." §5.2: timeouts are "chosen randomly from a fixed
/// interval".
#[test]
fn election_timeouts_are_spread_over_their_interval() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let mut cluster = Cluster::with(1..=3, &voters(1..=3), |config| config.seed = seed);
        for _ in 0..3 {
            let mut ticks = 0;
            cluster.step(2, 1, 1, Body::Heartbeat { commit: LogIndex::ZERO, round: 1 });
            cluster.settle_alone(1);
            while cluster.raft(1).role() == Role::Follower {
                cluster.tick(1, 1);
                ticks += 1;
                assert!(ticks < 2 * TIMEOUT, "it never campaigns");
            }
            seen.insert(ticks);
        }
    }
    let whole: Vec<_> = (TIMEOUT..2 * TIMEOUT).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), whole);
}

/// §5.2: "To begin an election, a follower increments its current term and transitions to
/// candidate state. It then votes for itself and issues RequestVote RPCs in parallel."
#[test]
fn candidates_raise_the_term_and_vote_for_themselves() {
    let mut cluster = following(3, &[1, 3]);
    cluster.tick(1, 2 * TIMEOUT);
    cluster.network.clear();
    sent(&mut cluster, 1, Drain::All);
    cluster.step(3, 1, 4, Body::PreVoteResponse { granted: true });
    assert_eq!((cluster.raft(1).term().get(), cluster.raft(1).vote()), (4, Some(node(1))));
    assert_eq!(sent_durably(&mut cluster, 1), [vote((3, 2)), vote((3, 2))]);
}

/// §5.2: "Each server will vote for at most one candidate in a given term, on a
/// first-come-first-served basis."
#[test]
fn one_vote_per_term_first_come_first_served() {
    let mut cluster = Cluster::new(3);
    for (from, granted) in [(2, true), (3, false), (2, true)] {
        cluster.step(from, 1, 1, vote((0, 0)));
        assert_eq!(sent_durably(&mut cluster, 1), [Body::VoteResponse { granted }], "{from}");
    }
    cluster.step(3, 1, 2, vote((0, 0)));
    assert_eq!(sent_durably(&mut cluster, 1), [Body::VoteResponse { granted: true }]);
}

/// §5.2: "A candidate wins an election if it receives votes from a majority of the servers in
/// the full cluster for the same term."
#[test]
fn a_majority_of_all_voters_wins() {
    for (count, needed) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
        let mut cluster = Cluster::new(count);
        cluster.campaign(1);
        (2..2 + needed).for_each(|from| {
            cluster.step(from, 1, 1, Body::PreVoteResponse { granted: true });
        });
        assert_eq!(cluster.raft(1).role(), Role::Candidate, "{count} voters");
        // The own vote counts once it is on disk, not before.
        (2..2 + needed).for_each(|from| {
            assert_eq!(cluster.raft(1).role(), Role::Candidate, "{count} voters");
            cluster.step(from, 1, 1, Body::VoteResponse { granted: true });
        });
        assert_eq!(cluster.raft(1).role(), Role::Candidate, "{count} voters");
        cluster.settle_alone(1);
        assert_eq!(cluster.raft(1).role(), Role::Leader, "{count} voters");
    }
}

/// §5.2: "If the leader's term is at least as large as the candidate's current term, then the
/// candidate recognizes the leader as legitimate and returns to follower state."
#[test]
fn candidates_yield_to_a_leader_of_their_term() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    cluster.step(2, 1, 1, Body::PreVoteResponse { granted: true });
    assert_eq!(cluster.raft(1).role(), Role::Candidate);
    cluster.step(2, 1, 1, append((0, 0), Vec::new(), 0));
    let raft = cluster.raft(1);
    assert_eq!((raft.role(), raft.leader(), raft.vote()), {
        (Role::Follower, Some(node(2)), Some(node(1)))
    });
}

/// §5.2: "each candidate will time out and start a new election" when votes are split.
#[test]
fn split_votes_are_resolved() {
    let mut cluster = Cluster::new(4);
    for _ in 0..3 {
        cluster.campaign(1);
        cluster.campaign(2);
        cluster.settle();
    }
    cluster.run_until(10 * TIMEOUT, |cluster| cluster.leader().is_some());
}

/// §5.3: "the leader appends the command to its log as a new entry, then issues AppendEntries
/// RPCs in parallel"; thesis §10.2.1: also in parallel with its own disk.
#[test]
fn appends_go_out_while_the_leader_writes() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let at = cluster.propose(1, "a");
    assert_eq!(at, position(1, 2));
    assert_eq!(sent(&mut cluster, 1, Drain::Urgent), [], "an urgent drain sends nothing new");
    let bodies = sent(&mut cluster, 1, Drain::All);
    assert_eq!(bodies.iter().map(kind).collect::<Vec<_>>(), ["Append", "Append"]);
    assert!(cluster.raft(1).durable_index() < at.index);
}

/// Thesis §10.2.1: an entry may be committed "before the leader has written it to its own disk",
/// by a majority of followers; the leader counts itself only once it has.
#[test]
fn the_leader_counts_itself_once_it_has_written() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "a");
    cluster.drain(1, Drain::All);
    let matched = LogIndex::new(2);
    let accepted =
        || Body::AppendResponse { outcome: AppendOutcome::Accepted { matched }, round: 0 };
    let appends = cluster.take_messages(1, 2, "Append");
    appends.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.settle_alone(2);
    cluster.step(2, 1, 1, accepted());
    assert_eq!(cluster.raft(1).commit(), LogIndex::new(1), "2 of 3, but one not on disk");
    let appends = cluster.take_messages(1, 3, "Append");
    appends.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.settle_alone(3);
    cluster.step(3, 1, 1, accepted());
    assert_eq!(cluster.raft(1).commit(), matched);
    assert_eq!(cluster.raft(1).durable_index(), LogIndex::new(1));
}

/// §5.3: "If the follower does not find an entry in its log with the same index and term, then
/// it refuses the new entries"; the hint lets the leader "bypass all of the conflicting entries
/// in that term".
#[test]
fn followers_refuse_what_does_not_fit() {
    let cases = [
        ((0, 0), None),
        ((1, 1), None),
        ((4, 5), None),
        ((4, 6), Some((4, 5))),
        ((5, 9), Some((4, 5))),
        ((2, 5), Some((1, 2))),
        ((3, 3), Some((1, 2))),
        ((1, 5), Some((1, 2))),
        ((2, 1), Some((1, 1))),
    ];
    for (prev, refused) in cases {
        let mut cluster = following(5, &[1, 1, 4, 4, 4]);
        cluster.step(2, 1, 5, append(prev, Vec::new(), 0));
        let outcome = match refused {
            None => AppendOutcome::Accepted { matched: LogIndex::new(prev.1) },
            Some((term, index)) => {
                AppendOutcome::Rejected { prev: LogIndex::new(prev.1), hint: position(term, index) }
            }
        };
        let want = Body::AppendResponse { outcome, round: 1 };
        assert_eq!(sent_durably(&mut cluster, 1), [want], "{prev:?}");
    }
}

/// §5.3: "the leader handles inconsistencies by forcing the followers' logs to duplicate its
/// own", figure 7: (a) to (f) under the leader of term 8.
#[test]
fn the_logs_of_figure_7_become_the_leaders() {
    let leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let logs: &[(&str, &[u64])] = &[
        ("a", &[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        ("b", &[1, 1, 1, 4]),
        ("c", &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        ("d", &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        ("e", &[1, 1, 1, 4, 4, 4, 4]),
        ("f", &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ];
    for (name, log) in logs {
        let mut cluster = Cluster::new(3);
        for (id, terms) in [(1, &leader[..]), (2, log)] {
            // The truth of the harness wants each entry's content to follow from its place.
            let make = |(&term, index): (&u64, u64)| entry(term, index, "x");
            let entries = terms.iter().zip(1..).map(make).collect();
            cluster.step(3, id, 7, append((0, 0), entries, 0));
            cluster.settle_alone(id);
        }
        cluster.network.clear();
        cluster.tick(2, TIMEOUT);
        cluster.tick(3, TIMEOUT);
        cluster.tick(1, TIMEOUT);
        // Node 3 votes for the leader; 2 may have the longer log.
        cluster.partition(&[2], &[1, 3]);
        cluster.elect(1);
        cluster.heal();
        cluster.run(3 * TIMEOUT);
        let mut want = leader.to_vec();
        want.push(8);
        assert_eq!(cluster.terms(2), want, "({name})");
        assert_eq!(cluster.raft(2).commit(), LogIndex::new(11), "({name})");
    }
}

/// §5.3, figure 2: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of
/// last new entry)": what follows the last new entry may be another leader's.
#[test]
fn followers_commit_only_what_the_message_vouches_for() {
    let mut cluster = following(1, &[1, 1, 1]);
    let mut raft = cluster.node(1).raft.take().expect("it is up");
    let entries = vec![entry(1, 1, "x")];
    let body = append((0, 0), entries, 3);
    let (from, to, term) = (node(3), node(1), Term::new(2));
    raft.step(coracle_raft::Message { from, to, term, body });
    assert_eq!((raft.commit(), raft.last_index()), (LogIndex::new(1), LogIndex::new(3)));
}

/// Figure 2, AppendEntries: "If an existing entry conflicts with a new one, delete [it] and all
/// that follow it": but an old message that agrees must delete nothing.
#[test]
fn late_appends_that_agree_delete_nothing() {
    let mut cluster = following(1, &[1, 1, 1]);
    cluster.step(2, 1, 1, append((0, 0), vec![entry(1, 1, "x")], 0));
    assert_eq!(cluster.terms(1), [1, 1, 1]);
    cluster.step(3, 1, 2, append((1, 1), vec![entry(2, 2, "y")], 0));
    assert_eq!(cluster.terms(1), [1, 2]);
}

/// §5.4.1: "If the logs have last entries with different terms, then the log with the later term
/// is more up-to-date. If the logs end with the same term, then whichever log is longer is."
#[test]
fn votes_go_to_logs_that_are_up_to_date() {
    let cases = [
        ((3, 2), true),
        ((3, 3), true),
        ((4, 1), true),
        ((3, 1), false),
        ((2, 9), false),
        ((0, 0), false),
    ];
    for (last, granted) in cases {
        let mut cluster = following(3, &[1, 3]);
        cluster.tick(1, TIMEOUT);
        cluster.step(3, 1, 4, Body::PreVote { last: position(last.0, last.1) });
        assert_eq!(sent_durably(&mut cluster, 1)[..1], [Body::PreVoteResponse { granted }]);
        cluster.step(3, 1, 4, vote(last));
        assert_eq!(sent_durably(&mut cluster, 1), [Body::VoteResponse { granted }], "{last:?}");
    }
}

/// §5.5: "Raft RPCs are idempotent": whatever comes twice is answered twice and done once.
#[test]
fn duplicated_appends_are_harmless() {
    let mut cluster = Cluster::new(3);
    for _ in 0..2 {
        cluster.step(2, 1, 1, append((0, 0), vec![entry(1, 1, "a"), entry(1, 2, "b")], 0));
        let outcome = AppendOutcome::Accepted { matched: LogIndex::new(2) };
        assert_eq!(sent_durably(&mut cluster, 1), [Body::AppendResponse { outcome, round: 1 }]);
    }
    assert_eq!(cluster.terms(1), [1, 1]);
}

/// §8: "each leader [...] commit[s] a blank no-op entry into the log at the start of its term."
#[test]
fn a_new_leader_starts_with_an_empty_entry() {
    let mut cluster = following(3, &[1, 3]);
    cluster.tick(1, TIMEOUT);
    cluster.elect(1);
    assert_eq!(cluster.terms(1), [1, 3, 4]);
    assert!(cluster.raft(1).can_read());
}

/// Thesis §9.6: "a candidate would only increment its term if it first learned from a majority
/// [...] that they would be willing to grant the candidate their votes."
#[test]
fn pre_vote_changes_nothing_at_either_side() {
    let mut cluster = Cluster::new(3);
    cluster.tick(1, 2 * TIMEOUT);
    assert_eq!((cluster.raft(1).role(), cluster.raft(1).term().get()), (Role::PreCandidate, 0));
    cluster.step(2, 3, 7, Body::PreVote { last: LogPosition::default() });
    let raft = cluster.raft(3);
    assert_eq!((raft.term().get(), raft.vote(), raft.role()), (0, None, Role::Follower));
    assert_eq!(sent(&mut cluster, 3, Drain::Urgent), [Body::PreVoteResponse { granted: true }]);
}

/// Thesis §4.2.3: "if a server receives a RequestVote request within the minimum election timeout
/// of hearing from a current leader, it does not update its term or grant its vote"; §3.10 makes
/// an exception for transfers.
#[test]
fn who_hears_a_leader_elects_nobody_else() {
    let mut cluster = following(1, &[1]);
    cluster.tick(1, TIMEOUT - 1);
    cluster.step(3, 1, 5, vote((9, 9)));
    cluster.step(3, 1, 5, Body::PreVote { last: position(9, 9) });
    assert_eq!(cluster.raft(1).term().get(), 1);
    assert_eq!(sent_durably(&mut cluster, 1), [Body::PreVoteResponse { granted: false }]);
    cluster.step(3, 1, 5, Body::Vote { last: position(9, 9), transfer: true });
    assert_eq!(sent_durably(&mut cluster, 1), [Body::VoteResponse { granted: true }]);
}

/// Thesis §6.4.1: the same holds for the replica itself: a lease may count on it.
#[test]
fn who_hears_a_leader_does_not_campaign() {
    let mut cluster = following(1, &[1]);
    cluster.tick(1, TIMEOUT - 1);
    cluster.campaign(1);
    assert_eq!((cluster.raft(1).role(), cluster.raft(1).leader()), (Role::Follower, Some(node(2))));
    cluster.tick(1, 1);
    cluster.campaign(1);
    assert_eq!(cluster.raft(1).role(), Role::PreCandidate);
}

/// Thesis §6.2: "a leader [...] steps down if an election timeout elapses without a successful
/// round of heartbeats to a majority of its cluster".
#[test]
fn a_leader_without_a_quorum_steps_down() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.partition(&[1, 2, 3], &[4, 5]);
    cluster.run(5 * TIMEOUT);
    assert_eq!(cluster.leader(), Some(1), "three of five are a quorum");
    cluster.partition(&[1, 2], &[3]);
    for _ in 0..2 * TIMEOUT {
        cluster.tick(1, 1);
        cluster.settle();
    }
    assert_eq!(cluster.raft(1).role(), Role::Follower);
    let refused = cluster.with_raft(1, |raft| raft.propose(payload("x")));
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: None }));
}

/// Thesis §3.10: the leader brings the target up to date, tells it to campaign, and refuses
/// proposals meanwhile.
#[test]
fn leadership_is_transferred_to_a_replica_that_is_up_to_date() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let transfer = |cluster: &mut Cluster, to: u32| {
        cluster.with_raft(1, |raft| raft.transfer_leadership(node(to)))
    };
    assert_eq!(transfer(&mut cluster, 1), Err(TransferError::NotAVoter(node(1))));
    assert_eq!(transfer(&mut cluster, 9), Err(TransferError::NotAVoter(node(9))));
    cluster.propose(1, "a");
    assert_eq!(transfer(&mut cluster, 2), Ok(()));
    assert_eq!(cluster.count(1, 2, "TimeoutNow"), 0, "it lacks the newest entry");
    let refused = cluster.with_raft(1, |raft| raft.propose(payload("b")));
    assert_eq!(refused, Err(ProposeError::Transferring { to: node(2) }));
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.raft(2).term().get(), 2, "no timeout had to pass");
}

/// Thesis §4.2.1: a learner gets the log but "is not yet counted towards majorities", and does
/// not campaign.
#[test]
fn learners_follow_and_are_never_counted() {
    let mut cluster = Cluster::with(1..=4, &voters(1..=3), |_| {});
    cluster.elect(1);
    let learn = change(&[1, 2, 3], &[4]);
    cluster.with_raft(1, |raft| raft.propose_membership(learn)).expect("it leads");
    cluster.settle();
    assert_eq!(cluster.raft(4).last_index(), cluster.raft(1).last_index());
    cluster.partition(&[2, 3], &[1, 4]);
    let at = cluster.propose(1, "a");
    cluster.settle();
    assert_eq!(cluster.raft(4).last_index(), at.index);
    assert!(cluster.raft(1).commit() < at.index, "1 and 4 are no majority");
    cluster.tick(4, 5 * TIMEOUT);
    assert_eq!(cluster.raft(4).role(), Role::Follower);
}

/// Thesis §4.3: in the joint configuration "agreement requires majorities from both the old and
/// new configurations".
#[test]
fn joint_memberships_need_both_majorities() {
    let mut cluster = Cluster::with(1..=5, &voters(1..=3), |_| {});
    cluster.elect(1);
    cluster.partition(&[4, 5], &[1, 2, 3]);
    let to = change(&[1, 4, 5], &[]);
    let at = cluster.with_raft(1, |raft| raft.propose_membership(to)).expect("it leads");
    cluster.settle();
    assert!(cluster.raft(1).commit() < at.index, "no majority of the new voters");
    cluster.heal();
    cluster.partition(&[2, 3], &[1, 4, 5]);
    cluster.tick(1, HEARTBEAT);
    cluster.settle();
    assert!(!cluster.raft(1).membership().is_joint(), "both halves have acknowledged it");
    assert_eq!(*cluster.raft(1).membership(), voters([1, 4, 5]));
}

/// Thesis §6.4: a read is answered after a round of heartbeats that starts after it arrived, with
/// the commit index of its arrival; without a quorum it is not.
#[test]
fn reads_need_a_round_that_starts_after_them() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(1, HEARTBEAT);
    cluster.drain(1, Drain::Urgent);
    cluster.settle_alone(2);
    let read = cluster.read(1);
    let old = cluster.take_messages(1, 2, "Heartbeat");
    old.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.settle_alone(2);
    let echoes = cluster.take_messages(2, 1, "HeartbeatResponse");
    assert_eq!(echoes.len(), 1);
    echoes.into_iter().for_each(|m| cluster.hand_over(m));
    cluster.drain(1, Drain::Urgent);
    assert_eq!(cluster.answer(1, read), None, "that round was sent before the read");
    cluster.settle();
    assert_eq!(cluster.answer(1, read), Some(Some(LogIndex::new(1))));
}

/// A minority that raised its term while cut off rejoins; the cluster takes the
/// term, and elects among the up-to-date majority.
#[test]
fn minority_with_raised_term_rejoins_and_majority_elects() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.partition(&[4, 5], &[1, 2, 3]);
    // PreVote keeps it from raising the term by itself; old versions and lost votes do not.
    for id in [4, 5] {
        cluster.tick(id, TIMEOUT);
        cluster.step(3, id, 9, vote((1, 1)));
    }
    let at = cluster.propose(1, "kept");
    cluster.run(2);
    assert_eq!(cluster.raft(4).term().get(), 9);
    assert!(cluster.raft(1).commit() >= at.index);
    cluster.heal();
    cluster.run_until(10 * TIMEOUT, |cluster| {
        cluster.leader().is_some_and(|id| cluster.raft(id).term().get() >= 9)
    });
    let leader = cluster.leader().expect("just seen");
    assert!([1, 2, 3].contains(&leader), "{leader} lacks a committed entry");
    cluster.run(2 * TIMEOUT);
    for id in 1..=5 {
        assert_eq!(cluster.raft(id).term_of(at.index), Some(at.term), "{id}");
        assert!(cluster.raft(id).commit() > at.index, "{id}");
    }
}
