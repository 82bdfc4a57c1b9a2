//! What a command answers, before any protocol version is chosen.

use std::fmt;

use coracle_raft::Payload;

/// A part of shared bytes: how a stored value leaves the engine without a copy.
#[derive(Clone, PartialEq, Eq)]
pub struct Slice {
    payload: Payload,
    start: u32,
    end: u32,
}

impl Slice {
    /// `start..end` of `payload`. Panics if the range is not inside it.
    pub fn new(payload: Payload, start: usize, end: usize) -> Self {
        assert!(start <= end, "range {start}..{end} is reversed");
        assert!(end <= payload.len(), "range end {end} past {} bytes", payload.len());
        let narrow = |n: usize| u32::try_from(n).expect("payloads are far below 4 GiB");
        Self { start: narrow(start), end: narrow(end), payload }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.payload.bytes()[self.start as usize..self.end as usize]
    }

    /// A part of it, sharing the same bytes. Panics if `range` is not inside.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        let start = self.start as usize;
        assert!(range.end <= self.bytes().len(), "part {range:?} of {} bytes", self.bytes().len());
        Self::new(self.payload.clone(), start + range.start, start + range.end)
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.end - self.start)
    }
}

/// An answer. The protocol codec (`net::resp`) turns it into RESP2 or RESP3.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+text`. For fixed answers such as `OK` and `PONG`.
    Status(&'static str),
    /// `-text`, starting with its code: `ERR …`, `MOVED 1 host:port`, `UNCERTAIN …`.
    Error(String),
    /// A signed number.
    Integer(i64),
    /// Owned bytes.
    Bulk(Vec<u8>),
    /// A stored value.
    Value(Slice),
    /// No value: `$-1` in RESP2, `_` in RESP3.
    Null,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs; a flat list in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// Distinct members; a list in RESP2.
    Set(Vec<Reply>),
    /// A floating-point number; bulk text in RESP2.
    Double(f64),
    /// A truth value; 1 or 0 in RESP2.
    Boolean(bool),
    /// Text with its format (`txt`); bulk text in RESP2.
    Verbatim(String),
}

impl Reply {
    /// About how many bytes it takes to send, or to keep.
    pub fn bytes(&self) -> usize {
        /// What an element costs beside its content.
        const EACH: usize = 16;
        EACH + match self {
            Self::Error(text) | Self::Verbatim(text) => text.len(),
            Self::Bulk(bytes) => bytes.len(),
            Self::Value(slice) => slice.bytes().len(),
            Self::Array(items) | Self::Set(items) => items.iter().map(Self::bytes).sum(),
            Self::Map(pairs) => pairs.iter().map(|(key, value)| key.bytes() + value.bytes()).sum(),
            Self::Status(_)
            | Self::Integer(_)
            | Self::Null
            | Self::Double(_)
            | Self::Boolean(_) => 0,
        }
    }

    /// `+OK`.
    pub const OK: Self = Self::Status("OK");

    /// An error reply. `text` starts with its code.
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }
}
