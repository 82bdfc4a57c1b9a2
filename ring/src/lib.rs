//! One io_uring per core for sockets and files, driven by a plain blocking loop.
//!
//! In: calls that queue operations on sockets, files and listeners, named by ids that go stale
//! when the thing is closed. Out: [`Event`]s from [`Ring::wait`], which submits everything queued
//! and sleeps in one system call.
//!
//! Contract: the ring owns what the kernel works on (buffers, addresses, descriptors) from the
//! call until the kernel's last completion for it; closing a socket or dropping the ring cancels
//! and waits. A ring stays on the thread that made it; only a [`Waker`] may leave it.
//!
//! Bounded: what is in flight is one receive, one send and one connect per socket, one accept per
//! listener, and the file operations for which the caller gave buffers. Data in receive buffers
//! is bounded by their number; when they are all in use, receiving pauses.
//!
//! Not here: what the bytes mean (`net`, `wal`), timers beyond the timeout of a wait, threads.
#![expect(unsafe_code, reason = "the kernel reads and writes memory behind the compiler's back")]

mod aligned;
mod buffers;
mod error;
mod event;
mod file;
mod listen;
mod map;
mod queue;
mod ring;
mod slab;
mod socket;
mod waker;

pub use aligned::{ALIGNMENT_BYTES, AlignedBuf};
pub use buffers::RecvBuf;
pub use error::SetupError;
pub use event::{Chunk, Event, FileId, Key, ListenerId, SocketId};
pub use listen::{listener, local_addr, nodelay, peer_addr};
pub use map::FileMap;
pub use ring::{Ring, RingConfig};
pub use waker::Waker;
