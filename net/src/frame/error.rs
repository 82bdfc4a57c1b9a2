//! What can be wrong with a frame.

/// Why received bytes are not a frame. The link must be closed; nothing after the error can be
/// trusted.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not begin a frame.
    #[error(
        "not a peer frame: byte {offset} is {got:#04x}, expected {expected:#04x}{}",
        hint(*offset, *got)
    )]
    BadMagic {
        /// Position in the magic, from 0.
        offset: usize,
        /// What is there.
        got: u8,
        /// What a frame has there.
        expected: u8,
    },
    /// The sender writes a format that this build does not know.
    #[error("frame of version {version}, this build reads up to {known}")]
    UnknownVersion {
        /// The frame's version.
        version: u16,
        /// The newest version known here.
        known: u16,
    },
    /// A declared length is above its limit.
    #[error("{what} of {bytes} bytes, limit is {limit_bytes}")]
    TooLarge {
        /// What is too long.
        what: &'static str,
        /// The declared length.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Bytes were damaged on the way.
    #[error("checksum of {what} is {got:08x}, expected {expected:08x}")]
    BadChecksum {
        /// Which part of the frame.
        what: &'static str,
        /// CRC32C of the received bytes.
        got: u32,
        /// CRC32C that the sender gave.
        expected: u32,
    },
    /// The header contradicts itself or the tail; the text says how.
    #[error("invalid frame header: {0}")]
    BadHeader(&'static str),
}

impl FrameError {
    /// A RESP error to send before closing, if the bytes look like those of a Redis client.
    pub const fn hint_reply(&self) -> Option<&'static [u8]> {
        match self {
            Self::BadMagic { offset, got, .. } if looks_like_resp(*offset, *got) => Some(
                b"-ERR this is a peer port, for the nodes of the cluster; clients have others\r\n",
            ),
            _ => None,
        }
    }
}

const fn hint(offset: usize, got: u8) -> &'static str {
    if looks_like_resp(offset, got) {
        "; this is a peer port, and a Redis client seems to be using it"
    } else {
        ""
    }
}

/// Requests begin with `*`, inline ones with a letter.
const fn looks_like_resp(offset: usize, got: u8) -> bool {
    offset == 0 && (got == b'*' || got.is_ascii_alphabetic())
}

/// A message that no frame can hold was left out; all others were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {index} makes a frame of {bytes} bytes, limit is {limit_bytes}")]
pub struct TooLong {
    /// Its place among the messages given; the first one, if there are several.
    pub index: usize,
    /// Bytes of the frame it would need.
    pub bytes: usize,
    /// The limit it breaks.
    pub limit_bytes: usize,
}
