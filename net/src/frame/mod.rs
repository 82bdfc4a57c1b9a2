//! Peer frames: what one core of a node sends to a core of another node.
//!
//! A frame is a fixed header of 32 bytes, little-endian, written by hand; a header made by rkyv,
//! padded with zeros to a multiple of 16; and a tail of raw bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `c7 43 52 43` |
//! | 4 | 2 | format version |
//! | 6 | 2 | kind: 1 hello, 2 refusal, 3 messages |
//! | 8 | 4 | bytes of the rkyv header, without padding |
//! | 12 | 4 | bytes of the tail |
//! | 16 | 12 | zeros |
//! | 28 | 4 | CRC32C of bytes 0..28 and of the padded rkyv header |
//!
//! The tail is the payloads of all messages, one after the other; the rkyv header has the length
//! and the CRC32C of each. A payload's checksum is the one its creator computed: sending does not
//! compute it again, receiving compares it. Payload bytes are never inside rkyv, so they are
//! gathered from where they are and copied once at the receiver.
//!
//! A new version gets new structs beside the old ones (see `wire`); version 1 stays readable.

mod buf;
mod decode;
mod encode;
mod error;
mod fixed;
mod hello;
mod messages;
mod read;
mod wire;

pub use buf::{FrameBuf, Part};
pub use decode::{Decoder, Incoming};
pub use encode::encode;
pub use error::{FrameError, TooLong};
pub use hello::{Hello, Refusal, RefusalKind, encode_hello, encode_refusal};

/// The format version that this build writes, and the newest it reads.
pub const VERSION: u16 = 1;

/// Longest frame that is sent or accepted, with everything.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest rkyv header: 1 MiB is about 30,000 log entries, or 16,000 messages without entries.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// Longest text of a refusal; a longer one is cut when it is sent.
pub const REFUSAL_BYTES_MAX: usize = 1024;

/// Payloads of at least this many bytes are sent from where they are instead of being copied.
pub const SHARED_BYTES_MIN: usize = 1024;
