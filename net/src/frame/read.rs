//! Rows of the wire tables as messages, once they have passed all checks.

use coracle_engine::command::{Access, Command};
use coracle_engine::{
    DiskSpace, EntriesAnswer, EntriesWanted, Forward, PeerMessage, SlotId, ValueAnswer,
    ValueWanted, WallMillis,
};
use coracle_raft::{
    AppendOutcome, Body, Entry, EntryKind, GroupId, LogIndex, LogPosition, Message, NodeId,
    Payload, Term,
};

use super::FrameError;
use super::messages::{answer_row, raft_row, wanted_row};
use super::wire::{
    EntryV1, ForwardV1, LedV1, MessagesV1, RaftV1, RunV1, answer_flag, entry_kind, forward_flag,
    raft_kind, run,
};
use crate::resp::parse_reply;

/// The messages of `wire`, whose payloads have arrived and passed their checksums.
pub(super) fn read_messages(
    wire: &MessagesV1,
    payloads: impl Iterator<Item = Payload>,
) -> Result<Vec<PeerMessage>, FrameError> {
    let mut reader = Reader {
        raft: wire.raft.iter(),
        entries: wire.entries.as_slice(),
        forwards: wire.forwards.iter(),
        replies: wire.replies.iter(),
        led: wire.led.as_slice(),
        payloads,
    };
    let mut messages = Vec::with_capacity(reader.message_count_max(wire));
    for row in &wire.runs {
        match row.kind {
            run::LEADS => messages.push(reader.leads(row.count)?),
            run::SPACE => messages.push(space(row.count)?),
            _ if row.count == 0 => return Err(FrameError::BadHeader("empty run of messages")),
            run::RAFT => reader.repeat(row.count, &mut messages, Reader::raft)?,
            run::FORWARD => reader.repeat(row.count, &mut messages, Reader::forward)?,
            run::REPLY => reader.repeat(row.count, &mut messages, Reader::reply)?,
            run::DIGESTS => reader.repeat(row.count, &mut messages, Reader::digests)?,
            run::VALUE_WANTED => reader.repeat(row.count, &mut messages, Reader::value_wanted)?,
            run::VALUE_ANSWER => reader.repeat(row.count, &mut messages, Reader::value_answer)?,
            run::ENTRIES_WANTED => {
                reader.repeat(row.count, &mut messages, Reader::entries_wanted)?;
            }
            run::ENTRIES_ANSWER => {
                reader.repeat(row.count, &mut messages, Reader::entries_answer)?;
            }
            _ => return Err(FrameError::BadHeader("unknown kind of message")),
        }
    }
    if reader.is_used_up() {
        Ok(messages)
    } else {
        Err(FrameError::BadHeader("rows that belong to no message"))
    }
}

fn space(level: u32) -> Result<PeerMessage, FrameError> {
    let space = DiskSpace::ALL.into_iter().find(|space| *space as u32 == level);
    space.map(PeerMessage::Space).ok_or(FrameError::BadHeader("unknown fill level of a disk"))
}

/// What the messages read so far have left of the tables.
struct Reader<'a, P> {
    raft: std::slice::Iter<'a, RaftV1>,
    entries: &'a [EntryV1],
    forwards: std::slice::Iter<'a, ForwardV1>,
    replies: std::slice::Iter<'a, u64>,
    led: &'a [LedV1],
    payloads: P,
}

const TOO_FEW: FrameError = FrameError::BadHeader("more messages than rows");

