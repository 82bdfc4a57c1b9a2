//! Whether the replicas of a group hold the same: what each said of its content right after one
//! entry, put side by side.
//!
//! Every replica hears what every other one says and judges for itself, by the same rule, so
//! nothing depends on who leads, or on whether a leader that is wrong itself would say so. The
//! rule, for each shard and for the log clock: what a majority of the replicas holds is right, and
//! who holds something else has diverged. Without such a majority nobody is known to be right.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_raft::{GroupId, LogIndex, NodeId, Payload};

use crate::ShardId;

/// Checks of which a replica remembers what was said.
const KEPT: usize = 4;
/// Shards that a report names.
const SHARDS_NAMED_MAX: usize = 16;
/// Bytes of an encoded [`Said`] before its digests.
const HEADER_BYTES: usize = 16;
/// Bytes of one digest.
const PART_BYTES: usize = 9;

/// What a replica thinks of its own content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// No difference is known, or this replica holds what a majority holds.
    #[default]
    Agreed,
    /// Replicas differ, and no majority holds the same: the leader goes on serving, followers
    /// leave everything to it.
    Undecided,
    /// A majority holds something else: this replica serves nothing.
    Diverged,
}

/// A difference between replicas, or that there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Whose replicas.
    pub group: GroupId,
    /// They were compared right after this entry.
    pub index: LogIndex,
    /// What this replica thinks of itself now.
    pub standing: Standing,
    /// Those that are known to hold something else than a majority.
    pub diverged: Vec<NodeId>,
    /// Sums of the digests of all shards, as each replica said them.
    pub digests: Vec<(NodeId, u64)>,
    /// The first shards that differ.
    pub shards: Vec<ShardId>,
    /// How many shards differ; 0 and nobody diverged: all is well again.
    pub shard_count: usize,
    /// The log clocks differ.
    pub clock_differs: bool,
}

/// What a replica said of its content right after an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) index: LogIndex,
    /// The log clock; none if a shard came from later, and may have brought a later clock.
    pub(crate) clock: Option<u64>,
    /// Digests of the group's shards in their order; none of a shard that was not at this entry,
    /// because it came from a later snapshot.
    pub(crate) shards: Vec<Option<u64>>,
}

impl Said {
    /// Little-endian: group u32, digests u32, index u64; then for the clock and each shard whether
    /// it is known, u8, and the clock or digest, u64.
    pub(crate) fn encode(&self, group: GroupId) -> Payload {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + (self.shards.len() + 1) * PART_BYTES);
        let count = u32::try_from(self.shards.len()).expect("at most 16384 shards");
        bytes.extend_from_slice(&group.get().to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&self.index.get().to_le_bytes());
        for part in [self.clock].iter().chain(&self.shards) {
            bytes.push(u8::from(part.is_some()));
            bytes.extend_from_slice(&part.unwrap_or(0).to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        Payload::new(bytes, checksum)
    }

    /// Reads what [`Said::encode`] makes; any bytes may be given.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(GroupId, Self)> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let narrow = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let wide = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let count = narrow(4)? as usize;
        let (parts, left) = rest.as_chunks::<PART_BYTES>();
        if parts.len().checked_sub(1) != Some(count) || !left.is_empty() {
            return None;
        }
        let part = |part: &[u8; PART_BYTES]| {
            let (&known, digest) = part.split_first()?;
            let digest = u64::from_le_bytes(digest.try_into().ok()?);
            (known <= 1).then_some((known == 1).then_some(digest))
        };
        let (first, shards) = parts.split_first()?;
        let (index, clock) = (LogIndex::new(wide(8)?), part(first)?);
        let shards = shards.iter().map(part).collect::<Option<Vec<_>>>()?;
        Some((GroupId::new(narrow(0)?), Self { index, clock, shards }))
    }

    /// Sum over all shards.
    pub(crate) fn digest(&self) -> u64 {
        self.shards.iter().flatten().fold(0, |sum, digest| sum.wrapping_add(*digest))
    }

    /// What is compared: the shards, then the log clock.
    fn part(&self, at: usize) -> Option<u64> {
        if at == self.shards.len() { self.clock } else { *self.shards.get(at)? }
    }
}

