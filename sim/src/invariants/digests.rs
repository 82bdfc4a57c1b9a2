//! Replicas that have applied the same entries hold the same: keys, values, expiries, log clock
//! (Raft paper §2, "Replicated state machines").

use std::collections::BTreeMap;

use coracle_engine::CoreAddr;
use coracle_engine::testing::Content;
use coracle_raft::{GroupId, LogIndex};

use super::seen::{Rule, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "equal digests at equal applied index", source: "Raft paper §2" };

/// Applied indexes of a group whose content is remembered.
const CONTENTS_MAX: usize = 1024;

/// What one group's replicas held.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    by_applied: BTreeMap<LogIndex, (CoreAddr, Content)>,
}

impl Digests {
    pub(crate) fn check(
        &mut self,
        at: CoreAddr,
        group: GroupId,
        (applied, content): (LogIndex, Content),
    ) -> Result<(), Violation> {
        let (first, known) = *self.by_applied.entry(applied).or_insert((at, content));
        if self.by_applied.len() > CONTENTS_MAX {
            self.by_applied.pop_first();
        }
        if known == content {
            return Ok(());
        }
        let text = format!("after {applied} it holds {content:?}, {first} held {known:?}");
        Err(RULE.broken(at, group, text))
    }
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::addr;

    use super::super::seen::tests::assert_breaks;
    use super::*;

    fn look(
        rule: &mut Digests,
        node: u32,
        applied: u64,
        content: Content,
    ) -> Result<(), Violation> {
        rule.check(addr(node, 0), GroupId::new(0), (LogIndex::new(applied), content))
    }

    const CONTENT: Content =
        Content { digest: 7, keys: 2, keys_with_expiry: 1, bytes: 100, log_clock: 5 };

    #[test]
    fn equal_content_and_content_of_other_indexes_are_legal() {
        let mut rule = Digests::default();
        for (node, applied) in [(1, 4), (2, 4), (1, 4)] {
            assert_eq!(look(&mut rule, node, applied, CONTENT), Ok(()));
        }
        assert_eq!(look(&mut rule, 3, 5, Content { digest: 8, ..CONTENT }), Ok(()));
    }

    #[test]
    fn any_difference_is_found() {
        let others = [
            Content { digest: 8, ..CONTENT },
            Content { keys: 3, ..CONTENT },
            Content { keys_with_expiry: 0, ..CONTENT },
            Content { bytes: 101, ..CONTENT },
            Content { log_clock: 6, ..CONTENT },
        ];
        for other in others {
            let mut rule = Digests::default();
            assert_eq!(look(&mut rule, 1, 4, CONTENT), Ok(()));
            assert_breaks(&RULE, look(&mut rule, 2, 4, other));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut rule = Digests::default();
        for applied in 0..5000 {
            assert_eq!(look(&mut rule, 1, applied, CONTENT), Ok(()));
        }
        assert_eq!(rule.by_applied.len(), CONTENTS_MAX);
    }
}
