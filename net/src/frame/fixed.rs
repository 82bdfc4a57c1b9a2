//! The fixed header, written and read by hand.

use super::{FRAME_BYTES_MAX, FrameError, HEADER_BYTES_MAX, VERSION};

/// No text begins with these bytes, so a client on the wrong port is found at its first byte.
pub(crate) const MAGIC: [u8; 4] = [0xc7, b'C', b'R', b'C'];

/// Bytes of the fixed header.
pub(crate) const FIXED_BYTES: usize = 32;
/// Bytes of it that its checksum covers; the checksum follows.
const COVERED_BYTES: usize = 28;
/// Bytes of it with content; zeros follow up to `COVERED_BYTES`.
const USED_BYTES: usize = 16;
/// The rkyv header is padded to a multiple of this.
const HEADER_ALIGN: usize = 16;

const _: () = assert!(FIXED_BYTES.is_multiple_of(HEADER_ALIGN), "the rkyv header starts aligned");
const _: () = assert!(COVERED_BYTES + 4 == FIXED_BYTES, "the checksum is the last field");
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "lengths have 32 bits");

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello,
    Refusal,
    Messages,
}

impl Kind {
    const fn code(self) -> u16 {
        match self {
            Self::Hello => 1,
            Self::Refusal => 2,
            Self::Messages => 3,
        }
    }

    const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Hello),
            2 => Some(Self::Refusal),
            3 => Some(Self::Messages),
            _ => None,
        }
    }
}

/// The fields of a fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) kind: Kind,
    pub(crate) header_bytes: usize,
    pub(crate) tail_bytes: usize,
    /// Given by the sender; of this header and the rkyv header.
    pub(crate) checksum: u32,
    /// CRC32C of the bytes covered in this header alone.
    pub(crate) own_checksum: u32,
}

impl Fixed {
    /// Length of the rkyv header with its padding.
    pub(crate) const fn padded_bytes(&self) -> usize {
        padded(self.header_bytes)
    }
}

/// `len` rounded up to where a tail may begin.
pub(crate) const fn padded(len: usize) -> usize {
    len.next_multiple_of(HEADER_ALIGN)
}

/// Appends the fixed header, the rkyv header and its padding.
pub(crate) fn push_headers(kind: Kind, header: &[u8], tail_bytes: usize, out: &mut Vec<u8>) {
    let frame_bytes = FIXED_BYTES + padded(header.len()) + tail_bytes;
    assert!(header.len() <= HEADER_BYTES_MAX, "rkyv header of {} bytes", header.len());
    assert!(frame_bytes <= FRAME_BYTES_MAX, "frame of {frame_bytes} bytes");
    let mut fixed = [0u8; COVERED_BYTES];
    let fields = MAGIC
        .into_iter()
        .chain(VERSION.to_le_bytes())
        .chain(kind.code().to_le_bytes())
        .chain((header.len() as u32).to_le_bytes())
        .chain((tail_bytes as u32).to_le_bytes());
    for (place, byte) in fixed.iter_mut().zip(fields) {
        *place = byte;
    }
    const PADDING: [u8; HEADER_ALIGN] = [0; HEADER_ALIGN];
    let padding = PADDING.get(..padded(header.len()) - header.len()).unwrap_or_default();
    let checksum = crc32c::crc32c(&fixed);
    let checksum = crc32c::crc32c_append(checksum, header);
    let checksum = crc32c::crc32c_append(checksum, padding);
    out.reserve(FIXED_BYTES + padded(header.len()));
    out.extend_from_slice(&fixed);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(header);
    out.extend_from_slice(padding);
}

/// Checks as much of a fixed header as is there, so that a stranger is found at its first byte.
pub(crate) fn check_magic(start: &[u8]) -> Result<(), FrameError> {
    for (offset, (&got, &expected)) in start.iter().zip(&MAGIC).enumerate() {
        if got != expected {
            return Err(FrameError::BadMagic { offset, got, expected });
        }
    }
    Ok(())
}

/// Reads a fixed header and checks its lengths against the limits.
pub(crate) fn read_fixed(bytes: &[u8; FIXED_BYTES]) -> Result<Fixed, FrameError> {
    check_magic(bytes)?;
    let (covered, checksum) = bytes.split_at(COVERED_BYTES);
    let version = u16_at(covered, 4);
    if version != VERSION {
        return Err(FrameError::UnknownVersion { version, known: VERSION });
    }
    if covered.iter().skip(USED_BYTES).any(|&b| b != 0) {
        return Err(FrameError::BadHeader("reserved bytes are not zero"));
    }
    let Some(kind) = Kind::from_code(u16_at(covered, 6)) else {
        return Err(FrameError::BadHeader("unknown kind of frame"));
    };
    let fixed = Fixed {
        kind,
        header_bytes: u32_at(covered, 8) as usize,
        tail_bytes: u32_at(covered, 12) as usize,
        checksum: u32_at(checksum, 0),
        own_checksum: crc32c::crc32c(covered),
    };
    check_len("frame header", fixed.header_bytes, HEADER_BYTES_MAX)?;
    let frame_bytes = FIXED_BYTES + fixed.padded_bytes() + fixed.tail_bytes;
    check_len("frame", frame_bytes, FRAME_BYTES_MAX)?;
    Ok(fixed)
}

/// Refuses a length above its limit.
pub(crate) const fn check_len(
    what: &'static str,
    bytes: usize,
    limit: usize,
) -> Result<(), FrameError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(FrameError::TooLarge { what, bytes: bytes as u64, limit_bytes: limit as u64 })
}

/// The field at `at`; the callers' offsets are constants inside the header.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// See [`u16_at`].
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
