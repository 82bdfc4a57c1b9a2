//! Inline commands: a line split into words by the rules of Redis' `sdssplitargs`.

use std::ops::Range;

use super::ProtocolError;

/// The words of a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// They stand in the line as they are; the ranges have been pushed.
    Ranges,
    /// Some were quoted, so all of them were copied. At least one.
    Owned(Vec<Vec<u8>>),
}

/// Splits a line, given without its LF. Ranges are relative to the line.
pub(crate) fn split_line(
    line: &[u8],
    ranges: &mut Vec<Range<usize>>,
) -> Result<Line, ProtocolError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Redis handles the line as a C string.
    let end = line.iter().position(|&b| b == 0).unwrap_or(line.len());
    let line = line.get(..end).unwrap_or_default();
    if line.iter().any(|b| matches!(b, b'"' | b'\'')) {
        split_quoted(line).map(Line::Owned)
    } else {
        split_plain(line, ranges);
        Ok(Line::Ranges)
    }
}

fn split_plain(line: &[u8], ranges: &mut Vec<Range<usize>>) {
    let mut start = None;
    for (i, &byte) in line.iter().enumerate() {
        match start {
            None if !is_space(byte) => start = Some(i),
            Some(from) if ends_word(byte) => {
                ranges.push(from..i);
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        ranges.push(from..line.len());
    }
}

/// What a quote in front of the rest of a word means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    None,
    Single,
    Double,
}

fn split_quoted(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut words = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(|&b| is_space(b)).is_some() {}
        if bytes.peek().is_none() {
            return Ok(words);
        }
        let mut word = Vec::new();
        let mut quote = Quote::None;
        loop {
            let Some(byte) = bytes.next() else {
                if quote == Quote::None {
                    break;
                }
                return Err(ProtocolError::UnbalancedQuotes);
            };
            match (quote, byte) {
                (Quote::None, b'"') => quote = Quote::Double,
                (Quote::None, b'\'') => quote = Quote::Single,
                (Quote::None, _) if ends_word(byte) => break,
                (Quote::Double, b'\\') => {
                    let Some(escaped) = bytes.next() else {
                        return Err(ProtocolError::UnbalancedQuotes);
                    };
                    unescape(escaped, &mut bytes, &mut word);
                }
                (Quote::Single, b'\\') if bytes.next_if_eq(&b'\'').is_some() => word.push(b'\''),
                (Quote::Double, b'"') | (Quote::Single, b'\'') => {
                    // A closing quote ends the word.
                    if bytes.next().is_some_and(|next| !is_space(next)) {
                        return Err(ProtocolError::UnbalancedQuotes);
                    }
                    break;
                }
                _ => word.push(byte),
            }
        }
        words.push(word);
    }
}

/// What follows a backslash between double quotes.
fn unescape(escaped: u8, bytes: &mut (impl Iterator<Item = u8> + Clone), word: &mut Vec<u8>) {
    if escaped == b'x' {
        let mut ahead = bytes.clone();
        if let (Some(high), Some(low)) =
            (ahead.next().and_then(hex_digit), ahead.next().and_then(hex_digit))
        {
            word.push(high << 4 | low);
            *bytes = ahead;
            return;
        }
    }
    word.push(match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    });
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// C's `isspace`: what may stand before a word and after a closing quote.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// What ends a word that is not quoted; form feeds and vertical tabs do not.
const fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
