//! A replica that goes on without the bytes of a value has been told at which entry it will know
//! them again, and does.

use coracle_engine::CoreAddr;
use coracle_raft::{GroupId, LogIndex};

use super::seen::{Rule, Violation};

pub(crate) const RULE: Rule = Rule {
    name: "unknown values end",
    source: "Alagappan et al., Protocol-Aware Recovery for Consensus-Based Storage, FAST 2018",
};

/// `overdue` is a value of a core that is still unknown, and the entry that should have ended that.
pub(crate) fn check(
    at: CoreAddr,
    overdue: Option<(GroupId, &[u8], LogIndex)>,
) -> Result<(), Violation> {
    let Some((group, key, known_at)) = overdue else { return Ok(()) };
    let key = key.escape_ascii();
    Err(RULE.broken(at, group, format!("the value of {key} is unknown, {known_at} is applied")))
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::addr;

    use super::super::seen::tests::assert_breaks;
    use super::*;

    #[test]
    fn a_value_that_stays_unknown_is_found() {
        let at = addr(1, 0);
        check(at, None).expect("nothing is unknown");
        assert_breaks(&RULE, check(at, Some((GroupId::new(0), b"k", LogIndex::new(7)))));
    }
}
