//! Messages as rows of the wire tables.

use coracle_engine::command::Access;
use coracle_engine::{
    EntriesAnswer, EntriesWanted, Forward, PeerMessage, Reply, ValueAnswer, ValueWanted,
};
use coracle_raft::{
    AppendOutcome, Body, Entry, EntryKind, GroupId, LogIndex, LogPosition, Message, Payload,
};
use rkyv::util::AlignedVec;

use super::FRAME_BYTES_MAX;
use super::wire::{
    ArchivedMessagesV1, BlobV1, EntryV1, ForwardV1, LedV1, MessagesV1, RaftV1, RunV1, answer_flag,
    entry_kind, forward_flag, raft_kind, run,
};
use crate::resp::{Protocol, encode_reply};

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
                PeerMessage::EntriesWanted(wanted) => {
                    wire.count_run(run::ENTRIES_WANTED);
                    wire.raft.push(wanted_row(wanted));
                }
                PeerMessage::EntriesAnswer(answer) => {
                    wire.count_run(run::ENTRIES_ANSWER);
                    let row = answer_row(answer);
                    wire.raft.push(row);
                    wire.push_entries(LogIndex::new(row.position_index), &answer.entries);
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
        PeerMessage::EntriesAnswer(answer) => (&answer.entries, [None, None]),
        PeerMessage::ForwardReply { .. }
        | PeerMessage::Leads(_)
        | PeerMessage::EntriesWanted(_)
        | PeerMessage::Space(_) => (&[], [None, None]),
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
        self.push_entries(prev.index, entries);
    }

    fn push_entries(&mut self, prev: LogIndex, entries: &[Entry]) {
        let mut last = prev;
        for entry in entries {
            assert!(
                entry.index.since(last) == 1,
                "entries of a message are contiguous: {} after {last}",
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
pub(super) fn raft_row(group: GroupId, message: &Message) -> RaftV1 {
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

pub(super) fn wanted_row(wanted: &EntriesWanted) -> RaftV1 {
    let EntriesWanted { id, group, first, last } = wanted;
    RaftV1 {
        group: group.get(),
        position_term: first.term.get(),
        position_index: first.index.get(),
        number: last.get(),
        round: *id,
        ..RaftV1::default()
    }
}

pub(super) fn answer_row(answer: &EntriesAnswer) -> RaftV1 {
    let EntriesAnswer { id, base, entries } = answer;
    RaftV1 {
        position_index: entries.first().map_or(0, |entry| entry.index.prev().get()),
        number: base.get(),
        round: *id,
        count: entries.len() as u32,
        ..RaftV1::default()
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
