//! What is looked at, as plain values: the rules do not know a [`Raft`].

use std::fmt;

use coracle_engine::CoreAddr;
use coracle_raft::{Entry, EntryKind, GroupId, LogIndex, LogPosition, NodeId, Raft, Role, Term};

use super::terms::Terms;

/// Something that must never happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule is broken.
    pub invariant: &'static str,
    /// Where the rule is stated.
    pub source: &'static str,
    /// The core at which it shows.
    pub at: CoreAddr,
    /// The group, if it is about one.
    pub group: Option<GroupId>,
    /// What was found and what should have been.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) is broken at {}", self.invariant, self.source, self.at)?;
        if let Some(group) = self.group {
            write!(f, " in {group}")?;
        }
        write!(f, ": {}", self.text)
    }
}

impl std::error::Error for Violation {}

/// A rule and where it comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
}

impl Rule {
    /// The rule is broken by a replica.
    pub(crate) const fn broken(&self, at: CoreAddr, group: GroupId, text: String) -> Violation {
        Violation { invariant: self.name, source: self.source, at, group: Some(group), text }
    }
}

/// What an entry is, apart from its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub(crate) term: Term,
    /// Unknown if the entry was never seen in memory.
    pub(crate) content: Option<(EntryKind, u32)>,
}

impl EntryId {
    pub(crate) fn of(entry: &Entry) -> Self {
        let content = Some((entry.kind, entry.payload.checksum()));
        Self { term: entry.term, content }
    }

    /// Whether both may be the same entry.
    pub(crate) fn agrees_with(self, other: Self) -> bool {
        let contents = self.content.zip(other.content);
        self.term == other.term && contents.is_none_or(|(mine, theirs)| mine == theirs)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content {
            Some((kind, checksum)) => write!(f, "{kind:?} {checksum:08x} of {}", self.term),
            None => write!(f, "an entry of {}", self.term),
        }
    }
}

/// One replica as it was found after its core was drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: CoreAddr,
    pub(crate) group: GroupId,
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
    pub(crate) leader: Option<NodeId>,
    pub(crate) base: LogPosition,
    pub(crate) last: LogPosition,
    pub(crate) commit: LogIndex,
    pub(crate) applied: LogIndex,
    pub(crate) durable: LogIndex,
}

impl Seen {
    pub(crate) fn of(at: CoreAddr, group: GroupId, raft: &Raft) -> Self {
        Self {
            at,
            group,
            role: raft.role(),
            term: raft.term(),
            vote: raft.vote(),
            leader: raft.leader(),
            base: raft.base(),
            last: raft.last_position(),
            commit: raft.commit(),
            applied: raft.applied_index(),
            durable: raft.durable_index(),
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether both lead the same term: then this is one leadership, without a break.
    pub(crate) fn still_leads(&self, before: &Self) -> bool {
        self.leads() && before.leads() && self.term == before.term
    }

    pub(crate) fn broken(&self, rule: &Rule, text: String) -> Violation {
        rule.broken(self.at, self.group, text)
    }
}

/// Fills `into` with the entries in memory, up to the last one, that stand where `known` has
/// another entry or none. Where a position agrees, all before it does (log matching).
pub(crate) fn new_entries(known: &Terms, raft: &Raft, into: &mut Vec<EntryId>) {
    into.clear();
    let (base, mut index) = (raft.base().index, raft.last_index());
    while index > base {
        match raft.entry(index) {
            Some(entry) if known.at(index) != Some(entry.term) => into.push(EntryId::of(entry)),
            _ => break,
        }
        index = index.prev();
    }
    into.reverse();
}

#[cfg(test)]
pub(crate) mod tests {
    use coracle_engine::testing::addr;

    use super::super::terms::tests::at;
    use super::*;

    /// A follower with an empty log in a term.
    pub(crate) fn follower(node: u32, term: u64) -> Seen {
        Seen {
            at: addr(node, 0),
            group: GroupId::new(0),
            role: Role::Follower,
            term: Term::new(term),
            vote: None,
            leader: None,
            base: at(0, 0),
            last: at(0, 0),
            commit: LogIndex::ZERO,
            applied: LogIndex::ZERO,
            durable: LogIndex::ZERO,
        }
    }

    /// A leader of a term.
    pub(crate) fn leader(node: u32, term: u64) -> Seen {
        let id = Some(NodeId::new(node));
        Seen { role: Role::Leader, vote: id, leader: id, ..follower(node, term) }
    }

    /// A command of a term whose payload has this checksum.
    pub(crate) fn entry(term: u64, checksum: u32) -> EntryId {
        EntryId { term: Term::new(term), content: Some((EntryKind::Command, checksum)) }
    }

    /// Asserts that exactly this rule is broken.
    #[track_caller]
    pub(crate) fn assert_breaks(rule: &Rule, result: Result<(), Violation>) {
        let violation = result.expect_err("the sequence is illegal");
        assert_eq!((violation.invariant, violation.source), (rule.name, rule.source));
    }

    #[test]
    fn a_violation_tells_rule_source_and_place() {
        let rule = Rule { name: "a rule", source: "a book" };
        let text = follower(2, 1).broken(&rule, "1, not 2".to_owned()).to_string();
        assert_eq!(text, "a rule (a book) is broken at n2/c0 in g0: 1, not 2");
    }
}
