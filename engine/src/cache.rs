//! Records of the log that were read from the disk and are kept in memory, so that what is read
//! often needs no disk. What was written a moment ago needs none either: consensus has it.
//!
//! S3-FIFO (Yang et al., SOSP 2023): newcomers enter a small queue; those read again before they
//! reach its end go on to the main queue, the others leave, and are remembered for a while so
//! that they go to the main queue at once when they come back. Scans and writes that nobody reads
//! pass through the small queue and leave what is hot alone.

use std::collections::VecDeque;

use ahash::RandomState;
use coracle_raft::{Payload, Place};
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

/// What a record costs beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 128;
/// The small queue's part of all bytes is one in this many.
const SMALL_PART: usize = 10;
/// Reads that count.
const READS_MAX: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Held {
    payload: Payload,
    queue: Queue,
    reads: u8,
    /// Which of the queue's mentions of this place counts: a record may leave and come back.
    ticket: u32,
}

/// Records by place, within a number of bytes.
#[derive(Debug)]
pub(crate) struct Cache {
    held: HashMap<Place, Held, RandomState>,
    small: VecDeque<(Place, u32)>,
    main: VecDeque<(Place, u32)>,
    bytes: usize,
    small_bytes: usize,
    bytes_max: usize,
    /// Places that left the small queue unread, newest last.
    ghosts: VecDeque<Place>,
    ghost_set: HashSet<Place, RandomState>,
    ticket: u32,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize, hasher: RandomState) -> Self {
        Self {
            held: HashMap::with_hasher(hasher.clone()),
            small: VecDeque::new(),
            main: VecDeque::new(),
            bytes: 0,
            small_bytes: 0,
            bytes_max,
            ghosts: VecDeque::new(),
            ghost_set: HashSet::with_hasher(hasher),
            ticket: 0,
        }
    }

    /// Whether anything may be in it.
    pub(crate) const fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    /// Bytes held, bookkeeping included.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A record, if it is here; counts as a read of it.
    pub(crate) fn get(&mut self, place: Place) -> Option<&Payload> {
        let held = self.held.get_mut(&place)?;
        held.reads = (held.reads + 1).min(READS_MAX);
        Some(&held.payload)
    }

    /// A record, if it is here, for whoever is no reader.
    pub(crate) fn peek(&self, place: Place) -> Option<&Payload> {
        self.held.get(&place).map(|held| &held.payload)
    }

    /// Takes a record that was read from the disk.
    pub(crate) fn insert(&mut self, place: Place, payload: Payload) {
        let size = size_of_record(&payload);
        if size > self.bytes_max / 2 {
            return;
        }
        let known = self.ghost_set.remove(&place);
        let queue = if known { Queue::Main } else { Queue::Small };
        self.ticket = self.ticket.wrapping_add(1);
        let held = Held { payload, queue, reads: 0, ticket: self.ticket };
        match self.held.entry(place) {
            Entry::Occupied(_) => return,
            Entry::Vacant(free) => free.insert(held),
        };
        self.bytes += size;
        match queue {
            Queue::Small => {
                self.small_bytes += size;
                self.small.push_back((place, self.ticket));
            }
            Queue::Main => self.main.push_back((place, self.ticket)),
        }
        while self.bytes > self.bytes_max {
            self.evict();
        }
    }

    /// Lets go of a record whose value was replaced.
    pub(crate) fn remove(&mut self, place: Place) {
        if let Some(held) = self.held.remove(&place) {
            self.let_go(&held);
            self.tidy();
        }
    }

    fn let_go(&mut self, held: &Held) {
        let size = size_of_record(&held.payload);
        self.bytes -= size;
        if held.queue == Queue::Small {
            self.small_bytes -= size;
        }
    }

    /// Lets one record go, or moves one on.
    fn evict(&mut self) {
        if self.small_bytes > self.bytes_max / SMALL_PART || self.main.is_empty() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        let Some((place, ticket)) = self.small.pop_front() else { return };
        let Some(held) = self.held.get_mut(&place).filter(|held| held.ticket == ticket) else {
            return;
        };
        if held.reads > 0 {
            (held.queue, held.reads) = (Queue::Main, 0);
            self.small_bytes -= size_of_record(&held.payload);
            self.main.push_back((place, ticket));
            return;
        }
        if let Some(held) = self.held.remove(&place) {
            self.let_go(&held);
            self.remember(place);
        }
    }

    fn evict_main(&mut self) {
        let Some((place, ticket)) = self.main.pop_front() else { return };
        let Some(held) = self.held.get_mut(&place).filter(|held| held.ticket == ticket) else {
            return;
        };
        if held.reads > 0 {
            held.reads -= 1;
            self.main.push_back((place, ticket));
        } else if let Some(held) = self.held.remove(&place) {
            self.let_go(&held);
        }
    }

    fn remember(&mut self, place: Place) {
        if self.ghost_set.insert(place) {
            self.ghosts.push_back(place);
        }
        while self.ghosts.len() > self.held.len().max(64) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }

    /// Records that are removed leave their mention behind: keeps those from piling up.
    fn tidy(&mut self) {
        if self.small.len() + self.main.len() > 2 * self.held.len() + 256 {
            let held = &self.held;
            let here = |(place, ticket): &(Place, u32)| {
                held.get(place).is_some_and(|h| h.ticket == *ticket)
            };
            self.small.retain(here);
            self.main.retain(here);
        }
    }
}

