//! How many bytes of each segment of the log are values that the index refers to.

use std::collections::VecDeque;

use super::item::Located;

/// What a record costs beside key and value.
const RECORD_BYTES: u64 = 96;

/// Live bytes by segment. Values are only ever put into the newest segments, so the oldest one
/// that is in use never goes back.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveBytes {
    /// The segment of the first count.
    first: u64,
    counts: VecDeque<u64>,
    total: u64,
}

impl LiveBytes {
    pub(crate) fn add(&mut self, key_len: usize, located: &Located) {
        let segment = located.place.segment();
        if self.counts.is_empty() {
            self.first = segment;
        }
        while segment < self.first {
            self.first -= 1;
            self.counts.push_front(0);
        }
        let at = (segment - self.first) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        let bytes = cost(key_len, located);
        self.counts[at] += bytes;
        self.total += bytes;
    }

    pub(crate) fn subtract(&mut self, key_len: usize, located: &Located) {
        let at = (located.place.segment() - self.first) as usize;
        let bytes = cost(key_len, located);
        self.counts[at] -= bytes;
        self.total -= bytes;
        while self.counts.front() == Some(&0) {
            self.counts.pop_front();
            self.first += 1;
        }
    }

    /// The oldest segment with a live value.
    pub(crate) fn oldest(&self) -> Option<u64> {
        (self.total > 0).then_some(self.first)
    }

    /// Live bytes of all segments.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}

fn cost(key_len: usize, located: &Located) -> u64 {
    RECORD_BYTES + key_len as u64 + u64::from(located.len)
}

#[cfg(test)]
mod tests {
    use coracle_raft::Place;

    use super::*;

    fn value(segment: u64, len: u32) -> Located {
        Located { place: Place::new(segment, 4096), len, arg: 1 }
    }

    #[test]
    fn the_oldest_segment_with_a_live_value_is_known() {
        let mut live = LiveBytes::default();
        assert_eq!((live.oldest(), live.total()), (None, 0));
        live.add(3, &value(7, 100));
        live.add(3, &value(9, 50));
        live.add(3, &value(5, 1));
        assert_eq!((live.oldest(), live.total()), (Some(5), 3 * (RECORD_BYTES + 3) + 151));
        live.subtract(3, &value(5, 1));
        assert_eq!(live.oldest(), Some(7));
        live.subtract(3, &value(7, 100));
        assert_eq!(live.oldest(), Some(9));
        live.subtract(3, &value(9, 50));
        assert_eq!((live.oldest(), live.total()), (None, 0));
        live.add(1, &value(3, 9));
        assert_eq!(live.oldest(), Some(3));
    }
}
