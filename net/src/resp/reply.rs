//! Replies as values, for clients and for forwarded commands.

use coracle_engine::Reply;

use super::element::{Aggregate, Element, Step, read_element};
use super::{ProtocolError, REPLY_DEPTH_MAX};

/// Parses the reply at the beginning of `input`: the reply and how many bytes it took, or `None`
/// if it is not complete. For input that arrives in many pieces see [`ReplyParser`].
pub fn parse_reply(input: &[u8]) -> Result<Option<(Reply, usize)>, ProtocolError> {
    ReplyParser::new().parse_reply(input)
}

/// Incremental parser of the replies on one connection.
///
/// Each call gets all unconsumed input, beginning at the same reply as the call before until that
/// one was consumed; elements that were complete then are not parsed again.
///
/// Statuses are fixed texts in [`Reply`]: those that servers of this project send keep their type,
/// any other becomes a [`Reply::Bulk`]. Stored values come out as `Bulk`, attributes are skipped.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// Where parsing goes on.
    at: usize,
    /// Aggregates that are not complete yet, outermost first.
    open: Vec<Open>,
    /// The input must be at least this long to get any further.
    len_min: usize,
}

/// An aggregate whose elements are being collected.
#[derive(Debug)]
struct Open {
    kind: Aggregate,
    left: usize,
    items: Vec<Reply>,
}

impl ReplyParser {
    /// A parser at the beginning of a connection.
    pub const fn new() -> Self {
        Self { at: 0, open: Vec::new(), len_min: 0 }
    }

    /// How many bytes beyond `input` are needed at least; 0 if a parse is worth trying.
    pub const fn needed_bytes(&self, input: &[u8]) -> usize {
        self.len_min.saturating_sub(input.len())
    }

    /// Parses the reply at the beginning of `input`: the reply and how many bytes it took, or
    /// `None` if it is not complete. After an error the connection must be closed.
    pub fn parse_reply(&mut self, input: &[u8]) -> Result<Option<(Reply, usize)>, ProtocolError> {
        if input.len() < self.len_min {
            return Ok(None);
        }
        loop {
            let (element, next) = match read_element(input, self.at)? {
                Step::Done { element, next } => (element, next),
                Step::Incomplete { needed_bytes } => {
                    self.len_min = input.len().saturating_add(needed_bytes);
                    return Ok(None);
                }
            };
            self.at = next;
            let reply = match element {
                Element::Open { kind, len } => {
                    if self.open.len() >= REPLY_DEPTH_MAX {
                        return Err(ProtocolError::TooDeep { limit: REPLY_DEPTH_MAX });
                    }
                    self.open.push(Open { kind, left: len, items: Vec::new() });
                    None
                }
                scalar => Some(scalar_reply(scalar)?),
            };
            if let Some(whole) = self.collect(reply) {
                let consumed = self.at;
                *self = Self::new();
                return Ok(Some((whole, consumed)));
            }
        }
    }

    /// Puts an element into the innermost aggregate and closes what became full; the whole reply
    /// if that was the last one.
    fn collect(&mut self, mut done: Option<Reply>) -> Option<Reply> {
        loop {
            let Some(top) = self.open.last_mut() else { return done };
            if let Some(item) = done.take() {
                top.items.push(item);
                top.left = top.left.saturating_sub(1);
            }
            if top.left > 0 {
                return None;
            }
            let full = self.open.pop()?;
            done = match full.kind {
                Aggregate::Array => Some(Reply::Array(full.items)),
                Aggregate::Set => Some(Reply::Set(full.items)),
                Aggregate::Map => Some(Reply::Map(pair_up(full.items))),
                // The reply it is about comes next, in the same place.
                Aggregate::Attribute => return None,
            };
        }
    }
}

fn scalar_reply(element: Element<'_>) -> Result<Reply, ProtocolError> {
    Ok(match element {
        Element::Status(text) => status_reply(text),
        Element::Error(text) => Reply::Error(lossy(text)),
        Element::Integer(value) => Reply::Integer(value),
        Element::Bulk(bytes) => Reply::Bulk(bytes.to_vec()),
        Element::Double(value) => Reply::Double(value),
        Element::Boolean(value) => Reply::Boolean(value),
        Element::Verbatim(text) => match text.split_at_checked(4) {
            Some(([_, _, _, b':'], text)) => Reply::Verbatim(lossy(text)),
            _ => return Err(ProtocolError::InvalidReply("verbatim text without its format")),
        },
        Element::Null | Element::Open { .. } => Reply::Null,
    })
}

/// The statuses known to be sent by servers of this project, and by Redis for the same commands.
const STATUSES: &[&str] = &[
    "OK",
    "PONG",
    "RESET",
    "QUEUED",
    "string",
    "none",
    "list",
    "set",
    "zset",
    "hash",
    "stream",
    "Background saving started",
];

fn status_reply(text: &[u8]) -> Reply {
    match STATUSES.iter().find(|known| known.as_bytes() == text) {
        Some(known) => Reply::Status(known),
        None => Reply::Bulk(text.to_vec()),
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn pair_up(items: Vec<Reply>) -> Vec<(Reply, Reply)> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pairs.push((key, value));
    }
    pairs
}