fn size_of_record(payload: &Payload) -> usize {
    payload.len() + RECORD_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(len: usize) -> Payload {
        Payload::new(vec![7; len], 0)
    }

    fn place(n: u64) -> Place {
        Place::new(n >> 16, (n & 0xFFFF) * 8)
    }

    fn cache(bytes_max: usize) -> Cache {
        Cache::new(bytes_max, RandomState::with_seeds(1, 2, 3, 4))
    }

    /// What is read again and again survives any number of records that nobody reads.
    #[test]
    fn what_is_hot_survives_a_scan() {
        let mut cache = cache(100 * (1000 + RECORD_OVERHEAD_BYTES));
        for n in 0..50 {
            cache.insert(place(n), payload(1000));
            assert!(cache.get(place(n)).is_some());
        }
        for n in 100..100_000 {
            cache.insert(place(n), payload(1000));
            if n % 10 == 0 {
                cache.get(place(n / 10 % 50));
            }
        }
        let hot = (0..50).filter(|&n| cache.peek(place(n)).is_some()).count();
        assert_eq!(hot, 50, "of 50");
    }

    /// A zipfian load over ten times what fits is served well above the part that fits.
    #[test]
    fn a_zipfian_load_hits() {
        let (fits, keys) = (500u64, 5000u64);
        let mut cache = cache(fits as usize * (100 + RECORD_OVERHEAD_BYTES));
        let weight: Vec<f64> = (1..=keys).map(|rank| 1.0 / rank as f64).collect();
        let total: f64 = weight.iter().sum();
        let (mut hits, mut random) = (0, 1u64);
        for _ in 0..50_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut point = (random >> 11) as f64 / (1u64 << 53) as f64 * total;
            let rank = weight.iter().position(|w| {
                point -= w;
                point <= 0.0
            });
            let at = place(rank.unwrap_or(0) as u64);
            match cache.get(at) {
                Some(_) => hits += 1,
                None => cache.insert(at, payload(100)),
            }
        }
        // The 500 most wanted of 5,000 are asked for in 75 % of all cases.
        assert!(hits > 30_000, "{hits} of 50000");
    }

    proptest! {
        /// Bytes are those of what is held, never above the limit, and queues stay short.
        #[test]
        fn accounting_holds(steps: Vec<(u8, u8, u16)>) {
            let mut cache = cache(20_000);
            for (what, n, len) in steps {
                let at = place(u64::from(n));
                match what % 4 {
                    0 | 1 => cache.insert(at, payload(usize::from(len) % 3000)),
                    2 => drop(cache.get(at).cloned()),
                    _ => cache.remove(at),
                }
                let held: usize =
                    cache.held.values().map(|held| size_of_record(&held.payload)).sum();
                let small = cache.held.values().filter(|held| held.queue == Queue::Small);
                let small: usize = small.map(|held| size_of_record(&held.payload)).sum();
                prop_assert_eq!((cache.bytes, cache.small_bytes), (held, small));
                prop_assert!(cache.bytes <= 20_000);
                let mentions = cache.small.len() + cache.main.len();
                prop_assert!(mentions <= 2 * cache.held.len() + 256 + 64);
            }
        }
    }
}
