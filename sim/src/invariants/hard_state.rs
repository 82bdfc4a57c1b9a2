//! Term and vote are never forgotten and never go back; a vote does not change within its term
//! (Raft paper fig. 2, "Persistent state on all servers", §5.2).

use coracle_raft::HardState;

use super::seen::{Rule, Seen, Violation};

pub(crate) const RULE: Rule = Rule {
    name: "term and vote are kept",
    source: "Raft paper fig. 2, persistent state, and §5.2",
};

/// `before` is what the replica had earlier in the same life.
pub(crate) fn check_since(before: &Seen, now: &Seen) -> Result<(), Violation> {
    compare(HardState { term: before.term, vote: before.vote }, now, "had")
}

/// `durable` is what stood on the disk when it stopped.
pub(crate) fn check_recovered(durable: HardState, now: &Seen) -> Result<(), Violation> {
    compare(durable, now, "had made durable")
}

fn compare(before: HardState, now: &Seen, how: &str) -> Result<(), Violation> {
    let kept = match before.vote {
        _ if now.term > before.term => true,
        None => now.term == before.term,
        vote => now.term == before.term && now.vote == vote,
    };
    if kept {
        return Ok(());
    }
    let (term, vote) = (now.term, now.vote);
    let HardState { term: old_term, vote: old_vote } = before;
    let text = format!("it {how} {old_term} and the vote {old_vote:?}, now {term} and {vote:?}");
    Err(now.broken(&RULE, text))
}

#[cfg(test)]
mod tests {
    use coracle_raft::NodeId;

    use super::super::seen::tests::{assert_breaks, follower};
    use super::*;

    fn voted(term: u64, vote: u32) -> Seen {
        let vote = (vote > 0).then(|| NodeId::new(vote));
        Seen { vote, ..follower(1, term) }
    }

    fn durable(seen: &Seen) -> HardState {
        HardState { term: seen.term, vote: seen.vote }
    }

    /// In one life and across a restart alike.
    #[test]
    fn growing_terms_and_first_votes_are_legal() {
        let legal =
            [(voted(3, 0), voted(3, 2)), (voted(3, 2), voted(3, 2)), (voted(3, 2), voted(4, 0))];
        for (before, now) in legal {
            assert_eq!(check_since(&before, &now), Ok(()));
            assert_eq!(check_recovered(durable(&before), &now), Ok(()));
        }
    }

    #[test]
    fn older_terms_and_other_votes_are_found() {
        let illegal = [
            (voted(3, 0), voted(2, 0)),
            (voted(3, 2), voted(3, 1)),
            (voted(3, 2), voted(3, 0)),
            (voted(3, 2), voted(2, 2)),
        ];
        for (before, now) in illegal {
            assert_breaks(&RULE, check_since(&before, &now));
            assert_breaks(&RULE, check_recovered(durable(&before), &now));
        }
    }
}
