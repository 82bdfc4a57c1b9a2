//! Whether a node still has the disk that the cluster knows: one that has lost its disk, or got
//! an old copy of it back, may have forgotten votes and acknowledged entries, and must not take
//! part (Raft paper fig. 2, persistent state).
//!
//! A node numbers its starts and draws a random number at each; its disk remembers the last ones
//! ([`Lineage`]) and its hello shows them. Each core remembers the last start it has met of each
//! other node ([`PeerBook`]). Whoever comes later must have that start among its own: a wiped disk
//! has another number, and an old copy has no start of that number or drew another one for it.
//! Numbers alone would not do, since a copy that is started often enough reaches any of them.
//!
//! Not found: an old copy if nobody has met a start since it was taken; a node that this one has
//! never met before.
//!
//! Not here: files and sockets. The caller makes the book durable.

use std::collections::BTreeMap;

use coracle_raft::{Bug, NodeId, planted};

/// Starts that a node remembers. A peer that has missed this many cannot tell any more whether the
/// disk is the same one, and refuses.
pub const STARTS_MAX: usize = 1024;

/// One start of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Number of the disk, drawn when it was first used.
    pub disk: u64,
    /// How many starts there were on that disk, this one included.
    pub count: u64,
    /// Drawn for this start.
    pub nonce: u64,
}

/// What a node's disk remembers of its starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    disk: u64,
    count: u64,
    /// Of the last starts, the newest last; never empty.
    nonces: Vec<u64>,
}

impl Lineage {
    /// The first start on a new disk. Both numbers are random.
    pub fn new(disk: u64, nonce: u64) -> Self {
        Self { disk, count: 1, nonces: vec![nonce] }
    }

    /// One more start; its `nonce` is random.
    pub fn start(&mut self, nonce: u64) {
        self.count = self.count.saturating_add(1);
        if self.nonces.len() >= STARTS_MAX {
            self.nonces.remove(0);
        }
        self.nonces.push(nonce);
    }

    /// From its parts, as they were stored or sent; `None` if they contradict each other.
    pub fn from_parts(disk: u64, count: u64, nonces: Vec<u64>) -> Option<Self> {
        let plausible = (1..=STARTS_MAX).contains(&nonces.len()) && nonces.len() as u64 <= count;
        plausible.then_some(Self { disk, count, nonces })
    }

    /// Number of the disk.
    pub const fn disk(&self) -> u64 {
        self.disk
    }

    /// How many starts there were.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Random numbers of the last starts, the newest last.
    pub fn nonces(&self) -> &[u64] {
        &self.nonces
    }

    /// The newest start.
    pub fn last(&self) -> Start {
        let nonce = self.nonces.last().copied().unwrap_or_default();
        Start { disk: self.disk, count: self.count, nonce }
    }

    /// Whether the disk remembers this start.
    fn remembers(&self, start: &Start) -> bool {
        let Some(age) = self.count.checked_sub(start.count) else { return false };
        let nonce = usize::try_from(age).ok().and_then(|age| self.nonces.iter().nth_back(age));
        self.disk == start.disk && nonce == Some(&start.nonce)
    }
}

/// What a hello means for the one who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// This start is in the book, durably: its messages may be taken.
    Known,
    /// It is in the book, but not durably yet: see [`PeerBook::is_saved`].
    News,
}

/// Why a node must not take part. The text goes to that node and into both logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Amnesia {
    /// It has another disk than the one it was met with.
    #[error(
        "node {}'s disk is not the one that this cluster knows: it is disk {found:016x}, \
         known is disk {:016x} since its start {}; it may have forgotten votes and acknowledged \
         writes, and must not take part; give it its own data directory back, or leave it stopped",
        node.get(), known.disk, known.count
    )]
    Stranger {
        /// The node.
        node: NodeId,
        /// The start in the book.
        known: Start,
        /// The disk it has now.
        found: u64,
    },
    /// Its disk is in an older state than it was met with.
    #[error(
        "node {}'s disk is an old copy of the one that this cluster knows: it says that this \
         is start {found}, and knows nothing of start {} ({:016x}) that was met here; it may have \
         forgotten votes and acknowledged writes, and must not take part; give it its newest data \
         directory back, or leave it stopped",
        node.get(), known.count, known.nonce
    )]
    TimeTraveller {
        /// The node.
        node: NodeId,
        /// The start in the book.
        known: Start,
        /// The number of starts it says it had.
        found: u64,
    },
}

/// The last start of each other node that was met here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerBook {
    entries: BTreeMap<NodeId, Entry>,
    /// Counts changes.
    version: u64,
    /// The version that is durable.
    saved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: Start,
    version: u64,
}

impl PeerBook {
    /// A book as it was saved.
    pub fn new(starts: impl IntoIterator<Item = (NodeId, Start)>) -> Self {
        let entry = |(node, start)| (node, Entry { start, version: 0 });
        Self { entries: starts.into_iter().map(entry).collect(), version: 0, saved: 0 }
    }

