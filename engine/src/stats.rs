//! Numbers for `INFO`, metrics and status tables.

use coracle_raft::{GroupId, LogIndex, NodeId, Role, Term};

use crate::core::Core;
use crate::divergence::Standing;
use crate::group::Group;

/// Counters and levels of one core. Counters start at zero with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Groups with a replica here.
    pub groups: u64,
    /// Groups led here.
    pub leaders: u64,
    /// Groups with a replica here whose leader is not known.
    pub leaderless: u64,
    /// Keys of all groups here.
    pub keys: u64,
    /// Keys of the groups led here.
    pub keys_led: u64,
    /// Keys that will expire, of all groups here.
    pub keys_with_expiry: u64,
    /// Keys that left the groups here because they were due (counter).
    pub keys_expired: u64,
    /// Bytes of keys, values and indexes.
    pub memory_bytes: u64,
    /// Bytes of the log kept in memory because their values may be read.
    pub value_cache_bytes: u64,
    /// Bytes of the log that hold values in use.
    pub live_bytes: u64,
    /// From this many bytes on, commands that add data are refused.
    pub memory_budget_bytes: u64,
    /// Bytes of writes whose outcome is open.
    pub uncommitted_bytes: u64,
    /// Writes whose outcome is open.
    pub proposals_open: u64,
    /// Reads that wait.
    pub reads_open: u64,
    /// Commands that other cores work on.
    pub forwards_open: u64,
    /// Commands that wait for a leader.
    pub parked: u64,
    /// Times a replica here became leader (counter).
    pub elections_won: u64,
    /// Times a replica here saw its leader change (counter).
    pub leader_changes: u64,
    /// Leaderships handed to a group's preferred leader (counter).
    pub balanced: u64,
    /// Client commands received (counter).
    pub commands: u64,
    /// Writes appended to a log here as leader (counter).
    pub proposals: u64,
    /// Entries seen committed (counter).
    pub committed: u64,
    /// Entries applied (counter). What a snapshot brings is not counted.
    pub applied: u64,
    /// Applied indexes of the groups here, added up: equal on replicas that are equally far.
    pub applied_offset: u64,
    /// Reads answered here (counter).
    pub reads_served: u64,
    /// Commands sent to other cores (counter).
    pub forwarded: u64,
    /// Commands of other cores received (counter).
    pub forwards_received: u64,
    /// Commands of other cores refused because this one does not lead (counter).
    pub forwards_refused: u64,
    /// Clients told to go elsewhere (counter).
    pub moved: u64,
    /// Commands refused because of limits (counter).
    pub refused_overload: u64,
    /// Commands refused because memory is used up (counter).
    pub refused_memory: u64,
    /// Commands refused because disks are full (counter).
    pub refused_disk: u64,
    /// Messages of leaders dropped because the disk is full (counter).
    pub dropped_disk: u64,
    /// Answers that left the outcome open (counter).
    pub uncertain: u64,
    /// Writes whose place in the log another leader took; each was tried again (counter).
    pub lost_proposals: u64,
    /// Messages that made no sense and were dropped (counter).
    pub ignored_messages: u64,
    /// Entries could neither be read back from the disk nor fetched from another replica (counter).
    pub failed_loads: u64,
    /// Entries that could not be read back and came from another replica (counter).
    pub entries_fetched: u64,
    /// Entries sent to other replicas that cannot read theirs (counter).
    pub entries_lent: u64,
    /// Reads that failed, and for which other replicas are being asked.
    pub fetches_open: u64,
    /// Values read from the disk (counter).
    pub values_read: u64,
    /// Values that could not be read (counter).
    pub failed_reads: u64,
    /// Values found damaged, for which other replicas were asked (counter).
    pub values_damaged: u64,
    /// Damaged values that stand in the log again (counter).
    pub values_repaired: u64,
    /// Times that all other replicas were asked for a value in vain (counter).
    pub repairs_failed: u64,
    /// Values that are being repaired.
    pub repairs_open: u64,
    /// Values sent to other replicas that cannot read theirs (counter).
    pub values_lent: u64,
    /// Leaderships handed over because a value could not be read here (counter).
    pub leaderships_shed: u64,
    /// Bytes of values moved out of old segments (counter).
    pub moved_bytes: u64,
    /// Checkpoints given up (counter).
    pub checkpoints_failed: u64,
    /// Times the replicas here told what they hold (counter).
    pub checks: u64,
    /// Differences between replicas found here, and ends of such differences (counter).
    pub divergences: u64,
    /// Replicas here that hold something else than a majority of their group: they serve nothing.
    pub diverged: u64,
    /// Replicas here of groups whose replicas differ without a majority.
    pub undecided: u64,
    /// Disk batches made (counter).
    pub batches: u64,
    /// Shard snapshots made durable (counter).
    pub checkpoints: u64,
    /// Snapshots taken over from leaders (counter).
    pub snapshots_installed: u64,
}

