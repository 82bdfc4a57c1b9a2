//! Why bytes are not RESP.

use coracle_engine::Reply;

/// Why the bytes of a connection cannot be understood. The connection must be closed; a server
/// sends [`ProtocolError::reply`] first. Texts are those of Redis where Redis has one.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is not a number, or above the limit.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// More arguments than a connection may send before it has authenticated.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// An argument does not begin with its length.
    #[error("Protocol error: expected '$', got '{}'", got.escape_ascii())]
    ExpectedBulk {
        /// The byte found in its place.
        got: u8,
    },
    /// The length of an argument is not a number, negative, or above the limit.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// A longer argument than a connection may send before it has authenticated.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// The bytes of an argument are not followed by a line end.
    #[error("Protocol error: expected a line end after {len_bytes} bytes of bulk")]
    MissingLineEnd {
        /// Declared length of the argument.
        len_bytes: usize,
    },
    /// All arguments of one command together are too long.
    #[error("Protocol error: command of at least {bytes} bytes, limit is {limit_bytes}")]
    CommandTooLarge {
        /// Bytes of the command up to and including the argument that went too far.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// An inline command has an open quote, or text right after a closing one.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// An inline command has no line end where one must be.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// A reply does not begin with a type of RESP2 or RESP3.
    #[error("Protocol error: unknown reply type '{}'", got.escape_ascii())]
    UnknownType {
        /// The byte found in its place.
        got: u8,
    },
    /// A reply breaks the rules of its type.
    #[error("Protocol error: {0}")]
    InvalidReply(&'static str),
    /// A reply is nested too deeply.
    #[error("Protocol error: reply nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

impl ProtocolError {
    /// The reply to send before closing the connection.
    pub fn reply(&self) -> Reply {
        Reply::Error(format!("ERR {self}"))
    }
}
