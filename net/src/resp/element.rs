//! One element of a reply: the piece that [`super::parse_reply`] and [`super::skip_reply`] share.

use super::ProtocolError;
use super::number::{Length, parse_integer, read_length};

/// One element, or the head of an aggregate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Element<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    Double(f64),
    Boolean(bool),
    Verbatim(&'a [u8]),
    /// `len` elements follow.
    Open {
        kind: Aggregate,
        len: usize,
    },
}

/// What the elements after an [`Element::Open`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregate {
    /// An array, or a push: this client asks for none, so it takes one as an answer.
    Array,
    Set,
    /// Keys and values in turn.
    Map,
    /// Keys and values in turn, about the reply that follows; not an element of its own.
    Attribute,
}

/// Outcome of reading one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step<'a> {
    Done {
        element: Element<'a>,
        /// Where the next element begins.
        next: usize,
    },
    Incomplete {
        needed_bytes: usize,
    },
}

/// Longest line of a status, an error or a number.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Longest bulk of a reply, as in Redis.
const BULK_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Most elements of one aggregate: one per argument of the longest command, in pairs.
const ELEMENTS_MAX: usize = 2 * 1024 * 1024;

/// Reads the element at `at`.
pub(crate) fn read_element(input: &[u8], at: usize) -> Result<Step<'_>, ProtocolError> {
    let Some(&kind) = input.get(at) else { return Ok(Step::Incomplete { needed_bytes: 1 }) };
    match kind {
        b'$' => read_bulk(input, at, Element::Bulk),
        b'!' => read_bulk(input, at, Element::Error),
        b'=' => read_bulk(input, at, Element::Verbatim),
        b'*' | b'>' => read_open(input, at, Aggregate::Array),
        b'~' => read_open(input, at, Aggregate::Set),
        b'%' => read_open(input, at, Aggregate::Map),
        b'|' => read_open(input, at, Aggregate::Attribute),
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => read_simple(input, at, kind),
        got => Err(ProtocolError::UnknownType { got }),
    }
}

fn read_simple(input: &[u8], at: usize, kind: u8) -> Result<Step<'_>, ProtocolError> {
    let Some((line, next)) = read_line(input, at + 1)? else {
        return Ok(Step::Incomplete { needed_bytes: 1 });
    };
    let element = match kind {
        b'+' => Some(Element::Status(line)),
        b'-' => Some(Element::Error(line)),
        b':' => parse_integer(line).map(Element::Integer),
        // A number of any size: text, unless it fits.
        b'(' => Some(parse_integer(line).map_or(Element::Bulk(line), Element::Integer)),
        b',' => parse_double(line).map(Element::Double),
        b'#' => match line {
            b"t" => Some(Element::Boolean(true)),
            b"f" => Some(Element::Boolean(false)),
            _ => None,
        },
        _ => line.is_empty().then_some(Element::Null),
    };
    match element {
        Some(element) => Ok(Step::Done { element, next }),
        None => Err(ProtocolError::InvalidReply("invalid simple value in reply")),
    }
}

fn read_bulk<'a>(
    input: &'a [u8],
    at: usize,
    wrap: fn(&'a [u8]) -> Element<'a>,
) -> Result<Step<'a>, ProtocolError> {
    let (value, start) = match read_length(input, at + 1) {
        Length::Number { value, next } => (value, next),
        Length::Incomplete => return Ok(Step::Incomplete { needed_bytes: 1 }),
        Length::Invalid => return Err(ProtocolError::InvalidBulkLength),
    };
    if value == -1 {
        return Ok(Step::Done { element: Element::Null, next: start });
    }
    let len = usize::try_from(value).map_err(|_| ProtocolError::InvalidBulkLength)?;
    if len > BULK_BYTES_MAX {
        return Err(ProtocolError::InvalidBulkLength);
    }
    let next = start + len + 2;
    match input.get(start..next) {
        Some(whole) => match whole.strip_suffix(b"\r\n") {
            Some(bytes) => Ok(Step::Done { element: wrap(bytes), next }),
            None => Err(ProtocolError::MissingLineEnd { len_bytes: len }),
        },
        None => Ok(Step::Incomplete { needed_bytes: next.saturating_sub(input.len()) }),
    }
}

fn read_open(input: &[u8], at: usize, kind: Aggregate) -> Result<Step<'_>, ProtocolError> {
    let (value, next) = match read_length(input, at + 1) {
        Length::Number { value, next } => (value, next),
        Length::Incomplete => return Ok(Step::Incomplete { needed_bytes: 1 }),
        Length::Invalid => return Err(ProtocolError::InvalidMultibulkLength),
    };
    if value == -1 && kind == Aggregate::Array {
        return Ok(Step::Done { element: Element::Null, next });
    }
    let count = usize::try_from(value).map_err(|_| ProtocolError::InvalidMultibulkLength)?;
    if count > ELEMENTS_MAX {
        return Err(ProtocolError::InvalidMultibulkLength);
    }
    let len = match kind {
        Aggregate::Array | Aggregate::Set => count,
        Aggregate::Map | Aggregate::Attribute => 2 * count,
    };
    Ok(Step::Done { element: Element::Open { kind, len }, next })
}

/// The line at `at` without its end, and where the next one begins.
fn read_line(input: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, ProtocolError> {
    let rest = input.get(at..).unwrap_or_default();
    match rest.iter().take(LINE_BYTES_MAX + 1).position(|&b| b == b'\r') {
        Some(len) => match rest.get(len + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some((rest.get(..len).unwrap_or_default(), at + len + 2))),
            Some(_) => Err(ProtocolError::InvalidReply("stray carriage return in reply")),
        },
        None if rest.len() > LINE_BYTES_MAX => {
            Err(ProtocolError::InvalidReply("reply line without an end"))
        }
        None => Ok(None),
    }
}

fn parse_double(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
