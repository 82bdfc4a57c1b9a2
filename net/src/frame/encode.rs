//! Messages into frames.

use coracle_engine::PeerMessage;
use coracle_raft::Body;
use rkyv::rancor::Panic;
use rkyv::util::AlignedVec;

use super::fixed::{FIXED_BYTES, Kind, padded, push_headers};
use super::messages::{Tables, payloads_of};
use super::wire::{
    ArchivedBlobV1, ArchivedEntryV1, ArchivedForwardV1, ArchivedLedV1, ArchivedMessagesV1,
    ArchivedRaftV1, ArchivedRunV1,
};
use super::{FRAME_BYTES_MAX, FrameBuf, HEADER_BYTES_MAX, TooLong};

/// A frame is closed before it grows beyond this, unless one message alone is longer: the
/// receiver can start on what it has, and needs less memory.
const SPLIT_BYTES: usize = 1024 * 1024;

/// Appends frames with all of `messages`, in order; messages of many groups share a frame.
/// Payloads are not copied unless they are short, and their checksums are taken as they are.
///
/// A message that no frame can hold is left out and reported; all others are encoded. An answer
/// to a forward that no frame can hold is replaced by an error answer.
pub fn encode(messages: &[PeerMessage], frame: &mut FrameBuf) -> Result<(), TooLong> {
    let mut tables = std::mem::take(&mut frame.tables);
    let result = encode_all(messages, &mut tables, frame);
    tables.clear();
    frame.tables = tables;
    result
}

fn encode_all(
    messages: &[PeerMessage],
    tables: &mut Tables,
    frame: &mut FrameBuf,
) -> Result<(), TooLong> {
    let mut result = Ok(());
    let mut open = Size::EMPTY;
    let mut first = 0;
    for (index, message) in messages.iter().enumerate() {
        let reply_bytes = match message {
            PeerMessage::ForwardReply { reply, .. } => tables.stage(reply),
            _ => 0,
        };
        let size = Size::of(message, reply_bytes);
        let fits = Size::EMPTY.plus(size).check(index);
        if fits.is_err() || (index > first && open.plus(size).frame_bytes() > SPLIT_BYTES) {
            flush(messages.get(first..index).unwrap_or_default(), tables, frame);
            first = index;
            open = Size::EMPTY;
        }
        if fits.is_ok() {
            open = open.plus(size);
        } else {
            first = index + 1;
            result = result.and(fits);
        }
    }
    flush(messages.get(first..).unwrap_or_default(), tables, frame);
    result
}

/// Appends one frame. The answers among `messages` are the first ones staged.
fn flush(messages: &[PeerMessage], tables: &mut Tables, frame: &mut FrameBuf) {
    if messages.is_empty() {
        return;
    }
    tables.fill(messages);
    let tail_bytes = tables.wire.blobs.iter().map(|blob| blob.len_bytes as usize).sum();
    let mut header = std::mem::take(&mut tables.header);
    header.clear();
    let header = to_rkyv(&tables.wire, header);
    frame.append(|out| push_headers(Kind::Messages, &header, tail_bytes, out));
    tables.header = header;
    let mut replies = tables.replies();
    for message in messages {
        if matches!(message, PeerMessage::ForwardReply { .. }) {
            let bytes = replies.next().unwrap_or_default();
            frame.append(|out| out.extend_from_slice(bytes));
        }
        payloads_of(message).for_each(|payload| frame.append_payload(payload));
    }
    drop(replies);
    tables.unstage(messages);
}

/// Serializes a header into `buffer`, which must be empty.
pub(super) fn to_rkyv(
    header: &impl for<'a> rkyv::Serialize<
        rkyv::api::high::HighSerializer<AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, Panic>,
    >,
    buffer: AlignedVec,
) -> AlignedVec {
    // Nothing can fail: the writer is memory, and the structs hold no shared pointers.
    let Ok(bytes) = rkyv::api::high::to_bytes_in::<_, Panic>(header, buffer);
    bytes
}

/// What a frame will measure; an upper bound for the header.
#[derive(Clone, Copy)]
struct Size {
    header_bytes: usize,
    tail_bytes: usize,
}

impl Size {
    /// The root, and what aligning each table may cost.
    const EMPTY: Self =
        Self { header_bytes: size_of::<ArchivedMessagesV1>() + 8 * 16, tail_bytes: 0 };

    fn of(message: &PeerMessage, reply_bytes: usize) -> Self {
        let blob = size_of::<ArchivedBlobV1>();
        let rows = match message {
            PeerMessage::Raft { message, .. } => {
                let parts = match &message.body {
                    Body::Append { entries, .. } => {
                        entries.len() * (size_of::<ArchivedEntryV1>() + blob)
                    }
                    Body::Snapshot { .. } => 2 * blob,
                    _ => 0,
                };
                size_of::<ArchivedRaftV1>() + parts
            }
            PeerMessage::Forward(_) => size_of::<ArchivedForwardV1>() + blob,
            PeerMessage::ForwardReply { .. } => size_of::<u64>() + blob,
            PeerMessage::Digests(_) => blob,
            PeerMessage::Leads(led) => led.len() * size_of::<ArchivedLedV1>(),
            PeerMessage::ValueWanted(_) | PeerMessage::ValueAnswer(_) => {
                size_of::<ArchivedForwardV1>() + blob
            }
            PeerMessage::EntriesWanted(_) => size_of::<ArchivedRaftV1>(),
            PeerMessage::EntriesAnswer(answer) => {
                let entry = size_of::<ArchivedEntryV1>() + blob;
                size_of::<ArchivedRaftV1>() + answer.entries.len() * entry
            }
            PeerMessage::Space(_) => 0,
        };
        Self {
            header_bytes: size_of::<ArchivedRunV1>() + rows,
            tail_bytes: reply_bytes + payloads_of(message).map(|p| p.len()).sum::<usize>(),
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            header_bytes: self.header_bytes + other.header_bytes,
            tail_bytes: self.tail_bytes + other.tail_bytes,
        }
    }

    const fn frame_bytes(self) -> usize {
        FIXED_BYTES + padded(self.header_bytes) + self.tail_bytes
    }

    const fn check(self, index: usize) -> Result<(), TooLong> {
        if self.header_bytes > HEADER_BYTES_MAX {
            let bytes = self.header_bytes;
            return Err(TooLong { index, bytes, limit_bytes: HEADER_BYTES_MAX });
        }
        let bytes = self.frame_bytes();
        if bytes > FRAME_BYTES_MAX {
            return Err(TooLong { index, bytes, limit_bytes: FRAME_BYTES_MAX });
        }
        Ok(())
    }
}
