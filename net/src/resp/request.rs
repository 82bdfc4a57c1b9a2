//! Requests: what clients send to a server.

use std::ops::Range;

use super::ProtocolError;
use super::inline::{Line, split_line};
use super::number::{Length, read_length};

/// What one command may cost before it is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most arguments, the command's name among them.
    pub args_max: usize,
    /// Longest single argument.
    pub bulk_bytes_max: usize,
    /// Longest line of an inline command, without its LF.
    pub inline_bytes_max: usize,
    /// Longest command with all its framing.
    pub command_bytes_max: usize,
    /// Whether these are limits for connections that have not authenticated; only the error
    /// texts depend on it.
    pub before_auth: bool,
}

impl Limits {
    /// For authenticated connections. Arguments may be longer than the longest value (8 MiB), so
    /// that a value that is too long gets an answer of its own instead of a closed connection.
    pub const DEFAULT: Self = Self {
        args_max: 1024 * 1024,
        bulk_bytes_max: 16 * 1024 * 1024,
        inline_bytes_max: 64 * 1024,
        command_bytes_max: 64 * 1024 * 1024,
        before_auth: false,
    };

    /// For connections that still have to authenticate: enough for `HELLO` and `AUTH`.
    pub const BEFORE_AUTH: Self = Self {
        args_max: 10,
        bulk_bytes_max: 16 * 1024,
        inline_bytes_max: 64 * 1024,
        command_bytes_max: 192 * 1024,
        before_auth: true,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What [`RequestParser::parse`] found at the beginning of its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A command of at least one argument; `args` holds the ranges.
    Complete {
        /// Bytes of the input it took.
        consumed: usize,
    },
    /// An inline command with quotes, whose arguments are not plain ranges of the input.
    Quoted {
        /// Bytes of the input it took.
        consumed: usize,
        /// Its arguments, at least one.
        args: Vec<Vec<u8>>,
    },
    /// An empty line or an empty array: nothing to execute, nothing to answer.
    Empty {
        /// Bytes of the input it took.
        consumed: usize,
    },
    /// More bytes are needed.
    Incomplete {
        /// At least this many.
        needed_bytes: usize,
    },
}

/// Where parsing goes on when more input is there. Positions count from the command's first byte.
#[derive(Debug)]
enum State {
    Start,
    /// Waiting for the line end of an inline command; everything before `scanned` has none.
    Inline {
        scanned: usize,
    },
    /// Waiting for the length line of the next of `left` arguments, at `at`.
    Head {
        at: usize,
        left: usize,
    },
    /// Waiting for the bytes of an argument and their line end.
    Body {
        start: usize,
        len: usize,
        left: usize,
    },
    Failed(ProtocolError),
}

/// Incremental parser of one connection's requests.
///
/// Each call gets all unconsumed input of the connection, beginning at the same command as the
/// call before until that one was consumed. The parser remembers how far it came: growing input
/// is not scanned again, and between commands it holds no memory worth mentioning.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    state: State,
    /// Arguments of a command that is not complete yet; empty between commands.
    partial: Vec<Range<usize>>,
}

