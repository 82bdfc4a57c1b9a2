//! How one group's committed entries and confirmed reads reach its store: in order within each
//! shard, while shards that wait for a value let the others pass.

use std::collections::VecDeque;

use coracle_raft::{Bug, Entry, EntryKind, LogIndex, Payload, Place, planted};

use crate::apply::{self, Command, FOREIGN_SLOT, NotYet, Values, Wanted};
use crate::cold::Waiter;
use crate::command::encoding::{Op, View};
use crate::group::{Cold, Committed, Group, Tally, Turn};
use crate::scan;
use crate::stall::Stalled;
use crate::store::WARM_KEYS;
use crate::task::{Outbox, Task, uncertain};
use crate::{ReadMode, Reply};

/// Entries applied by one group in one turn.
const APPLY_ENTRIES_PER_TURN: usize = 2048;
/// Bytes applied by one group in one turn.
const APPLY_BYTES_PER_TURN: usize = 8 << 20;

impl Group {
    /// Applies a bounded part of what is committed.
    pub(crate) fn apply(&mut self, turn: &mut Turn<'_>) {
        let mut bytes = 0;
        let mut count = 0;
        while count < APPLY_ENTRIES_PER_TURN && bytes < APPLY_BYTES_PER_TURN && self.can_apply() {
            if count % WARM_KEYS == 0 && self.queue.len() > 1 {
                self.warm();
            }
            let Some(next) = self.queue.pop_front() else { break };
            let Committed { entry, task, is_fetched } = next;
            assert_eq!(entry.index, self.applied.next(), "entries are applied one by one");
            bytes += entry.size_bytes();
            count += 1;
            self.applied = entry.index;
            if entry.kind == EntryKind::Command {
                self.apply_command(entry, is_fetched, task, turn);
            }
        }
        self.queue_bytes -= bytes;
        turn.tally.applied += count as u64;
        if count > 0 {
            self.places.forget(self.applied);
            self.raft.applied(self.applied);
            if self.purged > self.raft.base().index && self.purged <= self.applied {
                self.raft.compact(self.purged);
            }
            self.reads.applied(self.applied, turn.serve);
        }
    }

    /// Looks for the keys of the next entries.
    fn warm(&self) {
        let next = self.queue.iter().take(WARM_KEYS);
        let views = next.filter_map(|next| View::parse(next.entry.payload.bytes()));
        self.store.warm(views.filter_map(|view| Some((view.slot, view.keys().next()?))));
    }

    fn apply_command(
        &mut self,
        entry: Entry,
        is_fetched: bool,
        task: Option<Task>,
        turn: &mut Turn<'_>,
    ) {
        let place = self.places.get(entry.position()).expect("entries are applied once placed");
        let place = Some(place).filter(|_| !is_fetched);
        let Some(view) = View::parse(entry.payload.bytes()) else {
            if let Some(task) = task {
                turn.out.reply(task.origin, Reply::error("ERR malformed log entry"));
            }
            return;
        };
        if planted(Bug::ExpiryByWallClock) {
            self.store.advance_clock(turn.now.0);
        }
        self.store.advance_clock(view.at.0);
        let clock = self.store.clock();
        match view.op {
            Op::Clock => return self.sweep(entry.index, clock, &view, turn),
            Op::Flush => {
                self.flush(entry.index, turn);
                if let Some(task) = task {
                    turn.out.reply(task.origin, Reply::OK);
                }
                return;
            }
            _ => {}
        }
        if view.op == Op::Check {
            return self.check_applied(entry.index, turn);
        }
        let Some(shard) = self.store.place(view.slot) else {
            if let Some(task) = task {
                turn.out.reply(task.origin, Reply::error(FOREIGN_SLOT));
            }
            return;
        };
        let stalled = Stalled::Write { entry, place, clock, task };
        if self.stalls.holds(shard) && !planted(Bug::StalledShardOvertaken) {
            self.stalls.push(shard, stalled);
        } else if let Some((wanted, first)) = self.execute(shard, stalled, &[], turn) {
            self.stall(shard, wanted, first, VecDeque::new(), turn);
        }
    }

    /// Removes keys that are due from every shard, as many as the entry says.
    fn sweep(&mut self, index: LogIndex, clock: u64, view: &View<'_>, turn: &mut Turn<'_>) {
        let max = usize::try_from(view.expires_at).unwrap_or(0);
        for shard in 0..self.store.shards().len() {
            if self.stalls.holds(shard) {
                self.stalls.push(shard, Stalled::Sweep { index, clock, max });
            } else {
                self.store.sweep(shard, index, clock, max);
                self.settle_lost(shard, turn.tally);
            }
        }
        self.is_behind_expiry = self.store.next_expiry().is_some_and(|at| at <= clock);
    }

    /// Forgets all keys. What waits in its shard comes before this and leaves nothing behind; no
    /// client waits for what it would answer, see [`Group::can_apply`].
    fn flush(&mut self, index: LogIndex, turn: &mut Turn<'_>) {
        while let Some(shard) = self.stalls.any() {
            for stalled in self.stalls.end(shard) {
                if let Stalled::Check { index } = stalled {
                    // All the others will be right about it.
                    let _ = self.checks.put(index, shard, None);
                }
            }
        }
        self.store.flush(index, turn.graveyard);
        for shard in 0..self.store.shards().len() {
            self.settle_lost(shard, turn.tally);
        }
        // What came from a snapshot that is newer stays.
        if self.store.totals().dirty == 0 {
            self.dirty_keys = VecDeque::new();
        }
    }

