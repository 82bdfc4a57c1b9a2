//! RESP2 and RESP3 (Redis serialization protocol), the server's side and the client's.

mod element;
mod encode;
mod error;
mod inline;
mod number;
mod reader;
mod reply;
mod request;
mod skip;

pub use encode::{encode_reply, encode_request};
pub use error::ProtocolError;
pub use reader::ReplyReader;
pub use reply::{ReplyParser, parse_reply};
pub use request::{Limits, Parsed, RequestParser};
pub use skip::{ReplyKind, Skipped, skip_reply};

/// Which version of the protocol a connection speaks; chosen by `HELLO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What every client understands.
    #[default]
    Resp2,
    /// Adds maps, sets, doubles, booleans, verbatim text and a null of its own.
    Resp3,
}

/// How deep arrays, sets and maps may be nested in a reply that is parsed.
pub const REPLY_DEPTH_MAX: usize = 8;
