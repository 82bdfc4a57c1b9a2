//! Received bytes into messages.

use std::collections::VecDeque;
use std::sync::Arc;

use coracle_engine::PeerMessage;
use coracle_raft::Payload;
use rkyv::rancor::Failure;
use rkyv::util::AlignedVec;

use super::fixed::{FIXED_BYTES, Fixed, Kind, check_len, check_magic, read_fixed};
use super::hello::{read_hello, read_refusal_kind};
use super::read::read_messages;
use super::wire::{ArchivedHelloV1, ArchivedMessagesV1, ArchivedRefusalV1, BlobV1, MessagesV1};
use super::{FrameError, Hello, REFUSAL_BYTES_MAX, Refusal, RefusalKind};

/// A received frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The other side says who it is.
    Hello(Hello),
    /// The other side does not want to talk, and says why.
    Refusal(Refusal),
    /// Messages in the order they were sent.
    Messages(Vec<PeerMessage>),
}

/// Decoder of one link: bytes in pieces of any size in, frames out.
///
/// The bytes of a payload that lies in one received piece are copied once, into the payload; those
/// of one cut in two are gathered first, in a buffer that grows as bytes arrive, whatever length
/// was declared. A frame is checked whole (checksums, then rkyv's checks, then its structure)
/// before any of it is handed out.
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
    blobs: Vec<Arc<[u8]>>,
    /// What has arrived of the next one.
    open: Vec<u8>,
}

/// Which part of a frame comes next.
#[derive(Debug)]
enum Stage {
    Fixed { bytes: [u8; FIXED_BYTES], filled: usize },
    Header(Fixed),
    Tail { kind: TailKind, checksum: u32 },
}

#[derive(Clone, Copy, Debug)]
enum TailKind {
    Refusal(RefusalKind),
    Messages,
}

/// A buffer that grew beyond this is not kept.
const KEPT_BYTES_MAX: usize = 64 * 1024;

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
            open: Vec::new(),
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
                if self.header.capacity() > KEPT_BYTES_MAX {
                    self.header = AlignedVec::new();
                }
                Ok(true)
            }
            Stage::Tail { kind, checksum } => {
                while let Some(&blob) = self.wire.blobs.get(self.blobs.len()) {
                    let len = blob.len_bytes as usize;
                    let piece = take(input, len.saturating_sub(self.open.len()));
                    *checksum = crc32c::crc32c_append(*checksum, piece);
                    if piece.len() < len {
                        self.open.extend_from_slice(piece);
                        if self.open.len() < len {
                            return Ok(false);
                        }
                    }
                    expect_checksum("payload", *checksum, blob.checksum)?;
                    *checksum = 0;
                    if piece.len() == len {
                        self.blobs.push(piece.into());
                        continue;
                    }
                    self.blobs.push(self.open.as_slice().into());
                    self.open.clear();
                    if self.open.capacity() > KEPT_BYTES_MAX {
                        self.open = Vec::new();
                    }
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
                TailKind::Refusal(read_refusal_kind(wire.kind.to_native()))
            }
            Kind::Messages => {
                let wire = rkyv::access::<ArchivedMessagesV1, _>(header).map_err(invalid)?;
                self.wire.copy_from(wire);
                TailKind::Messages
            }
        };
        let total = self.wire.blobs.iter().map(|blob| u64::from(blob.len_bytes)).sum();
        expect_tail(total, fixed.tail_bytes)?;
        Ok(Stage::Tail { kind, checksum: 0 })
    }

    /// Makes a frame of the header's tables and the complete tail.
    fn read_tail(&mut self, kind: TailKind) -> Result<Incoming, FrameError> {
        let mut blobs = self.blobs.drain(..);
        match kind {
            TailKind::Refusal(kind) => {
                let text = blobs.next().unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok(Incoming::Refusal(Refusal { kind, text }))
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
    use coracle_engine::command::{Access, Command};
    use coracle_engine::{Forward, SlotId, WallMillis};

    use super::*;
    use crate::frame::{FrameBuf, encode};

    /// The buffer of a payload that arrives in pieces grows with them, whatever length was
    /// declared, and is not kept when it was large.
    #[test]
    fn payloads_grow_with_their_bytes() {
        for len in [40_000, 100_001, 8 << 20] {
            let bytes = vec![7; len];
            let payload = Payload::new(bytes.as_slice(), crc32c::crc32c(&bytes));
            let command = Command { slot: SlotId::of_key(b"key"), access: Access::Write, payload };
            let at = WallMillis(1);
            let message = PeerMessage::Forward(Forward { id: 1, at, command });
            let mut frame = FrameBuf::new();
            encode(std::slice::from_ref(&message), &mut frame).expect("it is not too long");
            let wire = frame.take_parts().map(|part| part.bytes().to_vec()).collect::<Vec<_>>();
            let wire = wire.concat();
            let mut decoder = Decoder::new();
            let mut pushed = 0;
            for piece in wire.chunks(16 * 1024) {
                decoder.push(piece);
                pushed += piece.len();
                let capacity = decoder.open.capacity();
                assert!(capacity <= 2 * pushed, "{capacity} for {pushed} of {len}");
            }
            assert_eq!(decoder.next(), Ok(Some(Incoming::Messages(vec![message]))));
            assert!(decoder.open.capacity() <= KEPT_BYTES_MAX, "{len}");
        }
    }
}
