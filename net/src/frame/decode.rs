//! Received bytes into messages.

use std::collections::VecDeque;

use coracle_engine::PeerMessage;
use coracle_raft::Payload;
use rkyv::rancor::Failure;
use rkyv::util::AlignedVec;

use super::fixed::{FIXED_BYTES, Fixed, Kind, check_len, check_magic, read_fixed};
use super::hello::read_hello;
use super::messages::read_messages;
use super::wire::{ArchivedHelloV1, ArchivedMessagesV1, ArchivedRefusalV1, BlobV1, MessagesV1};
use super::{FrameError, Hello, REFUSAL_BYTES_MAX};

/// A received frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The other side says who it is.
    Hello(Hello),
    /// The other side does not want to talk, and says why.
    Refusal(String),
    /// Messages in the order they were sent.
    Messages(Vec<PeerMessage>),
}

/// Decoder of one link: bytes in pieces of any size in, frames out.
///
/// Payload bytes are copied once, from the received piece into the payload's own allocation,
/// which grows as bytes arrive and never beyond the declared length. A frame is checked whole
/// (checksums, then rkyv's checks, then its structure) before any of it is handed out.
#[derive(Debug)]
pub struct Decoder {
    stage: Stage,
    ready: VecDeque<Incoming>,
    failed: Option<FrameError>,
    /// The rkyv header that is arriving; aligned as rkyv wants it.
    header: AlignedVec,
    /// The tables of the frame whose tail is arriving.
    wire: MessagesV1,
    /// Pieces of the tail that are complete.
    blobs: Vec<Vec<u8>>,
}

/// Which part of a frame comes next.
#[derive(Debug)]
enum Stage {
    Fixed { bytes: [u8; FIXED_BYTES], filled: usize },
    Header(Fixed),
    Tail { kind: TailKind, open: Vec<u8>, checksum: u32 },
}

#[derive(Clone, Copy, Debug)]
enum TailKind {
    Refusal,
    Messages,
}

/// A payload's first allocation is at most this, however long it says it will be.
const FIRST_ALLOCATION_BYTES_MAX: usize = 64 * 1024;
/// A header buffer that grew beyond this is not kept.
const HEADER_KEPT_BYTES_MAX: usize = 64 * 1024;

impl Decoder {
    /// A decoder at the beginning of a link.
    pub fn new() -> Self {
        Self {
            stage: Stage::START,
            ready: VecDeque::new(),
            failed: None,
            header: AlignedVec::new(),
            wire: MessagesV1::default(),
            blobs: Vec::new(),
        }
    }