    /// Node `node` says hello, with what its disk remembers.
    ///
    /// # Errors
    /// The node must be refused.
    pub fn meet(&mut self, node: NodeId, lineage: &Lineage) -> Result<Meeting, Amnesia> {
        let start = lineage.last();
        match self.entries.get(&node) {
            Some(entry) if entry.start == start => {
                let known = entry.version <= self.saved;
                return Ok(if known { Meeting::Known } else { Meeting::News });
            }
            Some(entry) if !lineage.remembers(&entry.start) && !planted(Bug::AmnesiacAdmitted) => {
                let known = entry.start;
                return Err(if known.disk == lineage.disk {
                    Amnesia::TimeTraveller { node, known, found: lineage.count }
                } else {
                    Amnesia::Stranger { node, known, found: lineage.disk }
                });
            }
            _ => {}
        }
        self.version += 1;
        self.entries.insert(node, Entry { start, version: self.version });
        Ok(Meeting::News)
    }

    /// Everything that is to be saved.
    pub fn starts(&self) -> impl Iterator<Item = (NodeId, Start)> {
        self.entries.iter().map(|(&node, entry)| (node, entry.start))
    }

    /// The start in the book of a node.
    pub fn known(&self, node: NodeId) -> Option<Start> {
        self.entries.get(&node).map(|entry| entry.start)
    }

    /// Counts what was written into the book.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether all of it is durable.
    pub const fn is_saved(&self) -> bool {
        self.saved == self.version
    }

    /// What [`Self::starts`] gave when the book had this version is durable now.
    pub fn saved(&mut self, version: u64) {
        self.saved = self.saved.max(version.min(self.version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::new(2);

    /// A lineage of disk 7 whose starts drew these numbers.
    fn lineage(nonces: &[u64]) -> Lineage {
        Lineage::from_parts(7, nonces.len() as u64, nonces.to_vec()).expect("plausible")
    }

    /// A book that knows node 2 by this lineage, durably.
    fn book_of(lineage: &Lineage) -> PeerBook {
        PeerBook::new([(NODE, lineage.last())])
    }

    #[test]
    fn a_start_is_known_once_it_is_saved() {
        let mut book = PeerBook::default();
        let first = Lineage::new(7, 1);
        assert_eq!(book.meet(NODE, &first), Ok(Meeting::News));
        assert_eq!(book.meet(NODE, &first), Ok(Meeting::News), "another link of the same start");
        let version = book.version();
        assert_eq!(book.meet(NodeId::new(3), &first), Ok(Meeting::News));
        book.saved(version);
        assert_eq!(book.meet(NODE, &first), Ok(Meeting::Known));
        assert_eq!(book.meet(NodeId::new(3), &first), Ok(Meeting::News), "written later");
        assert!(!book.is_saved());
        book.saved(book.version());
        assert!(book.is_saved());
        assert_eq!(PeerBook::new(book.starts()).meet(NODE, &first), Ok(Meeting::Known));
    }

    #[test]
    fn later_starts_are_news_however_many_were_missed() {
        for missed in [0, 1, 5, STARTS_MAX - 2] {
            let mut later = Lineage::new(7, 0);
            let mut book = book_of(&later);
            for nonce in 0..=missed {
                later.start(nonce as u64 + 100);
            }
            assert_eq!(book.meet(NODE, &later), Ok(Meeting::News), "{missed}");
            assert_eq!(book.known(NODE), Some(later.last()));
        }
    }

    #[test]
    fn an_empty_disk_is_a_stranger() {
        let known = lineage(&[1, 2]);
        let mut book = book_of(&known);
        let wiped = Lineage::new(8, 3);
        let stranger = Amnesia::Stranger { node: NODE, known: known.last(), found: 8 };
        assert_eq!(book.meet(NODE, &wiped), Err(stranger));
        let text = stranger.to_string();
        assert!(text.starts_with("node 2's disk is not the one that this cluster knows"), "{text}");
        assert_eq!(book.known(NODE), Some(known.last()), "it is not forgotten for it");
        assert_eq!(book.meet(NODE, &known), Ok(Meeting::Known), "its own disk is back");
    }

    /// However often an old copy is started, it does not get the start that was met.
    #[test]
    fn an_old_copy_never_catches_up() {
        let mut book = book_of(&lineage(&[1, 2, 3]));
        let mut copy = lineage(&[1]);
        for nonce in 10..2000 {
            let known = Start { disk: 7, count: 3, nonce: 3 };
            let found = copy.count();
            let refusal = Amnesia::TimeTraveller { node: NODE, known, found };
            assert_eq!(book.meet(NODE, &copy), Err(refusal));
            copy.start(nonce);
        }
    }

    /// The limit that the module names.
    #[test]
    fn a_copy_is_not_told_apart_if_nothing_was_met_since() {
        let mut copy = lineage(&[1, 2]);
        let mut book = book_of(&copy);
        copy.start(9);
        assert_eq!(book.meet(NODE, &copy), Ok(Meeting::News));
    }

    #[test]
    fn implausible_parts_are_no_lineage() {
        let cases: [(u64, usize); 4] = [(0, 0), (5, 0), (1, 2), (1 << 40, STARTS_MAX + 1)];
        for (count, nonces) in cases {
            assert_eq!(Lineage::from_parts(7, count, vec![0; nonces]), None, "{count} {nonces}");
        }
        assert!(Lineage::from_parts(7, u64::MAX, vec![0; STARTS_MAX]).is_some());
    }

    /// The bug is what the rule is there against.
    #[cfg(feature = "planted")]
    #[test]
    fn a_planted_bug_lets_amnesiacs_in() {
        coracle_raft::plant(Some(Bug::AmnesiacAdmitted));
        let met = book_of(&lineage(&[1, 2])).meet(NODE, &Lineage::new(8, 3));
        coracle_raft::plant(None);
        assert_eq!(met, Ok(Meeting::News));
    }
}
