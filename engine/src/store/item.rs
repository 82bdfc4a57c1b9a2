//! What the index holds for a key: where its value is, not the value, unless it is small.

use coracle_raft::{LogIndex, Payload, Place};

use crate::Slice;
use crate::command::encoding::View;
use crate::moved::{self, Moved};

/// Values up to this size are kept in the index.
pub(crate) const SMALL_VALUE_BYTES: usize = 64;
/// Longer keys have an allocation of their own.
const INLINE_KEY_BYTES: usize = 22;

/// A key; short ones stand in the item itself.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    Inline(u8, [u8; INLINE_KEY_BYTES]),
    Heap(Box<[u8]>),
}

impl Key {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        if bytes.len() > INLINE_KEY_BYTES {
            return Self::Heap(bytes.into());
        }
        let mut inline = [0; INLINE_KEY_BYTES];
        inline[..bytes.len()].copy_from_slice(bytes);
        Self::Inline(bytes.len() as u8, inline)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
        }
    }

    /// Bytes beside the item itself.
    pub(crate) const fn heap_bytes(len: usize) -> usize {
        if len > INLINE_KEY_BYTES { len } else { 0 }
    }
}

/// A value that stands in a record of the core's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// The record.
    pub(crate) place: Place,
    /// Length of the value.
    pub(crate) len: u32,
    /// Which argument of the command it is, or [`Located::MOVED`].
    pub(crate) arg: u16,
}

impl Located {
    /// The record is no command but a value on its own, see [`crate::moved`].
    pub(crate) const MOVED: u16 = u16::MAX;

    /// The last argument of a command that is looked up in its record; values behind it are kept
    /// in memory until they are written out on their own.
    pub(crate) const ARG_MAX: usize = 512;

    /// The value of `key` in the record's payload; `None` if that is not what the index says.
    pub(crate) fn slice(&self, key: &[u8], payload: &Payload) -> Option<Slice> {
        let bytes = payload.bytes();
        let (start, end) = if self.arg == Self::MOVED {
            let moved = Moved::parse(bytes).filter(|moved| moved.key == key)?;
            (bytes.len() - moved.value.len(), bytes.len())
        } else {
            let (start, end) = View::find(bytes, usize::from(self.arg.checked_sub(1)?))?;
            if bytes[start..end] != *key {
                return None;
            }
            let len = bytes.get(end..)?.first_chunk::<4>()?;
            (end + 4, end + 4 + u32::from_le_bytes(*len) as usize)
        };
        let fits = end <= bytes.len() && end - start == self.len as usize;
        fits.then(|| Slice::new(payload.clone(), start, end))
    }

    /// The least that the record's payload may have, which for most is what it has.
    pub(crate) fn payload_len(&self, key: &[u8]) -> usize {
        let around = if self.arg == Self::MOVED { moved::HEADER_BYTES } else { View::AROUND_PAIR };
        around + key.len() + self.len as usize
    }
}

/// The bytes of a key, or where they are.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Small, or computed and not written out yet.
    Memory(Vec<u8>),
    /// In the log.
    Log(Located),
    /// Unknown here for now, see [`crate::lost`]; the length is known, and is that of a long value.
    Lost(u32),
}

impl Value {
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Log(located) => located.len as usize,
            Self::Lost(len) => *len as usize,
        }
    }

    pub(crate) const fn located(&self) -> Option<Located> {
        match self {
            Self::Memory(_) | Self::Lost(_) => None,
            Self::Log(located) => Some(*located),
        }
    }

    pub(crate) const fn memory_bytes(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Log(_) | Self::Lost(_) => 0,
        }
    }

    /// Whether its bytes are known to nobody here.
    pub(crate) const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Whether it should be written out to the log.
    pub(crate) const fn is_dirty(&self) -> bool {
        self.memory_bytes() > SMALL_VALUE_BYTES
    }
}

/// What the store holds for a key.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) key: Key,
    pub(crate) value: Value,
    /// Index of the entry that last changed it.
    pub(crate) version: LogIndex,
    /// Milliseconds of the log clock; 0: never.
    pub(crate) expires_at: u64,
    /// The checksums of all commands that made the value, folded: equal on all replicas, wherever
    /// each of them keeps the bytes.
    pub(crate) sum: u32,
}

impl Item {
    pub(crate) const fn is_dead(&self, clock: u64) -> bool {
        self.expires_at != 0 && self.expires_at <= clock
    }
}
