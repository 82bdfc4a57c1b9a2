//! Messages as rows of the wire tables, and back.

use coracle_engine::command::{Access, Command};
use coracle_engine::{
    DiskSpace, Forward, PeerMessage, Reply, SlotId, ValueAnswer, ValueWanted, WallMillis,
};
use coracle_raft::{
    AppendOutcome, Body, Entry, EntryKind, GroupId, LogIndex, LogPosition, Message, NodeId,
    Payload, Term,
};
use rkyv::util::AlignedVec;

use super::wire::{
    ArchivedMessagesV1, BlobV1, EntryV1, ForwardV1, LedV1, MessagesV1, RaftV1, RunV1, answer_flag,
    entry_kind, forward_flag, raft_kind, run,
};
use super::{FRAME_BYTES_MAX, FrameError};
use crate::resp::{Protocol, encode_reply, parse_reply};

/// Longest encoded answer: what a frame holds beside generous headers.
const ANSWER_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
/// A buffer of answers that grew beyond this is not kept.
const STAGED_KEPT_BYTES_MAX: usize = 256 * 1024;

/// Working space of the encoder.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// The tables of one frame.
    pub(super) wire: MessagesV1,
    /// The serialized tables.
    pub(super) header: AlignedVec,
    /// Encoded answers to forwards, one after the other, and the length of each.
    staged: Vec<u8>,
    staged_lens: Vec<usize>,
}

impl Tables {
    /// Forgets everything but the allocations.
    pub(super) fn clear(&mut self) {
        self.wire.clear();
        self.header.clear();
        self.staged_lens.clear();
        if self.staged.capacity() > STAGED_KEPT_BYTES_MAX {
            self.staged = Vec::new();
        } else {
            self.staged.clear();
        }
    }

    /// Encodes an answer ahead of its frame, since the header needs its length and checksum. An
    /// answer that no frame can hold becomes an error: somebody waits for it.
    pub(super) fn stage(&mut self, reply: &Reply) -> usize {
        let before = self.staged.len();
        encode_reply(reply, Protocol::Resp3, &mut self.staged);
        let bytes = self.staged.len() - before;
        if bytes > ANSWER_BYTES_MAX {
            self.staged.truncate(before);
            let refusal = Reply::Error(format!(
                "ERR answer of {bytes} bytes is too long to be passed on, limit is \
                 {ANSWER_BYTES_MAX}; ask for less at once, or ask the node that holds the keys"
            ));
            encode_reply(&refusal, Protocol::Resp3, &mut self.staged);
        }
        let len = self.staged.len() - before;
        self.staged_lens.push(len);
        len
    }

    /// The staged answers in order.
    pub(super) fn replies(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.staged.as_slice();
        self.staged_lens.iter().map(move |&len| {
            let (reply, others) = rest.split_at_checked(len).unwrap_or_default();
            rest = others;
            reply
        })
    }

    /// Drops the staged answers of `messages`, which are the first ones.
    pub(super) fn unstage(&mut self, messages: &[PeerMessage]) {
        let is_reply = |m: &&PeerMessage| matches!(m, PeerMessage::ForwardReply { .. });
        let count = messages.iter().filter(is_reply).count();
        let bytes: usize = self.staged_lens.drain(..count).sum();
        self.staged.drain(..bytes);
    }

