//! Where the entries of one group that are not applied yet stand in the core's log.

use std::collections::VecDeque;

use coracle_raft::{LogIndex, LogPosition, Place, Term};

/// Places of consecutive entries. An entry is known by its term as well: another may have stood
/// at its index before.
#[derive(Debug, Default)]
pub(crate) struct Places {
    first: LogIndex,
    places: VecDeque<(Term, Place)>,
}

impl Places {
    /// An entry was put into the log: what was at its index and after it is gone.
    pub(crate) fn put(&mut self, at: LogPosition, place: Place) {
        let offset = at.index.since(self.first) as usize;
        if at.index < self.first || offset > self.places.len() || self.places.is_empty() {
            // The log begins here, or jumped forward after a snapshot.
            self.places.clear();
            self.first = at.index;
        } else {
            self.places.truncate(offset);
        }
        self.places.push_back((at.term, place));
    }

    /// Where an entry stands; `None` if it is not in the log yet.
    pub(crate) fn get(&self, at: LogPosition) -> Option<Place> {
        if at.index < self.first {
            return None;
        }
        let &(term, place) = self.places.get(at.index.since(self.first) as usize)?;
        (term == at.term).then_some(place)
    }

    /// The place of the first of them. Those of later entries are behind it.
    pub(crate) fn oldest(&self) -> Option<Place> {
        self.places.front().map(|(_, place)| *place)
    }

    /// Entries up to `index` are applied.
    pub(crate) fn forget(&mut self, index: LogIndex) {
        let applied = index.next().since(self.first) as usize;
        self.places.drain(..applied.min(self.places.len()));
        self.first = self.first.max(index.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition { term: Term::new(term), index: LogIndex::new(index) }
    }

    fn place(n: u64) -> Place {
        Place::new(1, n * 8)
    }

    #[test]
    fn entries_are_found_by_index_and_term() {
        let mut places = Places::default();
        assert_eq!(places.get(at(1, 1)), None);
        for index in 1..=5 {
            places.put(at(index, 1), place(index));
        }
        assert_eq!(places.get(at(3, 1)), Some(place(3)));
        assert_eq!(places.get(at(3, 2)), None, "another entry of that index");
        places.put(at(3, 2), place(13));
        assert_eq!((places.get(at(3, 2)), places.get(at(3, 1))), (Some(place(13)), None));
        assert_eq!(places.get(at(4, 1)), None, "what followed is gone");
        places.forget(LogIndex::new(2));
        assert_eq!((places.get(at(2, 1)), places.get(at(3, 2))), (None, Some(place(13))));
        places.put(at(4, 2), place(14));
        assert_eq!(places.get(at(4, 2)), Some(place(14)));
        places.forget(LogIndex::new(9));
        assert_eq!(places.get(at(4, 2)), None);
        places.put(at(10, 3), place(20));
        assert_eq!(places.get(at(10, 3)), Some(place(20)));
        places.put(at(100, 4), place(21));
        assert_eq!((places.get(at(10, 3)), places.get(at(100, 4))), (None, Some(place(21))));
        places.put(at(50, 5), place(22));
        assert_eq!(places.get(at(50, 5)), Some(place(22)));
    }
}
