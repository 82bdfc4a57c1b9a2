//! Planted bugs must be found: a check of what the other tests check.
#![cfg(feature = "planted")]

mod common;

use std::panic::{RefUnwindSafe, catch_unwind};

use common::run::Run;
use common::{Cluster, TIMEOUT};
use coracle_raft::{Bug, Drain, Role, plant};

/// What fails when this is run with the bug planted; `None` if nothing does.
fn failure(bug: Bug, run: impl Fn() + RefUnwindSafe) -> Option<String> {
    let result = catch_unwind(|| {
        plant(Some(bug));
        run();
    });
    plant(None);
    let cause = result.err()?;
    let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
    Some(text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default())
}

/// What a random run of `tests/random.rs` finds, if one of the first seeds finds anything.
fn found_at_random(bug: Bug) -> Option<String> {
    (0..3000).find_map(|seed| {
        failure(bug, || {
            let mut run = Run::new(seed);
            (0..4000).for_each(|_| run.step());
            run.recover();
        })
    })
}

/// Random runs find each of these, and by the rule that it breaks.
#[test]
fn random_runs_find_planted_bugs() {
    let cases: &[(Bug, &[&str])] = &[
        (Bug::VoteBeforePersist, &["both lead", "voted for"]),
        (Bug::VoteTwiceInTerm, &["both lead", "voted for"]),
        (Bug::HardStateForgotten, &["both lead", "voted for"]),
        (Bug::PreVoteCountedAsVote, &["both lead"]),
        (Bug::UpToDateByLength, &["leads", "committed in"]),
        (Bug::UpToDateByTerm, &["leads", "committed in"]),
        (Bug::AckBeforePersist, &["disks"]),
        (Bug::UnwrittenCounted, &["disks"]),
        (Bug::OldTermCounted, &["committed by counting"]),
        (Bug::PrevTermIgnored, &["before", "committed in", "disks"]),
        (Bug::ConflictKept, &["before", "committed in", "disks"]),
        (Bug::MatchTruncates, &["disks", "leads"]),
        (Bug::HeartbeatCommitUncapped, &["committed in", "commits"]),
        (Bug::ReadBeforeOwnCommit, &["was committed"]),
        (Bug::FollowerReadsOwnCommit, &["was committed"]),
    ];
    for &(bug, wanted) in cases {
        let found = found_at_random(bug).unwrap_or_else(|| panic!("{} is not found", bug.name()));
        assert!(wanted.iter().any(|text| found.contains(text)), "{}: {found}", bug.name());
    }
}

/// A leader that others have replaced without its knowledge; their echo of its last round is
/// still under way.
fn replaced_leader() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.run(1);
    cluster.tick(1, TIMEOUT / 2);
    cluster.drain(1, Drain::All);
    while !cluster.network.is_empty() {
        cluster.deliver(0);
    }
    cluster.settle_alone(2);
    cluster.settle_alone(3);
    let echoes = std::mem::take(&mut cluster.network);
    cluster.partition(&[1], &[2, 3]);
    cluster.tick(3, TIMEOUT);
    cluster.tick(2, TIMEOUT);
    cluster.elect(2);
    cluster.propose(2, "news");
    cluster.settle();
    assert!(cluster.raft(1).role() == Role::Leader, "nobody has told it");
    cluster.heal();
    cluster.network = echoes;
    cluster
}

/// Thesis §6.4: such a leader must not answer; `Cluster::drain` looks at every answer.
#[test]
fn stale_reads_of_planted_bugs_are_found() {
    let stale = |bug: Bug, after: fn(&mut Cluster)| {
        let run = move || {
            let mut cluster = replaced_leader();
            cluster.read(1);
            after(&mut cluster);
        };
        run();
        let found = failure(bug, run).unwrap_or_else(|| panic!("{} is not found", bug.name()));
        assert!(found.contains("was committed"), "{}: {found}", bug.name());
    };
    stale(Bug::ReadWithoutQuorum, |cluster| cluster.drain(1, Drain::All));
    stale(Bug::ReadConfirmedByOldRound, |cluster| {
        while !cluster.network.is_empty() {
            cluster.deliver(0);
        }
        cluster.drain(1, Drain::All);
    });
}

/// Thesis §6.2: who hears nobody stops leading.
#[test]
fn a_planted_leader_for_ever_is_found() {
    let run = || {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.partition(&[1], &[2, 3]);
        cluster.run(3 * TIMEOUT);
        assert!(cluster.raft(1).role() != Role::Leader, "it leads nobody");
    };
    run();
    assert_eq!(failure(Bug::CheckQuorumOff, run).as_deref(), Some("it leads nobody"));
}