    /// Does what stands in a shard's line; gives it back with the value that it lacks.
    fn execute(
        &mut self,
        shard: usize,
        stalled: Stalled,
        fetched: &[(Place, Payload)],
        turn: &mut Turn<'_>,
    ) -> Option<(Wanted, Stalled)> {
        match stalled {
            Stalled::Write { entry, place, clock, task } => {
                let view = View::parse(entry.payload.bytes())?;
                let (payload, index, asked) = (&entry.payload, entry.index, task.is_some());
                let command = Command { view, payload, place, index, clock, asked };
                let mut dirty = Vec::new();
                let raft = turn.cache.is_on().then_some(&self.raft);
                let mut values = Values { cache: turn.cache, raft, fetched, dirty: &mut dirty };
                match apply::write(&mut self.store, shard, &mut values, command) {
                    Ok(reply) => {
                        self.dirty_keys.extend(dirty.into_iter().map(|key| (shard, key)));
                        if let Some(task) = task {
                            self.answer(task, reply, turn);
                        }
                    }
                    Err(wanted) => {
                        return Some((wanted, Stalled::Write { entry, place, clock, task }));
                    }
                }
            }
            Stalled::Sweep { index, clock, max } => self.store.sweep(shard, index, clock, max),
            Stalled::Check { index } => self.check_reached(index, shard, turn),
            Stalled::Read(task) => turn.serve.push(task),
        }
        self.settle_lost(shard, turn.tally);
        None
    }

    /// The write of `task` is applied, with this result: if this replica holds what it should.
    fn answer(&self, task: Task, reply: Reply, turn: &mut Turn<'_>) {
        let reply = if self.may_serve() {
            reply
        } else {
            turn.tally.uncertain += 1;
            uncertain("this replica's data differ from those of the others")
        };
        turn.out.reply(task.origin, reply);
    }

    fn stall(
        &mut self,
        shard: usize,
        wanted: Wanted,
        first: Stalled,
        rest: VecDeque<Stalled>,
        turn: &mut Turn<'_>,
    ) {
        turn.cold.push(Cold::Other(Waiter::Shard(shard), wanted.clone()));
        self.stalls.begin(shard, wanted, first, rest);
    }

    /// Goes on with the shards whose value has come.
    pub(crate) fn wake_shards(&mut self, turn: &mut Turn<'_>) {
        for (shard, fetched) in std::mem::take(&mut self.woken) {
            let mut line = self.stalls.end(shard);
            let fetched: Vec<_> = fetched.into_iter().collect();
            while let Some(next) = line.pop_front() {
                if let Some((wanted, first)) = self.execute(shard, next, &fetched, turn) {
                    self.stall(shard, wanted, first, line, turn);
                    break;
                }
            }
        }
    }

    /// A shard came from a snapshot that holds all that its line would do.
    pub(crate) fn drop_line(&mut self, shard: usize, out: &mut Outbox, tally: &mut Tally) {
        for stalled in self.stalls.end(shard) {
            match stalled {
                Stalled::Write { task: Some(task), .. } => {
                    tally.uncertain += 1;
                    out.reply(task.origin, uncertain("a snapshot holds the result of the write"));
                }
                Stalled::Read(task) => self.warmed.push(task),
                Stalled::Check { index } => {
                    // All the others will be right about it.
                    let _ = self.checks.put(index, shard, None);
                }
                Stalled::Write { task: None, .. } | Stalled::Sweep { .. } => {}
            }
        }
    }

    /// Asks again for the values that shards wait for.
    pub(crate) fn stalled_wants(&self) -> Vec<(usize, Wanted)> {
        self.stalls.wanted().map(|(shard, wanted)| (shard, wanted.clone())).collect()
    }

    /// Answers the reads whose entries are applied.
    pub(crate) fn serve_reads(&mut self, turn: &mut Turn<'_>) {
        let may_serve = self.may_serve();
        for task in turn.serve.drain(..) {
            if !may_serve {
                turn.out.again.push(Task { read_mode: ReadMode::Leader, ..task });
                continue;
            }
            let Some(view) = View::parse(task.command.payload.bytes()) else {
                turn.out.reply(task.origin, Reply::error("ERR malformed command"));
                continue;
            };
            let shard = match view.op {
                // All shards count.
                Op::Size | Op::RandomKey => self.stalls.any(),
                _ => self.store.place(view.slot).filter(|&shard| self.stalls.holds(shard)),
            };
            if let Some(shard) = shard {
                self.stalls.push(shard, Stalled::Read(task));
                continue;
            }
            // A stamp from a clock that runs ahead must not move the log clock.
            let at = task.at.min(turn.now);
            let mut dirty = Vec::new();
            let raft = turn.cache.is_on().then_some(&self.raft);
            let (fetched, dirty) = (&task.fetched[..], &mut dirty);
            let mut values = Values { cache: turn.cache, raft, fetched, dirty };
            let read = if view.op.spans_group() {
                scan::read(&self.store, |shard| self.stalls.holds(shard), &view, at)
            } else {
                apply::read(&self.store, &mut values, &view, at)
            };
            match read {
                Ok(reply) => {
                    turn.tally.reads_served += 1;
                    turn.out.reply(task.origin, reply);
                }
                Err(NotYet::Cold(wanted)) => turn.cold.push(Cold::Task(task, wanted)),
                // The leader, or this replica once it has applied what is to come.
                Err(NotYet::Lost) => {
                    turn.out.again.push(Task { read_mode: ReadMode::Leader, ..task });
                }
                Err(NotYet::ClockBehind(at)) => match self.propose_clock(at) {
                    Some(index) => self.reads.block(task, index),
                    None => {
                        turn.out.again.push(Task { read_mode: ReadMode::Leader, ..task });
                    }
                },
            }
        }
    }
}
