//! One Raft group on this core: consensus, state machine, and who waits for what.

use std::collections::{BTreeMap, VecDeque};

use ahash::RandomState;
use coracle_raft::{
    BatchSeq, Bug, Drain, Entry, EntryKind, GroupId, LogIndex, LogPosition, NodeId, Payload, Place,
    ProposeError, Raft, Ready, Record, Role, SendState, Term, planted,
};

use crate::apply::Wanted;
use crate::cache::Cache;
use crate::checkpoint::{ShardSnapshots, StateQueue};
use crate::cold::Waiter;
use crate::command::encoding::{Header, Op, op_of};
use crate::divergence::Checks;
use crate::gc::Targets;
use crate::lost::Lost;
use crate::pace::SnapshotPace;
use crate::places::Places;
use crate::reads::Reads;
use crate::stall::Stalls;
use crate::store::{Graveyard, Store};
use crate::task::{Outbox, Task, uncertain};
use crate::transfer::{Incoming, Outgoing};
use crate::{ClusterMap, CoreAddr, CoreId, Effects, Load, PeerMessage, Reply, SlotId, WallMillis};

/// Committed entries taken from consensus ahead of the state machine.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Due keys that one clock entry removes from a group, or a few more: half a millisecond of work.
const SWEEP_KEYS: usize = 512;
/// Entries kept for a follower that is behind but follows; one further behind gets a snapshot.
const KEPT_ENTRIES_MAX: u64 = 1 << 18;

/// A proposal of this core whose fate is not known.
struct Pending {
    position: LogPosition,
    task: Task,
    /// Its answer is known at commit.
    early: bool,
    deadline: u64,
}

/// A committed entry and the local client that waits for what applying it answers.
pub(crate) struct Committed {
    pub(crate) entry: Entry,
    pub(crate) task: Option<Task>,
    /// It came from another replica, and may not be readable where it stands.
    pub(crate) is_fetched: bool,
}

/// Who leads, as far as this replica knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) term: Term,
    pub(crate) leader: Option<NodeId>,
    /// This replica leads.
    pub(crate) here: bool,
}

/// Counters of one core that groups add to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) committed: u64,
    pub(crate) applied: u64,
    pub(crate) reads_served: u64,
    pub(crate) lost_proposals: u64,
    pub(crate) uncertain: u64,
    pub(crate) failed_loads: u64,
    pub(crate) checks: u64,
    pub(crate) values_repaired: u64,
    /// Bytes of pending proposals of all groups.
    pub(crate) inflight_bytes: usize,
}

/// Values that must be read from the disk.
pub(crate) enum Cold {
    /// For a client's read.
    Task(Task, Vec<Wanted>),
    /// For a waiting shard or a snapshot.
    Other(Waiter, Wanted),
}

/// What a turn of a group needs from its core.
pub(crate) struct Turn<'a> {
    pub(crate) mode: Drain,
    pub(crate) batch: BatchSeq,
    pub(crate) now: WallMillis,
    pub(crate) ready: &'a mut Ready,
    pub(crate) contexts: &'a mut u64,
    pub(crate) effects: &'a mut Effects,
    pub(crate) out: &'a mut Outbox,
    pub(crate) tally: &'a mut Tally,
    pub(crate) serve: &'a mut Vec<Task>,
    pub(crate) cache: &'a mut Cache,
    pub(crate) cold: &'a mut Vec<Cold>,
    pub(crate) state: &'a mut StateQueue,
    pub(crate) targets: &'a mut Targets,
    pub(crate) graveyard: &'a mut Graveyard,
    pub(crate) pace: &'a mut SnapshotPace,
    /// The group's own place among those of its core.
    pub(crate) place: usize,
    pub(crate) map: &'a ClusterMap,
    pub(crate) tick: u64,
}

/// What recovery found of a group beside its consensus.
pub(crate) struct GroupState {
    pub(crate) store: Store,
    pub(crate) places: Places,
    pub(crate) snapshots: Vec<ShardSnapshots>,
}

