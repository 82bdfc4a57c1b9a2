//! Where the terms of a log begin: as much of a log as the rules about positions need.

use coracle_raft::{LogIndex, LogPosition, Term};

/// The terms of one log. A base of term 0 that is not before the log is one of unknown term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    base: LogPosition,
    /// First entry of each run of equal terms after the base, ascending.
    runs: Vec<LogPosition>,
    last: LogIndex,
}

impl Terms {
    pub(crate) fn new(base: LogPosition, runs: &[LogPosition], last: LogIndex) -> Self {
        Self { base, runs: runs.to_vec(), last }
    }

    pub(crate) const fn base(&self) -> LogPosition {
        self.base
    }

    pub(crate) const fn last(&self) -> LogIndex {
        self.last
    }

    pub(crate) fn runs(&self) -> &[LogPosition] {
        &self.runs
    }

    /// Term of an entry; `None` if it does not exist or is forgotten.
    pub(crate) fn at(&self, index: LogIndex) -> Option<Term> {
        if index < self.base.index || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.index <= index);
        match after.checked_sub(1) {
            Some(run) => Some(self.runs[run].term),
            None => (self.base.term > Term::default() || index == LogIndex::ZERO)
                .then_some(self.base.term),
        }
    }

    /// Whether the entry is there, or is covered by what has replaced the log up to the base.
    pub(crate) fn holds(&self, position: LogPosition) -> bool {
        position.index <= self.base.index || self.at(position.index) == Some(position.term)
    }

    /// Puts an entry in the place of what stood at its index and after it.
    pub(crate) fn append(&mut self, position: LogPosition) {
        if position.index > self.last.next() || position.index <= self.base.index {
            // What lies between is not known.
            let base = LogPosition { term: Term::default(), index: position.index.prev() };
            *self = Self::new(base, &[], base.index);
        }
        self.truncate(position.index.prev());
        if self.runs.last().is_none_or(|run| run.term != position.term) {
            self.runs.push(position);
        }
        self.last = position.index;
    }

    /// Drops what comes after `last`.
    pub(crate) fn truncate(&mut self, last: LogIndex) {
        while self.runs.last().is_some_and(|run| run.index > last) {
            self.runs.pop();
        }
        self.last = self.last.min(last.max(self.base.index));
    }

    /// The log starts after `base`. If it holds something else there, nothing of it is left.
    pub(crate) fn cut(&mut self, base: LogPosition) {
        if base.index <= self.base.index {
            return;
        }
        if self.at(base.index) != Some(base.term) {
            *self = Self::new(base, &[], base.index);
            return;
        }
        let next = self.at(base.index.next());
        self.runs.retain(|run| run.index > base.index.next());
        if let Some(term) = next {
            self.runs.insert(0, LogPosition { term, index: base.index.next() });
        }
        self.base = base;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { term: Term::new(term), index: LogIndex::new(index) }
    }

    /// A log from its beginning.
    pub(crate) fn terms_of(terms: &[u64]) -> Terms {
        let mut log = Terms::default();
        for (&term, index) in terms.iter().zip(1..) {
            log.append(at(term, index));
        }
        log
    }

    fn plain(log: &Terms) -> Vec<Option<u64>> {
        (log.base().index.get()..=log.last().get())
            .map(|index| log.at(LogIndex::new(index)).map(Term::get))
            .collect()
    }

    /// Appends replace, cuts keep what agrees, gaps are of unknown term.
    #[test]
    fn terms_follow_a_log() {
        let some = |terms: &[u64]| terms.iter().copied().map(Some).collect::<Vec<_>>();
        let mut log = terms_of(&[1, 1, 3, 3]);
        assert_eq!(plain(&log), some(&[0, 1, 1, 3, 3]));
        log.append(at(2, 3));
        assert_eq!(plain(&log), some(&[0, 1, 1, 2]));
        log.cut(at(1, 1));
        assert_eq!((log.base(), plain(&log)), (at(1, 1), some(&[1, 1, 2])));
        log.cut(at(5, 3));
        assert_eq!((log.base(), plain(&log)), (at(5, 3), some(&[5])));
        log.append(at(6, 9));
        assert_eq!(plain(&log), [None, Some(6)]);
        assert!(log.holds(at(4, 8)) && log.holds(at(6, 9)) && !log.holds(at(5, 9)));
        log.truncate(LogIndex::new(8));
        assert_eq!(log.last(), LogIndex::new(8));
    }
}
