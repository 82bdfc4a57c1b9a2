//! What goes into a ring and what comes out of it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::aligned::AlignedBuf;
use crate::buffers::RecvBuf;
use crate::slab::SlotId;

/// Chosen by the caller, given back with every event; the ring does not look at it.
pub type Key = u64;

/// Names a socket of one ring. Stale, and ignored by the ring, after the socket was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub(crate) SlotId);

impl SocketId {
    /// A small number, unique among the open sockets of the ring and reused later: for tables.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.0.index() as usize
    }
}

/// Names a file of one ring. Stale after the file was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(crate) SlotId);

/// Names a listening socket of one ring. Stale after it was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(crate) SlotId);

/// A piece of what is sent. Not copied: the ring keeps it until the kernel is done with it.
#[derive(Clone)]
pub enum Chunk {
    /// Bytes of the sender; all of them are sent.
    Owned(Vec<u8>),
    /// A part of bytes that others share.
    Shared {
        /// The shared allocation.
        bytes: Arc<[u8]>,
        /// First byte sent.
        start: usize,
        /// First byte not sent; at least `start`, at most the length of `bytes`.
        end: usize,
    },
}

impl Chunk {
    /// The bytes to send.
    ///
    /// # Panics
    /// If `start..end` of a shared chunk lies outside its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared { bytes, start, end } => &bytes[*start..*end],
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned(bytes) => write!(f, "Owned({} bytes)", bytes.len()),
            Self::Shared { start, end, .. } => write!(f, "Shared({start}..{end})"),
        }
    }
}

/// What has happened. See [`crate::Ring::wait`].
#[derive(Debug)]
pub enum Event {
    /// A peer connected to a listening socket.
    Accepted {
        /// The listener's key.
        key: Key,
        /// The connection; give it to [`crate::Ring::add_socket`]. Dropping it refuses the peer.
        fd: OwnedFd,
    },
    /// A connection could not be accepted.
    AcceptFailed {
        /// The listener's key.
        key: Key,
        /// The cause; EMFILE (`ulimit -n`) for example.
        error: io::Error,
        /// Whether the ring goes on accepting after a pause; if not, the listener is closed.
        retrying: bool,
    },
    /// Bytes arrived.
    Received {
        /// Where.
        socket: SocketId,
        /// The socket's key.
        key: Key,
        /// The bytes, at least one. Drop it soon: receive buffers are few.
        data: RecvBuf,
    },
    /// Nothing will be received any more. Sending may still work; [`crate::Ring::close`] is due.
    ReceiveClosed {
        /// Where.
        socket: SocketId,
        /// The socket's key.
        key: Key,
        /// `Ok` at the end of the peer's stream.
        result: io::Result<()>,
    },
    /// All chunks of a [`crate::Ring::send`] were taken by the kernel.
    Sent {
        /// Where.
        socket: SocketId,
        /// The socket's key.
        key: Key,
        /// Their length together.
        bytes: usize,
        /// The chunks, for reuse.
        chunks: Vec<Chunk>,
    },
    /// A [`crate::Ring::send`] failed, perhaps in the middle. [`crate::Ring::close`] is due.
    SendFailed {
        /// Where.
        socket: SocketId,
        /// The socket's key.
        key: Key,
        /// The cause.
        error: io::Error,
        /// The chunks, for reuse.
        chunks: Vec<Chunk>,
    },
    /// A [`crate::Ring::connect`] ended.
    Connected {
        /// The key given to it.
        key: Key,
        /// The socket, or why there is none.
        result: io::Result<SocketId>,
    },
    /// A [`crate::Ring::write_dsync`] ended.
    Written {
        /// The key given to it.
        key: u64,
        /// Bytes on stable storage; may be fewer than asked for.
        result: io::Result<usize>,
        /// The buffer given to it.
        buf: AlignedBuf,
    },
    /// A [`crate::Ring::read`] ended.
    Read {
        /// The key given to it.
        key: u64,
        /// Bytes read; fewer than asked for at the end of the file.
        result: io::Result<usize>,
        /// The buffer given to it.
        buf: AlignedBuf,
    },
    /// A [`crate::Ring::close`] is complete. The last event of this socket.
    Closed {
        /// Which.
        socket: SocketId,
        /// The socket's key.
        key: Key,
    },
    /// Somebody called [`crate::Waker::wake`].
    Woken,
}