    /// Makes the tables of a frame with `messages`, whose answers are the first ones staged.
    pub(super) fn fill(&mut self, messages: &[PeerMessage]) {
        let mut wire = std::mem::take(&mut self.wire);
        wire.clear();
        let mut replies = self.replies();
        for message in messages {
            match message {
                PeerMessage::Raft { group, message } => {
                    wire.count_run(run::RAFT);
                    wire.push_raft(*group, message);
                }
                PeerMessage::Forward(forward) => {
                    wire.count_run(run::FORWARD);
                    wire.forwards.push(forward_row(forward));
                }
                PeerMessage::ForwardReply { id, .. } => {
                    wire.count_run(run::REPLY);
                    wire.replies.push(*id);
                    let bytes = replies.next().unwrap_or_default();
                    let checksum = crc32c::crc32c(bytes);
                    wire.blobs.push(BlobV1 { len_bytes: bytes.len() as u32, checksum });
                }
                PeerMessage::Digests(_) => wire.count_run(run::DIGESTS),
                PeerMessage::Leads(led) => {
                    wire.runs.push(RunV1 { kind: run::LEADS, count: led.len() as u32 });
                    wire.led.extend(led.iter().map(|&(group, term)| LedV1 {
                        term: term.get(),
                        group: group.get(),
                        reserved: 0,
                    }));
                }
                PeerMessage::ValueWanted(ValueWanted { id, group, version, .. }) => {
                    wire.count_run(run::VALUE_WANTED);
                    let (id, at, slot) = (*id, version.get(), group.get());
                    wire.forwards.push(ForwardV1 { id, at, slot, flags: 0 });
                }
                PeerMessage::ValueAnswer(ValueAnswer { id, at, value }) => {
                    wire.count_run(run::VALUE_ANSWER);
                    let flags = if value.is_some() { answer_flag::FOUND } else { 0 };
                    let (id, at) = (*id, at.get());
                    wire.forwards.push(ForwardV1 { id, at, slot: 0, flags });
                }
                PeerMessage::Space(space) => {
                    wire.runs.push(RunV1 { kind: run::SPACE, count: *space as u32 });
                }
            }
            wire.blobs.extend(payloads_of(message).map(|payload| BlobV1 {
                len_bytes: payload.len() as u32,
                checksum: payload.checksum(),
            }));
        }
        drop(replies);
        self.wire = wire;
    }
}

/// The payloads of a message, in the order of the tail.
pub(super) fn payloads_of(message: &PeerMessage) -> impl Iterator<Item = &Payload> {
    let (entries, pair): (&[Entry], [Option<&Payload>; 2]) = match message {
        PeerMessage::Raft { message, .. } => match &message.body {
            Body::Append { entries, .. } => (entries, [None, None]),
            Body::Snapshot { membership, payload, .. } => (&[], [Some(membership), Some(payload)]),
            _ => (&[], [None, None]),
        },
        PeerMessage::Forward(forward) => (&[], [Some(&forward.command.payload), None]),
        PeerMessage::Digests(said) => (&[], [Some(said), None]),
        PeerMessage::ValueWanted(wanted) => (&[], [Some(&wanted.key), None]),
        PeerMessage::ValueAnswer(answer) => (&[], [answer.value.as_ref(), None]),
        PeerMessage::ForwardReply { .. } | PeerMessage::Leads(_) | PeerMessage::Space(_) => {
            (&[], [None, None])
        }
    };
    entries.iter().map(|entry| &entry.payload).chain(pair.into_iter().flatten())
}

impl MessagesV1 {
    /// Forgets everything but the allocations.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.raft.clear();
        self.entries.clear();
        self.forwards.clear();
        self.replies.clear();
        self.led.clear();
        self.blobs.clear();
    }

    /// Counts a message of `kind` at the end.
    fn count_run(&mut self, kind: u32) {
        match self.runs.last_mut() {
            Some(last) if last.kind == kind => last.count += 1,
            _ => self.runs.push(RunV1 { kind, count: 1 }),
        }
    }

    fn push_raft(&mut self, group: GroupId, message: &Message) {
        self.raft.push(raft_row(group, message));
        let Body::Append { prev, entries, .. } = &message.body else { return };
        let mut last = prev.index;
        for entry in entries {
            assert!(
                entry.index.since(last) == 1,
                "entries of an append are contiguous: {} after {last}",
                entry.index
            );
            last = entry.index;
            self.entries.push(EntryV1 {
                term: entry.term.get(),
                index: entry.index.get(),
                kind: match entry.kind {
                    EntryKind::Empty => entry_kind::EMPTY,
                    EntryKind::Command => entry_kind::COMMAND,
                    EntryKind::Membership => entry_kind::MEMBERSHIP,
                },
                reserved: 0,
            });
        }
    }

    /// Takes over tables that have passed rkyv's checks.
    pub(super) fn copy_from(&mut self, wire: &ArchivedMessagesV1) {
        self.clear();
        self.runs.extend(
            wire.runs
                .iter()
                .map(|row| RunV1 { kind: row.kind.to_native(), count: row.count.to_native() }),
        );
        self.raft.extend(wire.raft.iter().map(|row| RaftV1 {
            term: row.term.to_native(),
            position_term: row.position_term.to_native(),
            position_index: row.position_index.to_native(),
            number: row.number.to_native(),
            round: row.round.to_native(),
            group: row.group.to_native(),
            from: row.from.to_native(),
            to: row.to.to_native(),
            kind: row.kind.to_native(),
            flag: row.flag.to_native(),
            count: row.count.to_native(),
        }));
        self.entries.extend(wire.entries.iter().map(|row| EntryV1 {
            term: row.term.to_native(),
            index: row.index.to_native(),
            kind: row.kind.to_native(),
            reserved: row.reserved.to_native(),
        }));
        self.forwards.extend(wire.forwards.iter().map(|row| ForwardV1 {
            id: row.id.to_native(),
            at: row.at.to_native(),
            slot: row.slot.to_native(),
            flags: row.flags.to_native(),
        }));
        self.replies.extend(wire.replies.iter().map(|id| id.to_native()));
        self.led.extend(wire.led.iter().map(|row| LedV1 {
            term: row.term.to_native(),
            group: row.group.to_native(),
            reserved: row.reserved.to_native(),
        }));
        self.blobs.extend(wire.blobs.iter().map(|row| BlobV1 {
            len_bytes: row.len_bytes.to_native(),
            checksum: row.checksum.to_native(),
        }));
    }
}

