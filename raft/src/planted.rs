//! Planted bugs: faults of the code itself, to see whether the tests would find them.
//!
//! Each is one short condition at the place where the rule is kept that it breaks, in this crate,
//! `engine`, `wal` or `net`. They exist only with the feature `planted`; without it [`planted`] is
//! `false` for the compiler and nothing of them is left in the product.
//!
//! All of them can be reached by a cluster of three or five nodes under crashes, power losses,
//! partitions, slow links and disks, damage at rest and checkpoints.

/// Declares the bugs: variant, name, and what is wrong, by which source.
macro_rules! bugs {
    ($( $bug:ident $name:literal $what:literal; )*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Bug {
            $( #[doc = $what] $bug, )*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$( Self::$bug, )*];

            /// Its name, in kebab case.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$bug => $name, )* }
            }

            /// What is wrong and which rule that breaks, in one sentence.
            pub const fn describe(self) -> &'static str {
                match self { $( Self::$bug => $what, )* }
            }
        }
    };
}

bugs! {
    // Elections.
    VoteBeforePersist "vote-before-persist"
        "A vote is answered before it is on disk (Raft paper fig. 2, persistent state).";
    VoteTwiceInTerm "vote-twice-in-term"
        "A replica that has voted gives another candidate of the term its vote too (Raft paper \
         §5.2).";
    HardStateForgotten "hard-state-forgotten"
        "A restarted replica forgets its term and vote, and may vote again (Raft paper fig. 2, \
         persistent state).";
    PreVoteCountedAsVote "pre-vote-counted-as-vote"
        "A late answer to a pre-vote counts as a vote, though it promises nothing (thesis §9.6).";
    UpToDateByLength "up-to-date-by-length"
        "Of two logs the longer one is taken for the newer one, whatever the terms (Raft paper \
         §5.4.1).";
    UpToDateByTerm "up-to-date-by-term"
        "Of two logs that end in the same term the shorter one may win (Raft paper §5.4.1).";
    CheckQuorumOff "check-quorum-off"
        "A leader that hears no quorum goes on leading, for ever (thesis §6.2).";

    // Replication.
    AckBeforePersist "ack-before-persist"
        "An append is acknowledged before its entries are on disk (Raft paper fig. 2).";
    UnwrittenCounted "unwritten-counted"
        "A leader counts itself for entries that its own disk does not hold yet (thesis §10.2.1).";
    OldTermCounted "old-term-counted"
        "Entries of earlier terms are committed by counting replicas (Raft paper §5.4.2, fig. 8).";
    PrevTermIgnored "prev-term-ignored"
        "A follower looks only whether it has an entry before those sent, not of which term (Raft \
         paper §5.3).";
    ConflictKept "conflict-kept"
        "A follower keeps entries that contradict the leader's and acknowledges them (Raft paper \
         §5.3).";
    MatchTruncates "match-truncates"
        "An append that came late and agrees with the log cuts off what follows it (Raft paper \
         fig. 2, AppendEntries 3).";
    HeartbeatCommitUncapped "heartbeat-commit-uncapped"
        "A heartbeat tells a follower to commit more than it is known to agree with (Raft paper \
         fig. 2, AppendEntries 5).";

    // Reads.
    ReadBeforeOwnCommit "read-before-own-commit"
        "A new leader serves reads before it has committed an entry of its term (thesis §6.4, \
         step 1).";
    ReadWithoutQuorum "read-without-quorum"
        "A leader serves reads without making sure that it still leads (thesis §6.4, step 3).";
    ReadConfirmedByOldRound "read-confirmed-by-old-round"
        "A read is confirmed by echoes of a round that was sent before the read arrived (thesis \
         §6.4, step 3).";
    FollowerReadsOwnCommit "follower-reads-own-commit"
        "A follower serves a read at its own commit index without asking the leader (thesis §6.4).";
    ReadBeforeApplied "read-before-applied"
        "A confirmed read is answered before the entries up to its index are applied (thesis §6.4, \
         step 4).";
    ReadContextReused "read-context-reused"
        "Requests for a read index share one number, so that a late answer to one confirms another \
         (etcd#20418).";
    PipelinedReadUnordered "pipelined-read-unordered"
        "A read overtakes writes that the same connection has sent before it (Redis, \
         \"Pipelining\").";
    PipelineScattered "pipeline-scattered"
        "Commands that follow one which lost its leader find their way alone, and may overtake it \
         (Redis, \"Pipelining\").";

    // Fates of writes.
    ReplyBeforeCommit "reply-before-commit"
        "A write is answered when it is appended, not when it is committed (Raft paper §5.3).";
    ProposalMatchedByIndex "proposal-matched-by-index"
        "A write gets its answer from whatever entry is committed at its index, of whichever term \
         (thesis §6.3).";
    DeposedLeaderRetries "deposed-leader-retries"
        "A leader that falls sends its open writes to the next one, though they may be committed \
         (thesis §6.3).";
    TimedOutWriteRetried "timed-out-write-retried"
        "A write that no majority has confirmed in time is tried again, though it may be committed \
         (TiDB 2.1.7, automatic retry).";
    LostForwardRetried "lost-forward-retried"
        "A forwarded write whose link broke is sent again, though it may be executed \
         (redisraft#13).";
    UncertainCalledRetryable "uncertain-called-retryable"
        "A write of unknown fate is answered as certainly not executed (redisraft#23).";

    // The state machine, checkpoints, snapshots.
    EntryAppliedTwice "entry-applied-twice"
        "After a restart entries that a checkpoint holds already are applied again (etcd#13766).";
    ExpiryByWallClock "expiry-by-wall-clock"
        "Keys expire by each replica's wall clock, not by the time in the log (DESIGN, \"Time\").";
    FlushForgetsExpiry "flush-forgets-expiry"
        "A flush drops the keys, but not when they were to expire (Redis, \"FLUSHALL\").";
    FlushAppliedTwice "flush-applied-twice"
        "After a restart a flush is applied again to a shard whose checkpoint is newer \
         (etcd#13766).";
    FlushSparesShard "flush-spares-shard"
        "A flush leaves out the last shard of its group (Redis, \"FLUSHALL\").";
    FlushOvertakes "flush-overtakes"
        "A flush does not wait for commands before it that wait for a value (Raft paper §5.3, \
         entries are applied in log order).";
    ScanInTableOrder "scan-in-table-order"
        "The cursor of a scan counts places of a hash table, and keys are missed when it grows \
         (Redis, \"SCAN\", guarantees).";
    ScanUnconfirmed "scan-unconfirmed"
        "A scan is answered by a replica that has not made sure that it leads (thesis §6.4, step \
         3).";
    CheckpointLacksExpiries "checkpoint-lacks-expiries"
        "A checkpoint leaves out when keys expire (Raft paper §7: a snapshot is the whole state).";
    CheckpointIndexTooHigh "checkpoint-index-too-high"
        "A checkpoint claims entries that were not applied when it was taken, and recovery skips \
         them (etcd#13766).";
    SnapshotIndexTooLow "snapshot-index-too-low"
        "A shard that is sent late names an older index than it was taken at, and its receiver \
         applies entries twice (Raft paper §7).";
    SnapshotKeepsOldKeys "snapshot-keeps-old-keys"
        "A snapshot is laid over what the follower held, and deleted keys come back (Raft paper \
         fig. 13, InstallSnapshot 7).";
    CompactedPastCheckpoint "compacted-past-checkpoint"
        "The log is cut at the newest checkpoint, so that there is no way back from a damaged one \
         to the one before (Raft paper §7).";
    StateReleasedTooEarly "state-released-too-early"
        "Records of a shard's only checkpoint are released because another shard has a newer one \
         (docs/wal-format.md).";
    ValuesReleasedEarly "values-released-early"
        "Old segments are used again as soon as the index needs nothing in them, although the \
         checkpoints that a restart would begin from still do (DESIGN.md 7).";
    ArrivingValuesReleased "arriving-values-released"
        "Segments with long values of a shard that is still arriving are used again: no index \
         refers to them yet (seed 12013716).";
    CheckpointFinishedEarly "checkpoint-finished-early"
        "A checkpoint becomes valid before everything that it refers to is durable in the log \
         (DESIGN.md 6 and 7).";
    SnapshotLacksExpiries "snapshot-lacks-expiries"
        "A snapshot for a follower does not carry when keys expire (DESIGN.md 7).";
    StalledShardOvertaken "stalled-shard-overtaken"
        "A command is applied although one before it in its shard waits for a value (Raft paper \
         §5.3, entries are applied in log order).";
    MovedOverNewer "moved-over-newer"
        "A value that is moved out of an old segment replaces one that was written meanwhile \
         (Bitcask merge races).";

    // The comparison of replicas.
    UnaskedDeleteSkipped "unasked-delete-skipped"
        "A replica does not delete what no client of its own asks it to delete (Raft paper §2, \
         replicated state machines).";
    DivergedReplicaServes "diverged-replica-serves"
        "A replica that is known to hold something else than the others goes on serving \
         (DESIGN.md, \"never a wrong answer\").";

    RepairTakesAnyVersion "repair-takes-any-version"
        "A damaged value is replaced by whatever another replica has for its key by then \
         (Alagappan et al., FAST 2018: an entry is repaired by the same entry).";
    LostWithoutProof "lost-without-proof"
        "A command goes on without the value that it changes although no other replica has shown \
         a later one (Alagappan et al., FAST 2018).";

    FetchedEntryUnproven "fetched-entry-unproven"
        "An entry that cannot be read is replaced by what another replica has at its index, of \
         whichever term (Raft paper §5.3, log matching).";
    LostEntrySkipped "lost-entry-skipped"
        "An entry that cannot be read is passed over as if it were empty (Alagappan et al., FAST \
         2018).";

    // The log on disk.
    DurableOutOfOrder "durable-out-of-order"
        "A write that completes first makes the writes before it count as durable (Redpanda, \
         NATS: acknowledged before durable).";
    FailedWriteAcked "failed-write-acked"
        "A write that the disk has refused counts as durable (fsyncgate, hashicorp/raft#503).";
    HardStateNotRestated "hard-state-not-restated"
        "Terms and votes are not written again in a new segment, and go with the old ones \
         (docs/wal-format.md).";
    BaseNotRestated "base-not-restated"
        "Where a log starts is not written again in a new segment, and goes with the old ones \
         (docs/wal-format.md).";
    SegmentRecycledInUse "segment-recycled-in-use"
        "A segment is used again while one group still needs it (docs/wal-format.md).";
    PayloadChecksumIgnored "payload-checksum-ignored"
        "Recovery believes payloads that were only half written or have rotted (Alagappan et al., \
         FAST 2018).";
    TornTailTakenForDamage "torn-tail-taken-for-damage"
        "A write that power loss cut short is taken for damage of what was acknowledged (Alagappan \
         et al., FAST 2018).";
    DamageTakenForTornTail "damage-taken-for-torn-tail"
        "Damage in the middle of the log is taken for its end, and what was acknowledged after it \
         is dropped (NATS 2.12.1).";
    WatermarkNotWritten "watermark-not-written"
        "Batches do not say what was durable before them, so damage looks like a torn write \
         (Alagappan et al., FAST 2018).";
    LogStartTooLate "log-start-too-late"
        "A segment names a start of the log proper that is one segment too new, and recovery skips \
         what it needs (docs/wal-format.md).";
    ValuesRetiredTooEarly "values-retired-too-early"
        "A segment is used again though it holds values that the index refers to \
         (docs/wal-format.md).";
    ValueReadUnchecked "value-read-unchecked"
        "A value is read from the log without looking whether it is what was written (Alagappan \
         et al., FAST 2018).";
    DamageNotReported "damage-not-reported"
        "A group that lost records to damage takes part as if it were whole (etcd#14102).";
    EchoedVoteDropped "echoed-vote-dropped"
        "A vote that stood in a damaged batch is not taken from the batch that repeats it \
         (Alagappan et al., FAST 2018).";

    // Checkpoint files.
    CheckpointRenamedBeforeSync "checkpoint-renamed-before-sync"
        "A checkpoint gets its final name before its content is on disk \
         (docs/checkpoint-format.md).";
    CheckpointRemovesBoth "checkpoint-removes-both"
        "A new checkpoint removes both older ones, and nothing is left if it rots \
         (docs/checkpoint-format.md).";

    // The other nodes.
    AmnesiacAdmitted "amnesiac-admitted"
        "A node whose disk is another one is let in again, though it may have forgotten votes and \
         entries (Raft paper fig. 2, persistent state).";
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything this thread runs, or takes it away.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never, in this build.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