/// One group's replica on this core.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) core: CoreId,
    pub(crate) raft: Raft,
    pub(crate) store: Store,
    pub(crate) reads: Reads,
    /// Whether the replicas hold the same.
    pub(crate) checks: Checks,
    /// Ordered by (term, index), which is also the order in which they were proposed.
    pending: VecDeque<Pending>,
    pub(crate) queue: VecDeque<Committed>,
    pub(crate) queue_bytes: usize,
    pub(crate) applied: LogIndex,
    /// Where the entries that are not applied stand in the core's log.
    pub(crate) places: Places,
    /// Shards that wait for a value.
    pub(crate) stalls: Stalls,
    /// Shards that go on in the next turn, with the value that has come for them.
    pub(crate) woken: Vec<(usize, Option<(Place, Payload)>)>,
    /// Values whose bytes are unknown here for now.
    pub(crate) lost: Vec<Lost>,
    /// Reads whose values have come.
    pub(crate) warmed: Vec<Task>,
    /// Keys whose values were computed and are to be written out, oldest first.
    pub(crate) dirty_keys: VecDeque<(usize, Box<[u8]>)>,
    /// The durable snapshots of each shard.
    pub(crate) snapshots: Vec<ShardSnapshots>,
    /// State records before this batch were released.
    pub(crate) state_released: BatchSeq,
    /// The log on disk starts after this, or will; consensus follows once it is applied.
    pub(crate) purged: LogIndex,
    pub(crate) outgoing: BTreeMap<NodeId, Outgoing>,
    pub(crate) incoming: Option<Incoming>,
    /// Followers whose snapshots can go on.
    pub(crate) resumed: Vec<NodeId>,
    pub(crate) hasher: RandomState,
    /// The newest clock entry proposed here and its stamp.
    clock_proposed: (LogPosition, WallMillis),
    /// The term in which this replica led at its last turn.
    led: Option<Term>,
    /// The last tick at which it did.
    pub(crate) led_at: Option<u64>,
    /// The newest clock entry left keys that are due.
    pub(crate) is_behind_expiry: bool,
    /// What the core was told last about the leader.
    pub(crate) seen: Leadership,
    /// Whether it is in the core's list of groups to visit.
    pub(crate) dirty: bool,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        core: CoreId,
        raft: Raft,
        state: GroupState,
        hasher: RandomState,
    ) -> Self {
        let applied = raft.applied_index();
        let GroupState { store, places, snapshots } = state;
        Self {
            snapshots,
            state_released: BatchSeq::default(),
            places,
            stalls: Stalls::default(),
            woken: Vec::new(),
            lost: Vec::new(),
            warmed: Vec::new(),
            dirty_keys: dirty_keys(&store),
            purged: LogIndex::ZERO,
            outgoing: BTreeMap::new(),
            incoming: None,
            resumed: Vec::new(),
            hasher,
            id,
            core,
            raft,
            store,
            reads: Reads::default(),
            checks: Checks::default(),
            pending: VecDeque::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            applied,
            clock_proposed: (LogPosition::default(), WallMillis(0)),
            led: None,
            led_at: None,
            is_behind_expiry: false,
            seen: Leadership::default(),
            dirty: false,
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft.role() == Role::Leader
    }

    /// Last entry the state machine has applied.
    pub(crate) const fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Whether a shard that came from a snapshot holds more than has been applied.
    pub(crate) fn is_ahead(&self) -> bool {
        self.store.shards().iter().any(|shard| shard.base.index > self.applied)
    }

    /// The batch from which on state records are needed; `None` if none are.
    pub(crate) fn state_needed_from(&self) -> Option<BatchSeq> {
        let received = self.snapshots.iter().filter_map(ShardSnapshots::received_from);
        let early = planted(Bug::StateReleasedTooEarly);
        if early { received.max().map(BatchSeq::next) } else { received.min() }
    }

    /// The oldest segment with an entry that is not applied, or waits in its shard, or with a value
    /// of a shard that is arriving.
    pub(crate) fn oldest_pending(&self) -> Option<u64> {
        let entries = self.places.oldest().into_iter().chain(self.stalls.oldest());
        let arriving = self.oldest_arriving().filter(|_| !planted(Bug::ArrivingValuesReleased));
        entries.map(Place::segment).chain(arriving).min()
    }

    /// The oldest segment that a snapshot on its way out refers to.
    pub(crate) fn oldest_sent(&self) -> Option<u64> {
        self.outgoing.values().filter_map(Outgoing::oldest_segment).min()
    }

    /// Up to here the log is needed by nobody; followers that are behind count if `waits`.
    pub(crate) fn compaction_point(&self, waits: bool) -> LogIndex {
        let durable = self.snapshots.iter().map(ShardSnapshots::fallback).min();
        let followers = self.raft.progress().filter_map(|(_, progress)| {
            let follows = waits
                && progress.state == SendState::Replicate
                && self.applied.since(progress.matched) <= KEPT_ENTRIES_MAX;
            follows.then_some(progress.matched)
        });
        let snapshots = self.outgoing.values().map(|outgoing| outgoing.base.index);
        let needed = followers.chain(snapshots).min().unwrap_or(self.applied);
        durable.unwrap_or_default().min(needed).min(self.applied)
    }

    /// A snapshot has replaced everything up to `base`; its shards are in the store already.
    pub(crate) fn installed(
        &mut self,
        base: LogPosition,
        clock: u64,
        out: &mut Outbox,
        tally: &mut Tally,
    ) {
        self.store.advance_clock(clock);
        self.queue_bytes = 0;
        let committed: Vec<_> = self.queue.drain(..).filter_map(|queued| queued.task).collect();
        for task in committed {
            tally.uncertain += 1;
            out.reply(task.origin, uncertain("a snapshot holds the result of the write"));
        }
        while let Some(front) =
            self.pending.front().filter(|front| front.position.term <= base.term)
        {
            if front.position.term == base.term && front.position.index > base.index {
                break;
            }
            let Some(Pending { position, task, .. }) = self.pending.pop_front() else { break };
            tally.inflight_bytes -= task.size_bytes();
            if position.index > base.index {
                tally.lost_proposals += 1;
                out.again.push(task);
            } else {
                tally.uncertain += 1;
                out.reply(task.origin, uncertain("a snapshot covers the place of the write"));
            }
        }
        self.applied = base.index;
        self.places.forget(base.index);
        self.incoming = None;
    }

    pub(crate) fn pending_proposals(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn leadership(&self) -> Leadership {
        Leadership { term: self.raft.term(), leader: self.raft.leader(), here: self.leads() }
    }

    /// Whether a turn has something to do.
    pub(crate) fn needs_turn(&self, mode: Drain) -> bool {
        self.raft.needs_drain(mode)
            || self.can_apply()
            || self.reads.is_open()
            || !self.woken.is_empty()
            || !self.warmed.is_empty()
            || !self.resumed.is_empty()
    }

    /// Whether the next committed entry may be applied.
    pub(crate) fn can_apply(&self) -> bool {
        let placed = |next: &Committed| self.places.get(next.entry.position()).is_some();
        !self.stalls.is_full()
            && self.queue.front().is_some_and(|next| placed(next) && !self.must_wait(next))
    }

    /// Whether an entry concerns all shards, and clients wait for what comes before it in some.
    fn must_wait(&self, next: &Committed) -> bool {
        !self.stalls.is_empty()
            && self.stalls.have_tasks()
            && next.entry.kind == EntryKind::Command
            && op_of(next.entry.payload.bytes()) == Some(Op::Flush)
            && !planted(Bug::FlushOvertakes)
    }

    /// Appends a write to the log and waits for its fate.
    pub(crate) fn propose(
        &mut self,
        task: Task,
        early: bool,
        deadline: u64,
        tally: &mut Tally,
    ) -> Result<(), (Task, ProposeError)> {
        match self.raft.propose(task.command.payload.clone()) {
            Ok(position) => {
                tally.inflight_bytes += task.size_bytes();
                self.pending.push_back(Pending { position, task, early, deadline });
                Ok(())
            }
            Err(error) => Err((task, error)),
        }
    }

    /// Starts a linearizable read at the leader, or at this follower.
    pub(crate) fn read(&mut self, task: Task) {
        if crate::scan::is_unconfirmed_read(task.command.payload.bytes()) {
            return self.warmed.push(task);
        }
        let ordered = task.follows && !planted(Bug::PipelinedReadUnordered);
        let floor = if ordered && self.leads() { self.raft.last_index() } else { LogIndex::ZERO };
        self.reads.push(task, floor);
    }

    /// Gives up proposals and reads that have waited too long.
    pub(crate) fn expire(&mut self, now: u64, out: &mut Outbox, tally: &mut Tally) {
        let deposed = planted(Bug::DeposedLeaderRetries) && !self.leads();
        while self.pending.front().is_some_and(|pending| pending.deadline <= now || deposed) {
            let Some(Pending { task, .. }) = self.pending.pop_front() else { break };
            tally.inflight_bytes -= task.size_bytes();
            if deposed || planted(Bug::TimedOutWriteRetried) {
                out.again.push(task);
                continue;
            }
            tally.uncertain += 1;
            out.reply(task.origin, uncertain("no majority confirmed the write in time"));
        }
        if !self.stalls.is_empty() {
            let (reads, writes) = self.stalls.overdue(now);
            for task in reads {
                out.reply(task.origin, crate::task::try_again());
            }
            for task in writes {
                tally.uncertain += 1;
                out.reply(task.origin, uncertain("the value could not be read in time"));
            }
        }
        if self.reads.len() > 0 {
            for task in self.reads.overdue(now) {
                out.reply(task.origin, crate::task::try_again());
            }
        }
    }

    /// As leader: proposes a clock entry if keys are due. Returns whether it did.
    pub(crate) fn propose_due_expiry(&mut self, now: WallMillis) -> bool {
        let due = self.leads()
            && self.clock_on_its_way().is_none()
            && self.store.next_expiry().is_some_and(|at| at <= now.0);
        due && self.propose_clock(now).is_some()
    }

    /// Proposes a clock entry; `None` if this replica does not lead or may not propose now.
    pub(crate) fn propose_clock(&mut self, at: WallMillis) -> Option<LogIndex> {
        if let Some((index, stamp)) = self.clock_on_its_way()
            && stamp >= at
        {
            return Some(index);
        }
        let slot = SlotId::new(0).expect("slot 0 exists");
        let due = self.store.shards_due(at.0).max(1);
        let each = i64::try_from(SWEEP_KEYS.div_ceil(due)).expect("a small number");
        let header = Header { expires_at: each, ..Header::new(Op::Clock, slot, at) };
        let clock = header.encode(&[]);
        let position = self.raft.propose(clock.payload).ok()?;
        self.clock_proposed = (position, at);
        Some(position.index)
    }

    /// Index and stamp of a clock entry proposed in this term and not yet applied.
    fn clock_on_its_way(&self) -> Option<(LogIndex, WallMillis)> {
        let (position, stamp) = self.clock_proposed;
        let waiting = position.term == self.raft.term() && position.index > self.applied;
        waiting.then_some((position.index, stamp))
    }

    /// Reads that follow proposals of a term in which this replica does not lead any more: other
    /// entries may stand in their place.
    fn give_up_followers(&mut self, turn: &mut Turn<'_>) {
        let led = self.leads().then(|| self.raft.term());
        if led != self.led {
            self.led = led;
            turn.out.again.extend(self.reads.following());
        }
    }

    /// One turn: reads out, consensus out, committed entries in, replies.
    pub(crate) fn turn(&mut self, turn: &mut Turn<'_>) {
        self.give_up_followers(turn);
        if self.reads.is_open() {
            *turn.contexts += u64::from(!planted(Bug::ReadContextReused));
            self.reads.submit(*turn.contexts);
            self.raft.read_index(*turn.contexts);
        }
        self.raft.drain(turn.mode, turn.batch, turn.ready);
        self.hand_out(turn);
        self.take_committed(turn);
        self.wake_shards(turn);
        self.apply(turn);
        turn.serve.append(&mut self.warmed);
        self.serve_reads(turn);
    }

    /// Moves what consensus wants done into the core's effects.
    fn hand_out(&mut self, turn: &mut Turn<'_>) {
        let (group, ready) = (self.id, &mut *turn.ready);
        if let Some(hard_state) = ready.hard_state.take() {
            turn.effects.records.push(Record::HardState { group, hard_state });
        }
        let entries = ready.entries.drain(..);
        turn.effects.records.extend(entries.map(|entry| Record::Entry { group, entry }));
        for message in ready.messages.drain(..) {
            let to = CoreAddr { node: message.to, core: self.core };
            turn.effects.sends.push((to, PeerMessage::Raft { group, message }));
        }
        for load in ready.loads.drain(..) {
            let load =
                Load { group, first: load.first, last: load.last, bytes_max: load.bytes_max };
            turn.effects.loads.push(load);
        }
        for read in ready.reads.drain(..) {
            match read.index {
                Some(index) => {
                    self.reads.confirmed(read.context, index, self.applied, turn.serve);
                }
                None => turn.out.again.extend(self.reads.refused(read.context)),
            }
        }
        self.move_snapshots(turn);
        self.resume_snapshots(turn);
    }

    /// Snapshots to and from other replicas.
    fn move_snapshots(&mut self, turn: &mut Turn<'_>) {
        for to in std::mem::take(&mut turn.ready.snapshots_wanted) {
            self.send_snapshot(to, turn);
        }
        for ack in std::mem::take(&mut turn.ready.snapshot_acks) {
            self.snapshot_acked(ack, turn);
        }
        for piece in std::mem::take(&mut turn.ready.snapshot_pieces) {
            self.snapshot_piece(piece, turn);
        }
    }

    /// Takes committed entries in order; answers what is known at commit.
    fn take_committed(&mut self, turn: &mut Turn<'_>) {
        while self.queue_bytes < QUEUE_BYTES_MAX {
            let entries = self.raft.next_committed(QUEUE_BYTES_MAX - self.queue_bytes);
            if entries.is_empty() {
                return;
            }
            self.committed(entries, false, turn.out, turn.tally);
        }
    }

    /// Older entries have been read back from the disk, or fetched from another replica.
    pub(crate) fn loaded(
        &mut self,
        first: LogIndex,
        entries: Result<Vec<Entry>, String>,
        is_fetched: bool,
        out: &mut Outbox,
        tally: &mut Tally,
    ) {
        let committed = self.raft.entries_loaded(first, entries);
        self.committed(committed, is_fetched, out, tally);
    }

    fn committed(
        &mut self,
        entries: Vec<Entry>,
        is_fetched: bool,
        out: &mut Outbox,
        tally: &mut Tally,
    ) {
        tally.committed += entries.len() as u64;
        for entry in entries {
            let task = self.resolve(entry.position(), out, tally);
            self.queue_bytes += entry.size_bytes();
            self.queue.push_back(Committed { entry, task, is_fetched });
        }
    }

    /// The entry at `position` is committed. Decides the fate of every proposal that this
    /// decides, and returns the one that waits for this entry to be applied.
    ///
    /// Terms never fall along a log: once an entry of a newer term is committed here, no entry
    /// of an older term can ever stand at this index or after it.
    fn resolve(
        &mut self,
        position: LogPosition,
        out: &mut Outbox,
        tally: &mut Tally,
    ) -> Option<Task> {
        while let Some(front) = self.pending.front() {
            if front.position > position {
                return None;
            }
            let Pending { position: mine, task, early, .. } = self.pending.pop_front()?;
            tally.inflight_bytes -= task.size_bytes();
            let taken = planted(Bug::ProposalMatchedByIndex) && mine.index == position.index;
            if mine.term < position.term && !taken {
                tally.lost_proposals += 1;
                out.again.push(task);
                continue;
            }
            assert_eq!(mine.index, position.index, "entries are resolved in order, none is left");
            if early {
                out.reply(task.origin, Reply::OK);
                return None;
            }
            return Some(task);
        }
        None
    }
}

/// Values that are to be written out, in a store as recovery left it.
fn dirty_keys(store: &Store) -> VecDeque<(usize, Box<[u8]>)> {
    let mut keys = VecDeque::new();
    for (place, shard) in store.shards().iter().enumerate() {
        if shard.totals().dirty > 0 {
            let dirty = shard.items().filter(|item| item.value.is_dirty());
            keys.extend(dirty.map(|item| (place, item.key.bytes().into())));
        }
    }
    keys
}