/// What comes of what several replicas said of one entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Who holds something else than a majority, in any part.
    differing: BTreeSet<NodeId>,
    /// Who holds what a majority holds, in every part.
    agreeing: BTreeSet<NodeId>,
    /// Parts that are not the same everywhere.
    parts: Vec<usize>,
    /// In some part there is no majority.
    undecided: bool,
}

/// Compares what was said of one entry by some of `replicas` replicas.
fn judge(said: &[(NodeId, &Said)], replicas: usize) -> Verdict {
    let majority = replicas / 2 + 1;
    let mut verdict =
        Verdict { agreeing: said.iter().map(|&(node, _)| node).collect(), ..Verdict::default() };
    let parts = said.first().map_or(0, |(_, first)| first.shards.len() + 1);
    for part in 0..parts {
        let count =
            |wanted| said.iter().filter(|(_, said)| said.part(part) == Some(wanted)).count();
        let held: BTreeSet<u64> = said.iter().filter_map(|(_, said)| said.part(part)).collect();
        let right = held.iter().copied().find(|&value| count(value) >= majority);
        if held.len() > 1 {
            verdict.parts.push(part);
            verdict.undecided |= right.is_none();
        }
        for &(node, said) in said {
            let held = said.part(part);
            if right.is_none() || held != right {
                verdict.agreeing.remove(&node);
            }
            if right.is_some() && held.is_some() && held != right {
                verdict.differing.insert(node);
            }
        }
    }
    verdict
}

/// A check of this replica that some shards have not reached: they wait for a value.
#[derive(Debug)]
struct Open {
    said: Said,
    waiting: usize,
}

/// The checks of one group, as one replica sees them.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Oldest first, and who said it.
    said: BTreeMap<NodeId, VecDeque<Said>>,
    open: VecDeque<Open>,
    standing: Standing,
    /// Others that are known to have diverged.
    diverged: BTreeSet<NodeId>,
    /// The newest entry about which something is known.
    judged: LogIndex,
    /// What was reported last: entry, standing, who diverged.
    reported: Option<(LogIndex, Standing, BTreeSet<NodeId>)>,
    /// The tick at which the next check is due, while this replica leads.
    pub(crate) due: Option<u64>,
}

impl Checks {
    pub(crate) const fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether this replica holds something else than a majority.
    pub(crate) fn is_diverged(&self) -> bool {
        self.standing == Standing::Diverged
    }

    /// Whether `node` is known to hold something else than a majority.
    pub(crate) fn has_diverged(&self, node: NodeId) -> bool {
        self.diverged.contains(&node)
    }

    /// Begins a check of which `waiting` shards are to come by [`Checks::put`]. Returns what this
    /// replica has to say, if it is complete.
    pub(crate) fn begin(&mut self, said: Said, waiting: usize) -> Option<Said> {
        if waiting == 0 {
            return Some(said);
        }
        if self.open.len() >= KEPT {
            self.open.pop_front();
        }
        self.open.push_back(Open { said, waiting });
        None
    }

    /// A shard has come to the entry of a check, or was replaced by a later one.
    pub(crate) fn put(
        &mut self,
        index: LogIndex,
        shard: usize,
        digest: Option<u64>,
    ) -> Option<Said> {
        let at = self.open.iter().position(|open| open.said.index == index)?;
        let open = &mut self.open[at];
        *open.said.shards.get_mut(shard)? = digest;
        open.waiting -= 1;
        if open.waiting > 0 {
            return None;
        }
        self.open.remove(at).map(|open| open.said)
    }

    /// Takes what `node` says. Returns whether it is new and its entry still counts.
    pub(crate) fn take(&mut self, node: NodeId, said: Said) -> bool {
        let kept = self.said.entry(node).or_default();
        let at = kept.partition_point(|older| older.index < said.index);
        if kept.get(at).is_some_and(|same| same.index == said.index) || (at == 0 && is_full(kept)) {
            return false;
        }
        kept.insert(at, said);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        true
    }

