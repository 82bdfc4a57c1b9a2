//! Bytes on the wire, as pure codecs: the Redis protocol ([`resp`]) and peer frames ([`frame`]);
//! and which peers must not be listened to ([`peers`]).
//!
//! In: bytes in pieces of any size, values to send. Out: values, bytes to send.
//! No input panics, and no declared length allocates memory ahead of the bytes it announces.
//!
//! Contract: an error of a parser or decoder ends its connection; there is no resynchronizing.
//!
//! Not here: sockets (`ring`, `node`), what commands mean and how long keys and values may be
//! (`engine`), whether terms and indexes are plausible (`raft`).

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod frame;
pub mod peers;
pub mod resp;