    /// Takes received bytes. What they complete waits for [`Decoder::next`]; call that until it
    /// returns `None` before pushing more, so that no more than one push waits.
    pub fn push(&mut self, mut input: &[u8]) {
        while self.failed.is_none() {
            match self.advance(&mut input) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// The next frame; `None` if more bytes are needed. An error comes after all frames before
    /// it, and stays.
    #[expect(clippy::should_implement_trait, reason = "an iterator would promise to end")]
    pub fn next(&mut self) -> Result<Option<Incoming>, FrameError> {
        match (self.ready.pop_front(), &self.failed) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Takes what the current stage can use from the front of `input`; whether it got to the next
    /// stage.
    fn advance(&mut self, input: &mut &[u8]) -> Result<bool, FrameError> {
        match &mut self.stage {
            Stage::Fixed { bytes, filled } => {
                let piece = take(input, FIXED_BYTES - *filled);
                for (place, byte) in bytes.iter_mut().skip(*filled).zip(piece) {
                    *place = *byte;
                }
                *filled += piece.len();
                if *filled < FIXED_BYTES {
                    check_magic(bytes.get(..*filled).unwrap_or_default())?;
                    return Ok(false);
                }
                self.stage = Stage::Header(read_fixed(bytes)?);
                self.header.clear();
                Ok(true)
            }
            Stage::Header(fixed) => {
                let fixed = *fixed;
                let missing = fixed.padded_bytes().saturating_sub(self.header.len());
                self.header.extend_from_slice(take(input, missing));
                if self.header.len() < fixed.padded_bytes() {
                    return Ok(false);
                }
                self.stage = self.read_header(fixed)?;
                if self.header.capacity() > HEADER_KEPT_BYTES_MAX {
                    self.header = AlignedVec::new();
                }
                Ok(true)
            }
            Stage::Tail { kind, open, checksum } => {
                while let Some(&blob) = self.wire.blobs.get(self.blobs.len()) {
                    let len = blob.len_bytes as usize;
                    let piece = take(input, len.saturating_sub(open.len()));
                    grow(open, piece.len(), len);
                    open.extend_from_slice(piece);
                    *checksum = crc32c::crc32c_append(*checksum, piece);
                    if open.len() < len {
                        return Ok(false);
                    }
                    expect_checksum("payload", *checksum, blob.checksum)?;
                    self.blobs.push(std::mem::take(open));
                    *checksum = 0;
                }
                let kind = *kind;
                self.stage = Stage::START;
                let frame = self.read_tail(kind)?;
                self.ready.push_back(frame);
                Ok(true)
            }
        }
    }

    /// Checks a complete header; what comes next.
    fn read_header(&mut self, fixed: Fixed) -> Result<Stage, FrameError> {
        let checksum = crc32c::crc32c_append(fixed.own_checksum, &self.header);
        expect_checksum("frame header", checksum, fixed.checksum)?;
        let (header, padding) =
            self.header.split_at_checked(fixed.header_bytes).unwrap_or_default();
        if padding.iter().any(|&b| b != 0) {
            return Err(FrameError::BadHeader("padding is not zero"));
        }
        let invalid = |_: Failure| FrameError::BadHeader("refused by rkyv");
        self.blobs.clear();
        let kind = match fixed.kind {
            Kind::Hello => {
                let wire = rkyv::access::<ArchivedHelloV1, _>(header).map_err(invalid)?;
                expect_tail(0, fixed.tail_bytes)?;
                self.ready.push_back(Incoming::Hello(read_hello(wire)?));
                return Ok(Stage::START);
            }
            Kind::Refusal => {
                let wire = rkyv::access::<ArchivedRefusalV1, _>(header).map_err(invalid)?;
                let text = BlobV1 {
                    len_bytes: wire.text.len_bytes.to_native(),
                    checksum: wire.text.checksum.to_native(),
                };
                check_len("refusal", text.len_bytes as usize, REFUSAL_BYTES_MAX)?;
                self.wire.clear();
                self.wire.blobs.push(text);
                TailKind::Refusal
            }
            Kind::Messages => {
                let wire = rkyv::access::<ArchivedMessagesV1, _>(header).map_err(invalid)?;
                self.wire.copy_from(wire);
                TailKind::Messages
            }
        };
        let total = self.wire.blobs.iter().map(|blob| u64::from(blob.len_bytes)).sum();
        expect_tail(total, fixed.tail_bytes)?;
        Ok(Stage::Tail { kind, open: Vec::new(), checksum: 0 })
    }

    /// Makes a frame of the header's tables and the complete tail.
    fn read_tail(&mut self, kind: TailKind) -> Result<Incoming, FrameError> {
        let mut blobs = self.blobs.drain(..);
        match kind {
            TailKind::Refusal => {
                let text = blobs.next().unwrap_or_default();
                Ok(Incoming::Refusal(String::from_utf8_lossy(&text).into_owned()))
            }
            TailKind::Messages => {
                let payloads = blobs
                    .zip(&self.wire.blobs)
                    .map(|(bytes, blob)| Payload::new(bytes, blob.checksum));
                read_messages(&self.wire, payloads).map(Incoming::Messages)
            }
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    const START: Self = Self::Fixed { bytes: [0; FIXED_BYTES], filled: 0 };
}

/// Splits off at most `len` bytes from the front.
fn take<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
    *input = rest;
    piece
}

/// Makes room for `piece` more bytes of a payload of `len` bytes in all. The capacity ends at
/// exactly `len`, so that a payload can be made of the vector without a copy.
fn grow(open: &mut Vec<u8>, piece: usize, len: usize) {
    if open.capacity() - open.len() >= piece {
        return;
    }
    let wanted = if open.capacity() == 0 {
        piece.max(FIRST_ALLOCATION_BYTES_MAX)
    } else {
        (open.len() + piece).max(2 * open.capacity())
    };
    open.reserve_exact(wanted.min(len) - open.len());
}

fn expect_tail(declared: u64, tail_bytes: usize) -> Result<(), FrameError> {
    if declared == tail_bytes as u64 {
        Ok(())
    } else {
        Err(FrameError::BadHeader("lengths of the payloads are not the length of the tail"))
    }
}

fn expect_checksum(what: &'static str, got: u32, expected: u32) -> Result<(), FrameError> {
    if got == expected { Ok(()) } else { Err(FrameError::BadChecksum { what, got, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers grow as bytes arrive, whatever length was declared.
    #[test]
    fn payloads_grow_with_their_bytes_and_end_without_spare_capacity() {
        for len in [1, 4096, FIRST_ALLOCATION_BYTES_MAX, 100_001, 8 * 1024 * 1024] {
            let mut open = Vec::new();
            while open.len() < len {
                let piece = (len - open.len()).min(16 * 1024);
                grow(&mut open, piece, len);
                open.resize(open.len() + piece, 0);
                let bound = (2 * open.len()).max(FIRST_ALLOCATION_BYTES_MAX);
                assert!(open.capacity() <= bound, "{} for {}", open.capacity(), open.len());
            }
            assert_eq!(open.capacity(), len);
        }
    }
}
