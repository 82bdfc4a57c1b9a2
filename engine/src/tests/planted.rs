//! Planted bugs must be found: a check of what the other tests check.

use std::panic::{RefUnwindSafe, catch_unwind};

use coracle_raft::{Body, Bug, GroupId, LogIndex, Message, NodeId, Term, plant};

use super::checkpoint::{base, cluster, full_checkpoint, write_some};
use super::{
    checkpoint, divergence, faults, keyspace, nemesis, pipeline, refetch, repair, show, values,
};
use crate::command::decode;
use crate::testing::{addr, map_of};
use crate::{
    Core, CoreConfig, Drain, Effects, Input, PeerMessage, ReadMode, Recovery, Reply, Request,
    Token, Via, WallMillis,
};

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

/// Each bug fails one of its tests, by what that test looks at.
fn check(cases: &[(Bug, fn(), &str)]) {
    for &(bug, test, wanted) in cases {
        let found = failure(bug, test);
        let found = found.unwrap_or_else(|| panic!("{} is not found", bug.name()));
        assert!(found.contains(wanted), "{}: {found}", bug.name());
    }
}

/// Random faults under counters find each of these within a few seeds.
#[test]
fn the_nemesis_finds_planted_bugs() {
    let cases: &[(Bug, &[&str])] = &[
        (
            Bug::VoteTwiceInTerm,
            &["counted", "twice", "differs", "stale", "given", "never answered"],
        ),
        (Bug::UpToDateByTerm, &["counted", "twice", "differs", "stale", "given", "never answered"]),
        (Bug::ConflictKept, &["counted", "twice", "differs", "stale", "given", "never answered"]),
        (
            Bug::HeartbeatCommitUncapped,
            &["counted", "twice", "differs", "stale", "given", "truncation"],
        ),
        (Bug::ReadBeforeOwnCommit, &["stale"]),
        (Bug::ReadWithoutQuorum, &["stale"]),
        (Bug::FollowerReadsOwnCommit, &["stale"]),
        (Bug::ReadBeforeApplied, &["stale"]),
        (Bug::ProposalMatchedByIndex, &["counted", "twice", "stale", "given already"]),
        (Bug::DeposedLeaderRetries, &["at most", "-UNCERTAIN"]),
        (Bug::TimedOutWriteRetried, &["at most"]),
        (Bug::LostForwardRetried, &["at most"]),
        (Bug::UncertainCalledRetryable, &["at most"]),
        (Bug::EntryAppliedTwice, &["at most", "differs", "given already", "stale"]),
        (Bug::ExpiryByWallClock, &["log clocks"]),
        (Bug::CheckpointIndexTooHigh, &["counted", "differs", "stale", "given"]),
    ];
    for &(bug, wanted) in cases {
        let found =
            (1..=100).find_map(|seed| failure(bug, || assert_ne!(nemesis::run(seed), [0; 4])));
        let found = found.unwrap_or_else(|| panic!("{} is not found", bug.name()));
        assert!(wanted.iter().any(|text| found.contains(text)), "{}: {found}", bug.name());
    }
}

/// Tests of checkpoints, restarts, snapshots and pipelines find these.
#[test]
fn other_tests_find_planted_bugs() {
    let restart = checkpoint::checkpoints_cut_the_log_and_restarts_recover_from_them;
    let killed = checkpoint::a_replica_killed_during_a_checkpoint_recovers_the_same_data;
    let fallback = checkpoint::a_group_whose_records_do_not_add_up_is_left_out;
    let behind = checkpoint::a_replica_too_far_behind_gets_a_snapshot;
    check(&[
        (Bug::EntryAppliedTwice, killed, "data differs"),
        (Bug::CheckpointLacksExpiries, restart, "data differs"),
        (Bug::CheckpointIndexTooHigh, killed, "data differs"),
        (Bug::CompactedPastCheckpoint, fallback, "reaches back"),
        (Bug::StateReleasedTooEarly, values::a_snapshot_of_cold_values_arrives, "does not add up"),
        (Bug::ValuesReleasedEarly, values::a_damaged_checkpoint_falls_back_to_the_one_before, ""),
        (
            Bug::ArrivingValuesReleased,
            checkpoint::values_of_a_shard_that_arrives_are_kept,
            "releases",
        ),
        (Bug::MovedOverNewer, values::values_move_out_of_old_segments, ""),
        (Bug::CheckpointFinishedEarly, values::a_checkpoint_waits_for_what_it_refers_to, ""),
        (Bug::SnapshotLacksExpiries, behind, "data differs"),
        (Bug::RepairTakesAnyVersion, repair::a_shard_goes_on_with_what_is_far_ahead, ""),
        (Bug::LostWithoutProof, repair::a_shard_waits_while_no_replica_has_the_value, ""),
        (Bug::FetchedEntryUnproven, refetch::an_entry_of_another_term_is_not_taken, ""),
        (Bug::LostEntrySkipped, refetch::a_follower_with_lost_entries_catches_up, "data differs"),
        (Bug::LostEntrySkipped, refetch::random_losses_cost_nothing, ""),
        (Bug::StalledShardOvertaken, values::a_shard_that_waits_keeps_its_order, ""),
        (
            Bug::FlushOvertakes,
            keyspace::a_flush_keeps_its_place_behind_commands_that_wait,
            "no answer",
        ),
        (Bug::FlushAppliedTwice, keyspace::a_flush_leaves_nothing, "after a restart"),
        (Bug::FlushForgetsExpiry, keyspace::a_flush_leaves_nothing, "do not catch up"),
        (Bug::FlushSparesShard, keyspace::a_flush_leaves_nothing, ""),
        (Bug::ScanInTableOrder, keyspace::scans_find_what_stays, "missed"),
        (Bug::ScanUnconfirmed, keyspace::a_deposed_leader_answers_no_scan, "stale"),
        (Bug::SnapshotIndexTooLow, behind, "data differs"),
        (
            Bug::UnaskedDeleteSkipped,
            divergence::equal_replicas_are_found_equal,
            "replica's data differ",
        ),
        (
            Bug::DivergedReplicaServes,
            divergence::a_follower_that_has_diverged_is_found_and_serves_nothing,
            "$28-",
        ),
        (Bug::UncertainCalledRetryable, faults::acknowledged_writes_survive_the_leader, "TRYAGAIN"),
        (Bug::PipelinedReadUnordered, pipeline::what_follows_sees_what_is_before_it, ""),
        (
            Bug::PipelineScattered,
            pipeline::what_follows_a_write_that_lost_its_leader_is_refused,
            "",
        ),
    ]);
}

