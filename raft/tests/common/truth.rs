//! What must hold over all replicas and all time (Raft paper fig. 3), checked as it happens.

use std::collections::BTreeMap;

use coracle_raft::{Entry, LogIndex, LogPosition, Membership, NodeId, Term};

/// What has been seen, and can never be otherwise again.
#[derive(Default)]
pub struct Truth {
    leaders: BTreeMap<Term, NodeId>,
    /// Each entry ever made: the term before it, and its content.
    entries: BTreeMap<LogPosition, (Term, Entry)>,
    /// Each committed entry, and a digest of all content up to it.
    committed: BTreeMap<LogIndex, (Term, u64)>,
    /// The term of the leader that committed it.
    committed_in: BTreeMap<LogIndex, Term>,
    memberships: BTreeMap<LogIndex, Membership>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
}

impl Truth {
    /// Election Safety: at most one leader per term (§5.2).
    pub fn leads(&mut self, node: NodeId, term: Term) -> bool {
        let news = !self.leaders.contains_key(&term);
        let known = *self.leaders.entry(term).or_insert(node);
        assert!(known == node, "{known} and {node} both lead {term}");
        news
    }

    /// A vote, once durable, is never another (§5.2).
    pub fn votes(&mut self, node: NodeId, term: Term, vote: NodeId) {
        let known = *self.votes.entry((node, term)).or_insert(vote);
        assert!(known == vote, "{node} voted for {known} and {vote} in {term}");
    }

    /// Log Matching: same index and term, same content and same predecessor (§5.3).
    pub fn entry(&mut self, before: Term, entry: &Entry) {
        let at = entry.position();
        let known = self.entries.entry(at).or_insert_with(|| (before, entry.clone()));
        assert!(known.0 == before, "before {at:?} is {} and {before}", known.0);
        assert!(known.1 == *entry, "{:?} and {entry:?} differ", known.1);
    }

    /// State Machine Safety: nobody commits another entry at the same index (§5.4.3).
    pub fn commits(&mut self, at: LogPosition, by: Term) {
        if let Some((term, _)) = self.committed.get(&at.index) {
            assert!(*term == at.term, "{} committed in {term} and {}", at.index, at.term);
            return;
        }
        let last = self.last_committed();
        assert!(at.index == last.next(), "{} committed after {last}", at.index);
        let before = self.digest_at(last);
        let entry = &self.entries.get(&at).expect("committed entries were handed out").1;
        let digest = entry.payload.bytes().iter().fold(before ^ at.index.get(), |digest, &byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        self.committed.insert(at.index, (at.term, digest));
        self.committed_in.insert(at.index, by);
    }

    pub fn last_committed(&self) -> LogIndex {
        self.committed.last_key_value().map_or(LogIndex::ZERO, |(index, _)| *index)
    }

    pub fn committed_term(&self, index: LogIndex) -> Option<Term> {
        self.committed.get(&index).map(|(term, _)| *term)
    }

    /// What a leader of `term` must have: all that was committed in lower terms. Late votes may
    /// still elect it when a higher term has committed more; then it can commit nothing.
    pub fn committed_before(&self, term: Term) -> impl Iterator<Item = LogPosition> {
        let earlier = self.committed_in.iter().filter(move |&(_, &by)| by < term);
        earlier.map(|(index, _)| LogPosition { term: self.committed[index].0, index: *index })
    }

    /// Digest of the state machine after this entry.
    pub fn digest_at(&self, index: LogIndex) -> u64 {
        self.committed.get(&index).map_or(0, |(_, digest)| *digest)
    }

    /// The membership as of a committed index is the same everywhere.
    pub fn membership(&mut self, index: LogIndex, membership: &Membership) {
        let known = self.memberships.entry(index).or_insert_with(|| membership.clone());
        assert!(known == membership, "as of {index}: {known:?} and {membership:?}");
    }
}
