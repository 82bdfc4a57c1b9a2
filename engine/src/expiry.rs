//! Which keys expire when, in one order that is the same on every replica.

use std::collections::BTreeSet;

/// Keys with an expiry, ordered by (time, key).
///
/// Time here is the group's log clock, never a wall clock: see [`crate::store`].
#[derive(Debug, Default)]
pub(crate) struct ExpiryIndex {
    due: BTreeSet<(u64, Box<[u8]>)>,
}

impl ExpiryIndex {
    /// Moves a key from one expiry to another; 0 stands for none.
    pub(crate) fn change(&mut self, key: &[u8], from: u64, to: u64) {
        if from == to {
            return;
        }
        let mut probe = (from, Box::from(key));
        if from != 0 {
            assert!(self.due.remove(&probe), "a key with expiry {from} was not in the index");
        }
        if to != 0 {
            probe.0 = to;
            assert!(self.due.insert(probe), "a key with expiry {to} was in the index already");
        }
    }

    /// A key that had no expiry gets one.
    pub(crate) fn add(&mut self, key: Box<[u8]>, at: u64) {
        assert!(self.due.insert((at, key)), "a key with expiry {at} was in the index already");
    }

    /// Forgets up to `max` keys; returns how many.
    pub(crate) fn drop_some(&mut self, max: usize) -> usize {
        (0..max).take_while(|_| self.due.pop_first().is_some()).count()
    }

    /// The earliest expiry.
    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The first key if it is due at `clock`, without removing it.
    pub(crate) fn first_due(&self, clock: u64) -> Option<&[u8]> {
        self.due.first().filter(|(at, _)| *at <= clock).map(|(_, key)| &**key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}
