//! A leader never overwrites or deletes entries in its log; it only appends (Raft paper fig. 3,
//! "Leader Append-Only", §5.3).

use coracle_raft::LogIndex;

use super::seen::{Rule, Seen, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "leader append-only", source: "Raft paper fig. 3 and §5.3" };

/// `first_new` is the first entry of `now` that `before` did not have in its place.
pub(crate) fn check(before: &Seen, now: &Seen, first_new: LogIndex) -> Result<(), Violation> {
    let last = before.last.index;
    if !now.still_leads(before) || (now.last.index >= last && first_new > last) {
        return Ok(());
    }
    let (term, end) = (now.term, now.last.index);
    let text =
        format!("the leader of {term} had entries to {last}, now to {end}, new: {first_new}");
    Err(now.broken(&RULE, text))
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, leader};
    use super::super::terms::tests::at;
    use super::*;

    fn changes(from: Seen, to: Seen, first_new: u64) -> Result<(), Violation> {
        check(&from, &to, LogIndex::new(first_new))
    }

    #[test]
    fn appending_is_legal_and_so_is_anything_in_another_term() {
        let before = Seen { last: at(2, 5), ..leader(1, 2) };
        assert_eq!(changes(before, before, 6), Ok(()));
        assert_eq!(changes(before, Seen { last: at(2, 7), ..before }, 6), Ok(()));
        assert_eq!(changes(before, Seen { last: at(1, 3), ..leader(1, 3) }, 3), Ok(()));
    }

    #[test]
    fn deleting_and_overwriting_are_found() {
        let before = Seen { last: at(2, 5), ..leader(1, 2) };
        assert_breaks(&RULE, changes(before, Seen { last: at(2, 4), ..before }, 5));
        assert_breaks(&RULE, changes(before, Seen { last: at(2, 6), ..before }, 5));
    }
}
