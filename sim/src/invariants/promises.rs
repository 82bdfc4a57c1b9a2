//! What a message promises is durable before it is sent: the term, a vote, acknowledged entries
//! (Raft paper fig. 2, "Updated on stable storage before responding to RPCs").

use coracle_raft::{AppendOutcome, Body, LogPosition, Message, NodeId};

use coracle_engine::CoreAddr;
use coracle_raft::GroupId;

use super::disk::Disk;
use super::seen::{Rule, Violation};
use super::terms::Terms;

pub(crate) const RULE: Rule = Rule {
    name: "promises are durable before they are sent",
    source: "Raft paper fig. 2, persistent state, and §5.2",
};

/// `receiver` is the log of the receiver if that leads the message's term.
pub(crate) fn check(
    (at, group): (CoreAddr, GroupId),
    message: &Message,
    disk: &Disk,
    receiver: Option<&Terms>,
) -> Result<(), Violation> {
    let broken = |text| Err(RULE.broken(at, group, text));
    let (kept, term) = (disk.hard_state_ever(), message.term);
    let vote = match message.body {
        // They name a term that nobody has entered, or nothing that must be kept.
        Body::PreVote { .. }
        | Body::PreVoteResponse { granted: true }
        | Body::ReadIndex { .. }
        | Body::ReadIndexResponse { .. } => return Ok(()),
        Body::VoteResponse { granted: true } => Some(message.to),
        // Only who has voted for itself campaigns and leads.
        Body::Vote { .. }
        | Body::Append { .. }
        | Body::Heartbeat { .. }
        | Body::Snapshot { .. }
        | Body::TimeoutNow => Some(message.from),
        _ => None,
    };
    if kept.term < term {
        return broken(format!("it speaks in {term}, durable is {}", kept.term));
    }
    if let Some(vote) = vote
        && kept.term == term
        && kept.vote != Some(vote)
    {
        let kept = kept.vote.map_or(0, NodeId::get);
        return broken(format!("it votes for {vote} in {term}, durable is n{kept}"));
    }
    let Body::AppendResponse { outcome: AppendOutcome::Accepted { matched }, .. } = message.body
    else {
        return Ok(());
    };
    // The receiver takes it for an entry of its own log.
    match receiver.and_then(|log| log.at(matched)) {
        Some(term) if !disk.held(LogPosition { term, index: matched }) => {
            broken(format!("it acknowledges {matched} of {term}, which is not durable"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::addr;
    use coracle_raft::{Entry, EntryKind, HardState, LogIndex, Payload, Record, Term};

    use super::super::seen::tests::assert_breaks;
    use super::super::terms::tests::{at, terms_of};
    use super::*;

    /// The disk of node 2: term 3, a vote for node 1, entries 1 and 2 of terms 1 and 3.
    fn disk() -> Disk {
        let mut disk = Disk::default();
        let group = GroupId::new(0);
        let hard_state = HardState { term: Term::new(3), vote: Some(NodeId::new(1)) };
        disk.write(&Record::HardState { group, hard_state });
        for LogPosition { term, index } in [at(1, 1), at(3, 2)] {
            let entry = Entry { term, index, kind: EntryKind::Empty, payload: Payload::empty() };
            disk.write(&Record::Entry { group, entry });
        }
        disk
    }

    fn sends(to: u32, term: u64, body: Body) -> Result<(), Violation> {
        let (from, to) = (NodeId::new(2), NodeId::new(to));
        let message = Message { from, to, term: Term::new(term), body };
        let leader = terms_of(&[1, 3, 3]);
        check((addr(2, 0), GroupId::new(0)), &message, &disk(), Some(&leader))
    }

    fn accepted(matched: u64) -> Body {
        let outcome = AppendOutcome::Accepted { matched: LogIndex::new(matched) };
        Body::AppendResponse { outcome, round: 1 }
    }

    #[test]
    fn promises_of_what_is_durable_are_legal() {
        let vote = |granted| Body::VoteResponse { granted };
        let heartbeat = Body::Heartbeat { commit: LogIndex::ZERO, round: 1 };
        let legal = [
            (1, 3, vote(true)),
            (3, 3, vote(false)),
            (3, 2, vote(true)),
            (1, 3, accepted(2)),
            (1, 3, accepted(9)),
            (1, 2, heartbeat),
            (1, 4, Body::PreVote { last: at(3, 2) }),
            (1, 3, Body::HeartbeatResponse { round: 1 }),
        ];
        for (to, term, body) in legal {
            assert_eq!(sends(to, term, body.clone()), Ok(()), "{body:?}");
        }
    }

    #[test]
    fn promises_of_what_is_not_durable_are_found() {
        let vote = |granted| Body::VoteResponse { granted };
        let heartbeat = Body::Heartbeat { commit: LogIndex::ZERO, round: 1 };
        let illegal = [
            (1, 4, vote(true)),
            (3, 3, vote(true)),
            (1, 4, vote(false)),
            (1, 3, accepted(3)),
            (1, 3, heartbeat),
            (1, 4, Body::HeartbeatResponse { round: 1 }),
        ];
        for (to, term, body) in illegal {
            assert_breaks(&RULE, sends(to, term, body));
        }
    }

    /// A message may be older than the loss.
    #[test]
    fn what_was_lost_on_purpose_was_durable() {
        let mut disk = disk();
        disk.forget();
        assert!(disk.held(at(3, 2)) && !disk.held(at(3, 3)));
        assert_eq!(
            (disk.hard_state_ever().term, disk.hard_state()),
            (Term::new(3), HardState::default())
        );
    }
}
