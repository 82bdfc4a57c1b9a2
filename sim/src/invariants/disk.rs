//! What is durable on one core's disk of one group, by the batches that completed.

use coracle_raft::{HardState, LogIndex, LogPosition, Record};

use super::seen::Seen;
use super::terms::Terms;

/// Term, vote and log as they are on a disk.
#[derive(Clone, Debug, Default)]
struct Image {
    hard_state: HardState,
    log: Terms,
}

/// The disk of one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    now: Image,
    /// What was durable when something was lost on purpose: others may count on it still, for an
    /// acknowledgement is as old as its message.
    lost: Option<Image>,
    /// Writes that replace entries from here on are under way: what a crash leaves there may be
    /// the old ones or the new ones.
    unsure_from: Option<LogIndex>,
    /// Something was lost on purpose since the replica ran last.
    excused: bool,
}

impl Disk {
    /// A batch with this record completed.
    pub(crate) fn write(&mut self, record: &Record) {
        match record {
            // A snapshot holds it already: recovery passes over it as well.
            Record::Entry { entry, .. } if entry.index <= self.now.log.base().index => {}
            Record::Entry { entry, .. } => self.now.log.append(entry.position()),
            Record::HardState { hard_state, .. } => self.now.hard_state = *hard_state,
            Record::Purge { base, .. } => self.now.log.cut(*base),
            Record::State { .. } | Record::Value { .. } => {}
        }
    }

    /// A replica replaced entries from `first` on; the disk still has to follow.
    pub(crate) fn replacing(&mut self, first: LogIndex) {
        self.unsure_from = Some(self.unsure_from.map_or(first, |from| from.min(first)));
    }

    /// A replica knows all of its log to be durable: no write of it is under way.
    pub(crate) const fn settled(&mut self) {
        self.unsure_from = None;
    }

    /// Something was lost or damaged on purpose.
    pub(crate) fn forget(&mut self) {
        self.lost = Some(std::mem::take(&mut self.now));
        self.excused = true;
        self.unsure_from = None;
    }

    /// Whether a start without this replica is excused.
    pub(crate) const fn is_excused(&self) -> bool {
        self.excused
    }

    /// A replica was made from this disk: what it has is what is there.
    pub(crate) fn recovered(&mut self, seen: &Seen, log: &Terms) {
        self.now.hard_state = HardState { term: seen.term, vote: seen.vote };
        self.now.log = log.clone();
        if let Some(lost) = &mut self.lost {
            lost.hard_state = HardState::default();
        }
        self.unsure_from = None;
        self.excused = false;
    }

    /// Term and vote that a restart must find.
    pub(crate) const fn hard_state(&self) -> HardState {
        self.now.hard_state
    }

    /// Term and vote that were durable at some time in this life.
    pub(crate) fn hard_state_ever(&self) -> HardState {
        let lost = self.lost.as_ref().map_or(HardState::default(), |lost| lost.hard_state);
        if lost.term > self.now.hard_state.term { lost } else { self.now.hard_state }
    }

    /// The log that a restart must find, and up to where.
    pub(crate) fn log(&self) -> (&Terms, LogIndex) {
        let last = self.now.log.last();
        (&self.now.log, self.unsure_from.map_or(last, |from| last.min(from.prev())))
    }

    /// Whether an entry is durable, or was before something was lost on purpose.
    pub(crate) fn held(&self, position: LogPosition) -> bool {
        self.now.log.holds(position)
            || self.lost.as_ref().is_some_and(|lost| lost.log.holds(position))
    }
}