impl RequestParser {
    /// A parser at the beginning of a connection.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, state: State::Start, partial: Vec::new() }
    }

    /// Changes the limits, from the next argument on: for a connection that has authenticated.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Parses the command at the beginning of `input`. `args` is overwritten; one vector may
    /// serve all connections. After [`Parsed::Complete`] it holds the arguments as ranges of
    /// `input`, otherwise nothing.
    ///
    /// An error stays: all later calls return it again.
    pub fn parse(
        &mut self,
        input: &[u8],
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        args.clear();
        if !self.partial.is_empty() {
            std::mem::swap(args, &mut self.partial);
        }
        let parsed = match &self.state {
            State::Failed(error) => Err(error.clone()),
            State::Start => match input.first() {
                None => Ok(Parsed::Incomplete { needed_bytes: 1 }),
                Some(b'*') => self.parse_count(input, args),
                Some(_) => self.parse_inline(input, 0, args),
            },
            &State::Inline { scanned } => self.parse_inline(input, scanned, args),
            &State::Head { at, left } => self.parse_args(input, at, left, args),
            &State::Body { start, len, left } => self.parse_body(input, start, len, left, args),
        };
        match &parsed {
            Ok(Parsed::Complete { .. }) => self.state = State::Start,
            Ok(Parsed::Quoted { .. } | Parsed::Empty { .. }) => {
                self.state = State::Start;
                args.clear();
            }
            Ok(Parsed::Incomplete { .. }) => {
                if !args.is_empty() {
                    std::mem::swap(args, &mut self.partial);
                    args.clear();
                }
            }
            Err(error) => {
                self.state = State::Failed(error.clone());
                args.clear();
            }
        }
        parsed
    }

    /// `*3\r\n`: the number of arguments.
    fn parse_count(
        &mut self,
        input: &[u8],
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        let (value, next) = match read_length(input, 1) {
            Length::Number { value, next } => (value, next),
            Length::Incomplete => return Ok(Parsed::Incomplete { needed_bytes: 1 }),
            Length::Invalid => return Err(ProtocolError::InvalidMultibulkLength),
        };
        let Ok(count @ 1..) = usize::try_from(value) else {
            // Redis ignores empty and negative arrays.
            return Ok(Parsed::Empty { consumed: next });
        };
        if count > self.limits.args_max {
            return Err(self.too_many_args());
        }
        self.parse_args(input, next, count, args)
    }

    /// `$3\r\nSET\r\n` for each of the `left` arguments that follow at `at`.
    fn parse_args(
        &mut self,
        input: &[u8],
        mut at: usize,
        mut left: usize,
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        while left > 0 {
            let (len, start) = match self.parse_head(input, at)? {
                Some(head) => head,
                None => {
                    self.state = State::Head { at, left };
                    return Ok(Parsed::Incomplete { needed_bytes: 1 });
                }
            };
            match end_of_bulk(input, start, len)? {
                Some(next) => {
                    args.push(start..start + len);
                    at = next;
                    left -= 1;
                }
                None => {
                    self.state = State::Body { start, len, left };
                    return Ok(missing(input, start, len));
                }
            }
        }
        Ok(Parsed::Complete { consumed: at })
    }

    /// Goes on with an argument whose length is known.
    fn parse_body(
        &mut self,
        input: &[u8],
        start: usize,
        len: usize,
        left: usize,
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        match end_of_bulk(input, start, len)? {
            Some(next) => {
                args.push(start..start + len);
                self.parse_args(input, next, left - 1, args)
            }
            None => Ok(missing(input, start, len)),
        }
    }

    /// The length line of an argument: its length and where its bytes start.
    fn parse_head(&self, input: &[u8], at: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
        match input.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&got) => return Err(ProtocolError::ExpectedBulk { got }),
        }
        let (value, start) = match read_length(input, at + 1) {
            Length::Number { value, next } => (value, next),
            Length::Incomplete => return Ok(None),
            Length::Invalid => return Err(ProtocolError::InvalidBulkLength),
        };
        let len = usize::try_from(value).map_err(|_| ProtocolError::InvalidBulkLength)?;
        self.check_bulk(len)?;
        // `len` has passed its limit, so the sum cannot overflow.
        let bytes = start + len + 2;
        let limit_bytes = self.limits.command_bytes_max;
        if bytes > limit_bytes {
            return Err(ProtocolError::CommandTooLarge { bytes, limit_bytes });
        }
        Ok(Some((len, start)))
    }

    /// A line of words, as typed into telnet.
    fn parse_inline(
        &mut self,
        input: &[u8],
        scanned: usize,
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        let window = input.len().min(self.limits.inline_bytes_max.saturating_add(1));
        let found = input.get(scanned..window).unwrap_or_default().iter().position(|&b| b == b'\n');
        let Some(found) = found else {
            if window > self.limits.inline_bytes_max {
                return Err(ProtocolError::TooBigInline);
            }
            self.state = State::Inline { scanned: window };
            return Ok(Parsed::Incomplete { needed_bytes: 1 });
        };
        let end = scanned + found;
        let consumed = end + 1;
        let line = input.get(..end).unwrap_or_default();
        match split_line(line, args)? {
            Line::Ranges if args.is_empty() => Ok(Parsed::Empty { consumed }),
            Line::Ranges => {
                self.check_inline(args.len(), args.iter().map(ExactSizeIterator::len))?;
                Ok(Parsed::Complete { consumed })
            }
            Line::Owned(words) => {
                self.check_inline(words.len(), words.iter().map(Vec::len))?;
                Ok(Parsed::Quoted { consumed, args: words })
            }
        }
    }

    fn check_inline(
        &self,
        count: usize,
        mut lens: impl Iterator<Item = usize>,
    ) -> Result<(), ProtocolError> {
        if count > self.limits.args_max {
            return Err(self.too_many_args());
        }
        lens.try_for_each(|len| self.check_bulk(len))
    }

    const fn check_bulk(&self, len: usize) -> Result<(), ProtocolError> {
        if len <= self.limits.bulk_bytes_max {
            return Ok(());
        }
        Err(if self.limits.before_auth {
            ProtocolError::UnauthenticatedBulkLength
        } else {
            ProtocolError::InvalidBulkLength
        })
    }

    const fn too_many_args(&self) -> ProtocolError {
        if self.limits.before_auth {
            ProtocolError::UnauthenticatedMultibulkLength
        } else {
            ProtocolError::InvalidMultibulkLength
        }
    }
}

/// Where the element after a bulk begins, if the bulk and its line end are there.
fn end_of_bulk(input: &[u8], start: usize, len: usize) -> Result<Option<usize>, ProtocolError> {
    let end = start + len;
    match input.get(end) {
        None => return Ok(None),
        Some(b'\r') => {}
        Some(_) => return Err(ProtocolError::MissingLineEnd { len_bytes: len }),
    }
    match input.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some(end + 2)),
        Some(_) => Err(ProtocolError::MissingLineEnd { len_bytes: len }),
    }
}

const fn missing(input: &[u8], start: usize, len: usize) -> Parsed {
    Parsed::Incomplete { needed_bytes: (start + len + 2).saturating_sub(input.len()) }
}