/// One replica, for status tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which group.
    pub group: GroupId,
    /// What this replica is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Everything up to here is committed, as far as it knows.
    pub commit: LogIndex,
    /// Everything up to here is applied.
    pub applied: LogIndex,
    /// The last entry of its log.
    pub last: LogIndex,
    /// The log starts after this entry.
    pub base: LogIndex,
    /// Keys it holds.
    pub keys: u64,
    /// Bytes of keys, values and indexes.
    pub bytes: u64,
    /// Milliseconds of its log clock.
    pub log_clock: u64,
    /// Writes proposed here whose outcome is open.
    pub proposals_open: u64,
    /// Reads that wait here.
    pub reads_open: u64,
}

impl Core {
    /// Counters and levels.
    pub fn stats(&self) -> CoreStats {
        let count = |f: &dyn Fn(&Group) -> u64| self.groups.iter().map(f).sum();
        CoreStats {
            groups: self.groups.len() as u64,
            leaders: count(&|group| u64::from(group.leads())),
            leaderless: count(&|group| u64::from(group.raft.leader().is_none())),
            keys: self.keys_hosted(),
            keys_led: self.keys_led(),
            keys_with_expiry: count(&|group| group.store.keys_with_expiry()),
            keys_expired: count(&|group| group.store.totals().expired),
            memory_bytes: self.memory_bytes(),
            value_cache_bytes: self.cache.bytes() as u64,
            live_bytes: self.live_bytes(),
            memory_budget_bytes: self.config.memory_budget_bytes as u64,
            uncommitted_bytes: self.tally.inflight_bytes as u64,
            proposals_open: count(&|group| group.pending_proposals() as u64),
            reads_open: self.reads_open as u64,
            forwards_open: self.forwards.len() as u64,
            parked: self.parked.len() as u64,
            committed: self.tally.committed,
            applied: self.tally.applied,
            applied_offset: count(&|group| group.applied().get()),
            reads_served: self.tally.reads_served,
            lost_proposals: self.tally.lost_proposals,
            uncertain: self.tally.uncertain,
            failed_loads: self.tally.failed_loads,
            checks: self.tally.checks,
            diverged: count(&|group| u64::from(group.checks.standing() == Standing::Diverged)),
            undecided: count(&|group| u64::from(group.checks.standing() == Standing::Undecided)),
            values_repaired: self.tally.values_repaired,
            repairs_open: self.repairs.len() as u64,
            fetches_open: self.refetches.len() as u64,
            ..self.counters
        }
    }

    /// Status of one replica; `None` if there is none here.
    pub fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        let group = &self.groups[self.place(group)?];
        Some(GroupStatus {
            group: group.id,
            role: group.raft.role(),
            term: group.raft.term(),
            leader: group.raft.leader(),
            commit: group.raft.commit(),
            applied: group.applied(),
            last: group.raft.last_index(),
            base: group.raft.base().index,
            keys: group.store.keys(),
            bytes: group.store.totals().data as u64,
            log_clock: group.store.clock(),
            proposals_open: group.pending_proposals() as u64,
            reads_open: group.reads.len() as u64,
        })
    }
}