    /// What `node` said, oldest first.
    pub(crate) fn said_by(&self, node: NodeId) -> impl Iterator<Item = &Said> {
        self.said.get(&node).into_iter().flatten()
    }

    /// Compares what is known about the entry at `index`. Returns what has to be reported.
    pub(crate) fn compare(
        &mut self,
        (group, me): (GroupId, NodeId),
        replicas: usize,
        index: LogIndex,
    ) -> Option<Divergence> {
        let find = |(&node, said): (&NodeId, &'_ VecDeque<Said>)| {
            said.iter().find(|said| said.index == index).map(|said| (node, said.clone()))
        };
        let said: Vec<(NodeId, Said)> = self.said.iter().filter_map(find).collect();
        let said: Vec<(NodeId, &Said)> = said.iter().map(|(node, said)| (*node, said)).collect();
        let mine = said.iter().any(|&(node, _)| node == me);
        if !mine || said.len() < 2 || index < self.judged {
            return None;
        }
        let verdict = judge(&said, replicas);
        self.judged = index;
        self.standing = if verdict.differing.contains(&me) {
            Standing::Diverged
        } else if verdict.agreeing.contains(&me) {
            Standing::Agreed
        } else if verdict.undecided && self.standing != Standing::Diverged {
            Standing::Undecided
        } else {
            // Only a majority that holds the same frees a replica that has diverged.
            self.standing
        };
        self.diverged.extend(&verdict.differing);
        self.diverged.retain(|node| !verdict.agreeing.contains(node));
        self.report(group, index, &verdict, &said)
    }

    fn report(
        &mut self,
        group: GroupId,
        index: LogIndex,
        verdict: &Verdict,
        said: &[(NodeId, &Said)],
    ) -> Option<Divergence> {
        let well = self.standing == Standing::Agreed && self.diverged.is_empty();
        if verdict.parts.is_empty() && (!well || self.reported.is_none()) {
            return None;
        }
        let news = (index, self.standing, self.diverged.clone());
        if self.reported.as_ref() == Some(&news) {
            return None;
        }
        self.reported = (!verdict.parts.is_empty()).then_some(news);
        let clock = said.first().map_or(0, |(_, first)| first.shards.len());
        let shards = verdict.parts.iter().filter(|&&part| part != clock);
        Some(Divergence {
            group,
            index,
            standing: self.standing,
            diverged: self.diverged.iter().copied().collect(),
            digests: said.iter().map(|&(node, said)| (node, said.digest())).collect(),
            // The caller knows which shards these are.
            shards: shards.clone().map(|&at| ShardId(at as u16)).take(SHARDS_NAMED_MAX).collect(),
            shard_count: shards.count(),
            clock_differs: verdict.parts.contains(&clock),
        })
    }
}