/// A write that a leader has answered is there after the next election (Raft paper §5.4.3).
fn answered_writes_outlive_a_cut_off_leader() {
    let mut cluster = cluster(1, 1);
    let old = cluster.leader(0).unwrap();
    cluster.isolate(old.node.get());
    let token = cluster.submit(old, &[b"SET", b"k", b"v"]);
    cluster.run(1);
    let answered = cluster.answer(token) == Some(&Reply::OK);
    assert!(cluster.run_until(2000, |c| c.leader(0).is_some_and(|at| at != old)));
    let other = cluster.leader(0).unwrap();
    let got = show(&cluster.call(other, "GET k"));
    assert!(!answered || got == "$v", "acknowledged, but lost: {got}");
}

/// What a snapshot replaces is gone (Raft paper fig. 13, InstallSnapshot 7).
fn deleted_keys_do_not_come_back_with_a_snapshot() {
    let mut cluster = cluster(1, 1);
    let leader = cluster.leader(0).unwrap();
    let victim = leader.node.get() % 3 + 1;
    write_some(&mut cluster, leader, 0, 100);
    cluster.assert_replicas_agree();
    cluster.isolate(victim);
    for k in 0..97 {
        cluster.call(leader, &format!("DEL s{k}"));
        cluster.call(leader, &format!("DEL n{k}"));
    }
    for _ in 0..3000 {
        cluster.checkpoint(1 << 20);
        cluster.run(1);
    }
    assert!(base(&cluster, leader, 0) > LogIndex::new(200), "the log was not cut");
    cluster.heal();
    cluster.assert_replicas_agree();
    assert_eq!(cluster.core(addr(victim, 0)).stats().snapshots_installed, 1);
    full_checkpoint(&mut cluster, 1 << 20, 1);
}

/// A follower's read waits for the answer to its own request: a late answer to an earlier one
/// knows nothing of what was written meanwhile (RB4, etcd#20418).
fn a_late_read_index_confirms_no_other_read() {
    let map = map_of(3, 1, 4, 1);
    let here = addr(2, 0);
    let mut core = Core::new(CoreConfig::new(here, map.clone()), Recovery::new(map, here));
    let (leader, group) = (addr(1, 0), GroupId::new(0));
    let message = |body| {
        let (from, to) = (NodeId::new(1), NodeId::new(2));
        let message = Message { from, to, term: Term::new(1), body };
        Input::Peer { from: leader, message: PeerMessage::Raft { group, message } }
    };
    let heartbeat = || message(Body::Heartbeat { commit: LogIndex::ZERO, round: 1 });
    let read = |token| {
        let (via, read_mode, at) = (Via::Plain, ReadMode::AnyReplica, WallMillis(1));
        let command = decode(&[b"GET", b"k"], at).unwrap();
        let token = Token(token);
        Input::Request(Request { token, via, read_mode, follows: false, at, command })
    };
    let mut effects = Effects::default();
    let mut give = |core: &mut Core, inputs: Vec<Input>| {
        for input in inputs {
            core.handle(input);
            core.drain(Drain::All, &mut effects);
            if !effects.records.is_empty() {
                effects.records.clear();
                core.handle(Input::Persisted(effects.batch));
            }
        }
        let context = effects.sends.drain(..).filter_map(|(_, sent)| match sent {
            PeerMessage::Raft {
                message: Message { body: Body::ReadIndex { context }, .. },
                ..
            } => Some(context),
            _ => None,
        });
        (context.collect::<Vec<_>>(), std::mem::take(&mut effects.replies))
    };
    let (asked, _) = give(&mut core, vec![heartbeat(), read(1)]);
    for _ in 0..25 {
        let tick = Input::Tick { at: WallMillis(1) };
        give(&mut core, vec![tick, heartbeat()]);
    }
    give(&mut core, vec![read(2)]);
    let response =
        |context| message(Body::ReadIndexResponse { context, index: Some(LogIndex::ZERO) });
    let late = vec![response(asked[0]), response(asked[0])];
    let (_, replies) = give(&mut core, late);
    assert!(replies.is_empty(), "a late answer confirms {replies:?}");
}

/// What none of the other tests shows.
#[test]
fn small_scenarios_find_planted_bugs() {
    let cases: &[(Bug, fn(), &str)] = &[
        (Bug::ReplyBeforeCommit, answered_writes_outlive_a_cut_off_leader, "but lost"),
        (Bug::SnapshotKeepsOldKeys, deleted_keys_do_not_come_back_with_a_snapshot, "differs"),
        (Bug::ReadContextReused, a_late_read_index_confirms_no_other_read, "confirms"),
    ];
    for (_, test, _) in cases {
        test();
    }
    check(cases);
}
