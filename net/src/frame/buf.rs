//! Encoded frames, ready to be gathered by a vectored send.

use coracle_raft::Payload;

use super::SHARED_BYTES_MIN;
use super::messages::Tables;

/// A piece of encoded frames. The pieces one after the other are the bytes to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Headers and small payloads.
    Bytes(Vec<u8>),
    /// A payload that stays where it is.
    Shared(Payload),
}

impl Part {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Shared(payload) => payload.bytes(),
        }
    }
}

/// Encoded frames as parts. Encoding appends; buffers given back by [`FrameBuf::recycle`] or
/// [`FrameBuf::clear`] are used again.
#[derive(Debug, Default)]
pub struct FrameBuf {
    parts: Vec<Part>,
    total_len: usize,
    spare: Vec<Vec<u8>>,
    /// Working space of the encoder, kept for its allocations.
    pub(super) tables: Tables,
}

/// Buffers kept for reuse.
const SPARE_COUNT_MAX: usize = 8;
/// A buffer that grew beyond this is not kept.
const SPARE_BYTES_MAX: usize = 256 * 1024;
/// Capacity of a new buffer: the headers of a few busy turns.
const BUFFER_BYTES: usize = 4096;

impl FrameBuf {
    /// Nothing encoded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to send, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Takes the parts out, leaving nothing to send.
    pub fn take_parts(&mut self) -> std::vec::Drain<'_, Part> {
        self.total_len = 0;
        self.parts.drain(..)
    }

    /// Bytes of all parts.
    pub const fn total_len(&self) -> usize {
        self.total_len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Forgets what is encoded and keeps its buffers.
    pub fn clear(&mut self) {
        self.total_len = 0;
        while let Some(part) = self.parts.pop() {
            if let Part::Bytes(buffer) = part {
                self.recycle(buffer);
            }
        }
    }

    /// Gives a buffer back, for instance one of [`Part::Bytes`] whose bytes have been sent.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_COUNT_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Lets `write` append to the open buffer.
    pub(super) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self.parts.last(), Some(Part::Bytes(_))) {
            let buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
            self.parts.push(Part::Bytes(buffer));
        }
        if let Some(Part::Bytes(open)) = self.parts.last_mut() {
            let before = open.len();
            write(open);
            self.total_len += open.len() - before;
        }
    }

    /// Appends a payload: by reference if it is long, by copy if it is short.
    pub(super) fn append_payload(&mut self, payload: &Payload) {
        if payload.len() >= SHARED_BYTES_MIN {
            self.total_len += payload.len();
            self.parts.push(Part::Shared(payload.clone()));
        } else if !payload.is_empty() {
            self.append(|out| out.extend_from_slice(payload.bytes()));
        }
    }
}