fn is_full(kept: &VecDeque<Said>) -> bool {
    kept.len() >= KEPT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(index: u64, shards: &[Option<u64>]) -> Said {
        Said { index: LogIndex::new(index), clock: Some(5), shards: shards.to_vec() }
    }

    fn node(n: u32) -> NodeId {
        NodeId::new(n)
    }

    proptest! {
        /// What is said arrives as it was, and no bytes make the reader panic.
        #[test]
        fn what_is_said_round_trips(
            shards: Vec<Option<u64>>, index: u64, clock: Option<u64>, cut: usize,
        ) {
            let said = Said { index: LogIndex::new(index), clock, shards };
            let payload = said.encode(GroupId::new(7));
            prop_assert_eq!(payload.checksum(), crc32c::crc32c(payload.bytes()));
            let bytes = payload.bytes();
            prop_assert_eq!(Said::parse(bytes), Some((GroupId::new(7), said)));
            prop_assert_eq!(Said::parse(&bytes[..cut % bytes.len()]), None);
        }
    }

    /// Three replicas, one of them `me`: who is right, who is not, and when that is not known.
    #[test]
    fn a_majority_is_right_and_without_one_nobody_is() {
        type Case<'a> = (&'a str, &'a [(u32, Option<u64>)], Standing, &'a [u32]);
        let cases: &[Case<'_>] = &[
            ("all the same", &[(1, Some(4)), (2, Some(4)), (3, Some(4))], Standing::Agreed, &[]),
            (
                "another differs",
                &[(1, Some(4)), (2, Some(4)), (3, Some(5))],
                Standing::Agreed,
                &[3],
            ),
            ("I differ", &[(1, Some(5)), (2, Some(4)), (3, Some(4))], Standing::Diverged, &[1]),
            ("three ways", &[(1, Some(5)), (2, Some(4)), (3, Some(3))], Standing::Undecided, &[]),
            ("two differ, one is away", &[(1, Some(5)), (2, Some(4))], Standing::Undecided, &[]),
            ("one does not know", &[(1, Some(4)), (2, Some(4)), (3, None)], Standing::Agreed, &[]),
            ("I do not know", &[(1, None), (2, Some(4)), (3, Some(4))], Standing::Agreed, &[]),
        ];
        for &(name, values, standing, diverged) in cases {
            let mut checks = Checks::default();
            let mut reports = 0;
            for &(n, value) in values {
                assert!(checks.take(node(n), said(9, &[Some(1), value])), "{name}");
            }
            reports += usize::from(
                checks.compare((GroupId::new(0), node(1)), 3, LogIndex::new(9)).is_some(),
            );
            assert_eq!(checks.standing(), standing, "{name}");
            assert_eq!(checks.diverged, diverged.iter().map(|&n| node(n)).collect(), "{name}");
            let differs = standing != Standing::Agreed || !diverged.is_empty();
            assert_eq!(reports, usize::from(differs), "{name}");
        }
    }

    /// Whoever has diverged stays out until a majority holds the same as it.
    #[test]
    fn only_agreement_with_a_majority_ends_a_divergence() {
        let mut checks = Checks::default();
        let mut hear = |index: u64, values: &[(u32, u64)]| {
            let mut last = None;
            for &(n, value) in values {
                checks.take(node(n), said(index, &[Some(value)]));
                let ids = (GroupId::new(0), node(1));
                last = checks.compare(ids, 3, LogIndex::new(index)).or(last);
            }
            (checks.standing(), last)
        };
        assert_eq!(hear(1, &[(1, 4), (2, 5)]).0, Standing::Undecided);
        let (standing, report) = hear(1, &[(3, 5)]);
        assert_eq!(standing, Standing::Diverged);
        let report = report.unwrap();
        assert_eq!((report.diverged, report.shard_count), (vec![node(1)], 1));
        assert_eq!(report.digests, [(node(1), 4), (node(2), 5), (node(3), 5)]);
        assert_eq!(hear(2, &[(1, 4), (2, 5)]).0, Standing::Diverged, "one alone decides nothing");
        let (standing, report) = hear(3, &[(1, 6), (2, 6)]);
        assert_eq!(standing, Standing::Agreed);
        assert_eq!(report.unwrap().shard_count, 0);
        let (standing, report) = hear(1, &[(3, 4)]);
        assert_eq!((standing, report), (Standing::Agreed, None), "what is older tells nothing");
        assert_eq!(hear(4, &[(1, 7), (2, 7), (3, 7)]), (Standing::Agreed, None));
    }

    /// Shards that wait for a value come later; what is remembered is bounded.
    #[test]
    fn checks_wait_for_their_shards_and_are_bounded() {
        let mut checks = Checks::default();
        assert_eq!(checks.begin(said(1, &[Some(1), None, None]), 2), None);
        assert_eq!(checks.put(LogIndex::new(1), 2, Some(3)), None);
        assert_eq!(checks.put(LogIndex::new(9), 1, Some(3)), None, "no such check");
        let whole = said(1, &[Some(1), Some(2), Some(3)]);
        assert_eq!(checks.put(LogIndex::new(1), 1, Some(2)), Some(whole));
        for index in 0..100 {
            assert_eq!(checks.begin(said(index, &[None]), 1), None);
            assert!(checks.take(node(2), said(index + 10, &[None])));
            assert!(!checks.take(node(2), said(index + 10, &[None])), "once");
        }
        assert!(!checks.take(node(2), said(3, &[None])), "too old");
        assert_eq!((checks.open.len(), checks.said_by(node(2)).count()), (KEPT, KEPT));
    }
}
