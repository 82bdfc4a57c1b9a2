//! Looking at replies without making values of them, for load generators.

use super::element::{Aggregate, Element, Step, read_element};
use super::{ProtocolError, REPLY_DEPTH_MAX};

/// What kind of reply was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind<'a> {
    /// `+OK` and the like.
    Status(&'a [u8]),
    /// An error, beginning with its code.
    Error(&'a [u8]),
    /// No value.
    Null,
    /// A bulk or verbatim text: its bytes.
    Value(&'a [u8]),
    /// A number.
    Integer(i64),
    /// An array, a set, a map, a double, a truth value.
    Other,
}

/// Outcome of [`skip_reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped<'a> {
    /// The whole reply is there.
    Complete {
        /// What it is.
        kind: ReplyKind<'a>,
        /// Bytes of the input it took.
        consumed: usize,
    },
    /// More bytes are needed.
    Incomplete {
        /// At least this many.
        needed_bytes: usize,
    },
}

/// Reads over the reply at the beginning of `input`. Allocates nothing and remembers nothing: an
/// incomplete reply is read again from its beginning, so wait for `needed_bytes` first.
pub fn skip_reply(input: &[u8]) -> Result<Skipped<'_>, ProtocolError> {
    let mut at = 0;
    let mut open = OpenAggregates::default();
    let mut kind = ReplyKind::Other;
    loop {
        let (element, next) = match read_element(input, at)? {
            Step::Done { element, next } => (element, next),
            Step::Incomplete { needed_bytes } => return Ok(Skipped::Incomplete { needed_bytes }),
        };
        at = next;
        if open.depth == 0 {
            kind = kind_of(element);
        }
        let whole = match element {
            Element::Open { kind, len } => open.push(kind, len)?,
            _ => open.close(true),
        };
        if whole {
            return Ok(Skipped::Complete { kind, consumed: at });
        }
    }
}

fn kind_of(element: Element<'_>) -> ReplyKind<'_> {
    match element {
        Element::Status(text) => ReplyKind::Status(text),
        Element::Error(text) => ReplyKind::Error(text),
        Element::Integer(value) => ReplyKind::Integer(value),
        Element::Bulk(bytes) => ReplyKind::Value(bytes),
        // Behind the format: `txt:`.
        Element::Verbatim(text) => ReplyKind::Value(text.get(4..).unwrap_or_default()),
        Element::Null => ReplyKind::Null,
        Element::Double(_) | Element::Boolean(_) | Element::Open { .. } => ReplyKind::Other,
    }
}

/// The aggregates around the next element, outermost first.
#[derive(Default)]
struct OpenAggregates {
    /// How many elements each still lacks, and whether it is an attribute.
    left: [(usize, bool); REPLY_DEPTH_MAX],
    depth: usize,
}

impl OpenAggregates {
    fn push(&mut self, kind: Aggregate, len: usize) -> Result<bool, ProtocolError> {
        match self.left.get_mut(self.depth) {
            Some(place) => *place = (len, kind == Aggregate::Attribute),
            None => return Err(ProtocolError::TooDeep { limit: REPLY_DEPTH_MAX }),
        }
        self.depth += 1;
        Ok(self.close(false))
    }

    /// Counts an element, if there was one, and closes what became full. Whether that was the
    /// whole reply.
    fn close(&mut self, mut element: bool) -> bool {
        loop {
            let Some(top) = self.depth.checked_sub(1) else { return element };
            let Some((left, attribute)) = self.left.get_mut(top) else { return element };
            *left = left.saturating_sub(usize::from(element));
            if *left > 0 {
                return false;
            }
            // After an attribute the reply that it is about comes, in the same place.
            element = !*attribute;
            self.depth = top;
            if !element {
                return false;
            }
        }
    }
}