/// The row of a message; fields that its kind does not use are zero.
fn raft_row(group: GroupId, message: &Message) -> RaftV1 {
    let row = RaftV1 {
        term: message.term.get(),
        group: group.get(),
        from: message.from.get(),
        to: message.to.get(),
        ..RaftV1::default()
    };
    let at = |kind, position: LogPosition| RaftV1 {
        kind,
        position_term: position.term.get(),
        position_index: position.index.get(),
        ..row
    };
    match &message.body {
        Body::PreVote { last } => at(raft_kind::PRE_VOTE, *last),
        Body::PreVoteResponse { granted } => {
            RaftV1 { kind: raft_kind::PRE_VOTE_RESPONSE, flag: u32::from(*granted), ..row }
        }
        Body::Vote { last, transfer } => {
            RaftV1 { flag: u32::from(*transfer), ..at(raft_kind::VOTE, *last) }
        }
        Body::VoteResponse { granted } => {
            RaftV1 { kind: raft_kind::VOTE_RESPONSE, flag: u32::from(*granted), ..row }
        }
        Body::Append { prev, entries, commit, round } => RaftV1 {
            number: commit.get(),
            round: *round,
            count: entries.len() as u32,
            ..at(raft_kind::APPEND, *prev)
        },
        Body::AppendResponse { outcome: AppendOutcome::Accepted { matched }, round } => {
            RaftV1 { kind: raft_kind::APPEND_ACCEPTED, number: matched.get(), round: *round, ..row }
        }
        Body::AppendResponse { outcome: AppendOutcome::Rejected { prev, hint }, round } => {
            RaftV1 { number: prev.get(), round: *round, ..at(raft_kind::APPEND_REJECTED, *hint) }
        }
        Body::Heartbeat { commit, round } => {
            RaftV1 { kind: raft_kind::HEARTBEAT, number: commit.get(), round: *round, ..row }
        }
        Body::HeartbeatResponse { round } => {
            RaftV1 { kind: raft_kind::HEARTBEAT_RESPONSE, round: *round, ..row }
        }
        Body::ReadIndex { context } => {
            RaftV1 { kind: raft_kind::READ_INDEX, number: *context, ..row }
        }
        Body::ReadIndexResponse { context, index } => RaftV1 {
            kind: raft_kind::READ_INDEX_RESPONSE,
            number: *context,
            flag: u32::from(index.is_some()),
            position_index: index.map_or(0, LogIndex::get),
            ..row
        },
        Body::TimeoutNow => RaftV1 { kind: raft_kind::TIMEOUT_NOW, ..row },
        Body::Snapshot { base, piece, done, round, .. } => RaftV1 {
            number: *piece,
            flag: u32::from(*done),
            round: *round,
            ..at(raft_kind::SNAPSHOT, *base)
        },
        Body::SnapshotResponse { base, next_piece, round } => {
            RaftV1 { number: *next_piece, round: *round, ..at(raft_kind::SNAPSHOT_RESPONSE, *base) }
        }
        Body::SnapshotWanted { first } => {
            RaftV1 { kind: raft_kind::SNAPSHOT_WANTED, number: first.get(), ..row }
        }
    }
}

fn forward_row(forward: &Forward) -> ForwardV1 {
    let mut flags = 0;
    if forward.command.access == Access::Write {
        flags |= forward_flag::WRITE;
    }
    ForwardV1 {
        id: forward.id,
        at: forward.at.0,
        slot: u32::from(forward.command.slot.get()),
        flags,
    }
}

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
                return Err(FrameError::BadHeader("entries of an append are not contiguous"));
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