impl<P: Iterator<Item = Payload>> Reader<'_, P> {
    /// How many messages there are at most; bounded by the bytes of the header.
    fn message_count_max(&self, wire: &MessagesV1) -> usize {
        let is_one = |row: &&RunV1| matches!(row.kind, run::LEADS | run::SPACE);
        let single = wire.runs.iter().filter(is_one).count();
        self.raft.len() + self.forwards.len() + self.replies.len() + single
    }

    fn is_used_up(&mut self) -> bool {
        self.raft.len() == 0
            && self.entries.is_empty()
            && self.forwards.len() == 0
            && self.replies.len() == 0
            && self.led.is_empty()
            && self.payloads.next().is_none()
    }

    fn repeat(
        &mut self,
        count: u32,
        messages: &mut Vec<PeerMessage>,
        read: fn(&mut Self) -> Result<PeerMessage, FrameError>,
    ) -> Result<(), FrameError> {
        for _ in 0..count {
            messages.push(read(self)?);
        }
        Ok(())
    }

    fn payload(&mut self) -> Result<Payload, FrameError> {
        self.payloads.next().ok_or(TOO_FEW)
    }

    fn leads(&mut self, count: u32) -> Result<PeerMessage, FrameError> {
        let (rows, others) = self.led.split_at_checked(count as usize).ok_or(TOO_FEW)?;
        self.led = others;
        if rows.iter().any(|row| row.reserved != 0) {
            return Err(FrameError::BadHeader("reserved field is not zero"));
        }
        let led = rows.iter().map(|row| (GroupId::new(row.group), Term::new(row.term)));
        Ok(PeerMessage::Leads(led.collect()))
    }

    fn forward(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.forwards.next().ok_or(TOO_FEW)?;
        if row.flags & !forward_flag::ALL != 0 {
            return Err(FrameError::BadHeader("unknown flag of a forward"));
        }
        let slot = u16::try_from(row.slot).ok().and_then(SlotId::new);
        let slot = slot.ok_or(FrameError::BadHeader("slot of a forward above 16383"))?;
        let write = row.flags & forward_flag::WRITE != 0;
        Ok(PeerMessage::Forward(Forward {
            id: row.id,
            at: WallMillis(row.at),
            command: Command {
                slot,
                access: if write { Access::Write } else { Access::Read },
                payload: self.payload()?,
            },
        }))
    }

    fn value_wanted(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.forwards.next().ok_or(TOO_FEW)?;
        if row.flags != 0 {
            return Err(FrameError::BadHeader("unknown flag of a request for a value"));
        }
        let (group, version) = (GroupId::new(row.slot), LogIndex::new(row.at));
        let key = self.payload()?;
        Ok(PeerMessage::ValueWanted(ValueWanted { id: row.id, group, version, key }))
    }

    fn value_answer(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.forwards.next().ok_or(TOO_FEW)?;
        if row.flags & !answer_flag::FOUND != 0 || row.slot != 0 {
            return Err(FrameError::BadHeader("unknown flag of an answer with a value"));
        }
        let found = row.flags & answer_flag::FOUND != 0;
        let value = if found { Some(self.payload()?) } else { None };
        let at = LogIndex::new(row.at);
        Ok(PeerMessage::ValueAnswer(ValueAnswer { id: row.id, at, value }))
    }

    fn entries_wanted(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.raft.next().ok_or(TOO_FEW)?;
        let (term, index) = (Term::new(row.position_term), LogIndex::new(row.position_index));
        let first = LogPosition { term, index };
        let (id, group, last) = (row.round, GroupId::new(row.group), LogIndex::new(row.number));
        let wanted = EntriesWanted { id, group, first, last };
        if wanted_row(&wanted) != *row {
            return Err(FrameError::BadHeader("a field is set that a request for entries lacks"));
        }
        Ok(PeerMessage::EntriesWanted(wanted))
    }

    fn entries_answer(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.raft.next().ok_or(TOO_FEW)?;
        let entries = self.entries(LogIndex::new(row.position_index), row.count)?;
        let (id, base) = (row.round, LogIndex::new(row.number));
        let answer = EntriesAnswer { id, base, entries };
        if answer_row(&answer) != *row {
            return Err(FrameError::BadHeader("a field is set that an answer with entries lacks"));
        }
        Ok(PeerMessage::EntriesAnswer(answer))
    }

    fn reply(&mut self) -> Result<PeerMessage, FrameError> {
        let id = *self.replies.next().ok_or(TOO_FEW)?;
        let payload = self.payload()?;
        match parse_reply(payload.bytes()) {
            Ok(Some((reply, used))) if used == payload.len() => {
                Ok(PeerMessage::ForwardReply { id, reply })
            }
            _ => Err(FrameError::BadHeader("answer to a forward is not one RESP reply")),
        }
    }

    fn digests(&mut self) -> Result<PeerMessage, FrameError> {
        self.payload().map(PeerMessage::Digests)
    }

    fn raft(&mut self) -> Result<PeerMessage, FrameError> {
        let row = self.raft.next().ok_or(TOO_FEW)?;
        let group = GroupId::new(row.group);
        let message = Message {
            from: NodeId::new(row.from),
            to: NodeId::new(row.to),
            term: Term::new(row.term),
            body: self.body(row)?,
        };
        if raft_row(group, &message) != *row {
            return Err(FrameError::BadHeader("a field is set that the kind of message lacks"));
        }
        Ok(PeerMessage::Raft { group, message })
    }

    fn body(&mut self, row: &RaftV1) -> Result<Body, FrameError> {
        let position = LogPosition {
            term: Term::new(row.position_term),
            index: LogIndex::new(row.position_index),
        };
        let index = LogIndex::new(row.number);
        let flag = row.flag != 0;
        let round = row.round;
        Ok(match row.kind {
            raft_kind::PRE_VOTE => Body::PreVote { last: position },
            raft_kind::PRE_VOTE_RESPONSE => Body::PreVoteResponse { granted: flag },
            raft_kind::VOTE => Body::Vote { last: position, transfer: flag },
            raft_kind::VOTE_RESPONSE => Body::VoteResponse { granted: flag },
            raft_kind::APPEND => {
                let entries = self.entries(position.index, row.count)?;
                Body::Append { prev: position, entries, commit: index, round }
            }
            raft_kind::APPEND_ACCEPTED => {
                Body::AppendResponse { outcome: AppendOutcome::Accepted { matched: index }, round }
            }
            raft_kind::APPEND_REJECTED => Body::AppendResponse {
                outcome: AppendOutcome::Rejected { prev: index, hint: position },
                round,
            },
            raft_kind::HEARTBEAT => Body::Heartbeat { commit: index, round },
            raft_kind::HEARTBEAT_RESPONSE => Body::HeartbeatResponse { round },
            raft_kind::READ_INDEX => Body::ReadIndex { context: row.number },
            raft_kind::READ_INDEX_RESPONSE => Body::ReadIndexResponse {
                context: row.number,
                index: flag.then_some(position.index),
            },
            raft_kind::TIMEOUT_NOW => Body::TimeoutNow,
            raft_kind::SNAPSHOT => Body::Snapshot {
                base: position,
                membership: self.payload()?,
                piece: row.number,
                done: flag,
                payload: self.payload()?,
                round,
            },
            raft_kind::SNAPSHOT_RESPONSE => {
                Body::SnapshotResponse { base: position, next_piece: row.number, round }
            }
            raft_kind::SNAPSHOT_WANTED => Body::SnapshotWanted { first: index },
            _ => return Err(FrameError::BadHeader("unknown kind of consensus message")),
        })
    }

    /// The next `count` entries, which must follow `prev` without a gap.
    fn entries(&mut self, prev: LogIndex, count: u32) -> Result<Vec<Entry>, FrameError> {
        let (rows, others) = self.entries.split_at_checked(count as usize).ok_or(TOO_FEW)?;
        self.entries = others;
        let mut entries = Vec::with_capacity(rows.len());
        let mut last = prev.get();
        for row in rows {
            if last.checked_add(1) != Some(row.index) {
                return Err(FrameError::BadHeader("entries of a message are not contiguous"));
            }
            last = row.index;
            if row.reserved != 0 {
                return Err(FrameError::BadHeader("reserved field is not zero"));
            }
            entries.push(Entry {
                term: Term::new(row.term),
                index: LogIndex::new(row.index),
                kind: match row.kind {
                    entry_kind::EMPTY => EntryKind::Empty,
                    entry_kind::COMMAND => EntryKind::Command,
                    entry_kind::MEMBERSHIP => EntryKind::Membership,
                    _ => return Err(FrameError::BadHeader("unknown kind of entry")),
                },
                payload: self.payload()?,
            });
        }
        Ok(entries)
    }
}
