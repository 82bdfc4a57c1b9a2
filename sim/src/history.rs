//! Histories: what clients asked, what they were told, and when.
//!
//! In and out: newline-delimited JSON, one operation per line, in any order:
//!
//! ```text
//! {"client":1,"op":"set","key":"k1","arg":"v7","result":"OK","call_ns":12,"return_ns":34}
//! {"client":2,"op":"get","key":"k1","result":"v7","call_ns":40,"return_ns":51}
//! {"client":2,"op":"get","key":"k2","result":null,"call_ns":53,"return_ns":60}
//! {"client":1,"op":"incr","key":"n","arg":1,"result":null,"call_ns":41,"return_ns":null}
//! ```
//!
//! Times are nanoseconds of one monotonic clock for all clients. `return_ns: null` says that the
//! outcome is unknown; then `result` is null as well. With a return time, `result: null` is the
//! answer "no such key".
//!
//! | op | arg | result |
//! |---|---|---|
//! | `set` | string | `"OK"` |
//! | `get`, `getdel` | | string or null |
//! | `del` | | 0 or 1 |
//! | `clear` | | `"OK"`: the key is gone, and nobody says whether it was there |
//! | `append` | string | length of the new value |
//! | `incr` | the number added | the new number |
//! | `setnx` | string | 0 or 1 |
//! | `getset` | string | string or null |
//!
//! Keys and values are any bytes. Those from space to `~`, except `%`, stand for themselves; every
//! other byte, and `%`, is written as `%` and two hexadecimal digits. JSON's own escapes apply on
//! top of that. A line with `"refused":true` is an operation that certainly was not executed.
//!
//! Not here: what a history must fulfil (`checker`).

mod text;

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use text::{escape, unescape};

/// Longest line: two values of 8 MiB with every byte escaped, a key, and the rest.
pub const LINE_BYTES_MAX: usize = 52 << 20;

/// Bytes of a key or a value, shared by everything that mentions them.
pub type Bytes = Arc<[u8]>;

/// One operation of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Who asked. Only for people: the operations of one client may overlap.
    pub client: u64,
    /// On which key.
    pub key: Bytes,
    /// What was asked.
    pub kind: OpKind,
    /// What came of it.
    pub outcome: Outcome,
    /// When the request was sent, or earlier.
    pub call_ns: u64,
    /// When the answer had arrived, or later; `None` if there was none.
    pub return_ns: Option<u64>,
}

/// What an operation does, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// `SET key value`.
    Set(Bytes),
    /// `GET key`.
    Get,
    /// `DEL key`.
    Del,
    /// `APPEND key value`.
    Append(Bytes),
    /// `INCRBY key by`.
    Incr(i64),
    /// `SETNX key value`.
    SetNx(Bytes),
    /// `GETSET key value`.
    GetSet(Bytes),
    /// `GETDEL key`.
    GetDel,
    /// The key's part of a `FLUSHALL`.
    Clear,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened between call and return, and this was the answer.
    Reply(Reply),
    /// It may take effect at any time after its call, or never: the connection was lost, the time
    /// was up, or the answer was `-UNCERTAIN`.
    Unknown,
    /// It certainly did not and will not take effect.
    Refused,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// `+OK`.
    Ok,
    /// A value, or that there is none.
    Value(Option<Bytes>),
    /// A number.
    Integer(i64),
}

/// Why a history cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum HistoryError {
    /// The reader failed.
    Io(io::Error),
    /// A line is not an operation.
    Line {
        /// Its number, from 1.
        number: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl std::fmt::Display for HistoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot read the history: {error}"),
            Self::Line { number, what } => write!(f, "line {number} of the history: {what}"),
        }
    }
}

impl std::error::Error for HistoryError {}

/// A line as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    client: u64,
    op: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arg: Option<Value>,
    result: Value,
    call_ns: u64,
    // Present even when null: a line without it is damaged, not unknown.
    #[serde(deserialize_with = "Option::deserialize")]
    return_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    refused: bool,
}

impl Op {
    /// The line of this operation, without its end.
    ///
    /// # Panics
    /// If outcome and return time contradict each other.
    pub fn to_line(&self) -> String {
        match self.outcome {
            Outcome::Reply(_) => assert!(self.return_ns.is_some(), "an answer without its time"),
            Outcome::Unknown => assert!(self.return_ns.is_none(), "no answer, but its time"),
            Outcome::Refused => {}
        }
        let (op, arg) = match &self.kind {
            OpKind::Set(value) => ("set", Some(text(value))),
            OpKind::Get => ("get", None),
            OpKind::Del => ("del", None),
            OpKind::Append(value) => ("append", Some(text(value))),
            OpKind::Incr(by) => ("incr", Some(Value::from(*by))),
            OpKind::SetNx(value) => ("setnx", Some(text(value))),
            OpKind::GetSet(value) => ("getset", Some(text(value))),
            OpKind::GetDel => ("getdel", None),
            OpKind::Clear => ("clear", None),
        };
        let result = match &self.outcome {
            Outcome::Reply(Reply::Ok) => Value::from("OK"),
            Outcome::Reply(Reply::Value(Some(value))) => text(value),
            Outcome::Reply(Reply::Integer(number)) => Value::from(*number),
            Outcome::Reply(Reply::Value(None)) | Outcome::Unknown | Outcome::Refused => Value::Null,
        };
        let line = Line {
            client: self.client,
            op: op.to_owned(),
            key: escape(&self.key),
            arg,
            result,
            call_ns: self.call_ns,
            return_ns: self.return_ns,
            refused: self.outcome == Outcome::Refused,
        };
        serde_json::to_string(&line).expect("a line has only strings and numbers")
    }

    /// The operation of a line.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let kind = kind(&line.op, line.arg)?;
        let outcome = match (line.return_ns, line.refused) {
            (_, true) if line.result.is_null() => Outcome::Refused,
            (_, true) => return Err("it is refused, but has a result".to_owned()),
            (None, false) if line.result.is_null() => Outcome::Unknown,
            (None, false) => return Err("it has a result, but no return_ns".to_owned()),
            (Some(_), false) => Outcome::Reply(reply(&kind, line.result)?),
        };
        if let Some(return_ns) = line.return_ns
            && return_ns < line.call_ns
        {
            let call_ns = line.call_ns;
            return Err(format!("it returned at {return_ns} ns, before its call at {call_ns} ns"));
        }
        Ok(Self {
            client: line.client,
            key: bytes("key", &line.key)?,
            kind,
            outcome,
            call_ns: line.call_ns,
            return_ns: line.return_ns,
        })
    }
}

impl OpKind {
    /// Whether an answer is of the type that this operation has.
    pub fn allows(&self, reply: &Reply) -> bool {
        match self {
            Self::Set(_) | Self::Clear => *reply == Reply::Ok,
            Self::Get | Self::GetSet(_) | Self::GetDel => matches!(reply, Reply::Value(_)),
            Self::Del | Self::SetNx(_) => matches!(reply, Reply::Integer(0 | 1)),
            Self::Append(_) => matches!(reply, Reply::Integer(0..)),
            Self::Incr(_) => matches!(reply, Reply::Integer(_)),
        }
    }
}

/// Reads operations one by one; stops after the first error.
///
/// A last line without its end is an error: whoever wrote the history did not finish, and the
/// operations that are missing could make a right history look wrong.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    line_bytes_max: usize,
    failed: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads lines of up to [`LINE_BYTES_MAX`].
    pub fn new(input: R) -> Self {
        Self::with_limit(input, LINE_BYTES_MAX)
    }

    /// Reads lines of up to this many bytes, their end apart.
    pub fn with_limit(input: R, line_bytes_max: usize) -> Self {
        Self { input, line: Vec::new(), number: 0, line_bytes_max, failed: false }
    }

    fn read(&mut self) -> Result<Option<Op>, HistoryError> {
        self.line.clear();
        self.number += 1;
        let limit = self.line_bytes_max as u64 + 1;
        let mut input = Read::take(&mut self.input, limit);
        input.read_until(b'\n', &mut self.line).map_err(HistoryError::Io)?;
        let wrong = |what| Err(HistoryError::Line { number: self.number, what });
        match self.line.pop() {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) if self.line.len() == self.line_bytes_max => {
                return wrong(format!("it is longer than {} bytes", self.line_bytes_max));
            }
            Some(_) => {
                return wrong("it has no end: the recorder of this history did not finish".into());
            }
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) => Op::from_line(line).map(Some).or_else(wrong),
            Err(error) => wrong(format!("it is not UTF-8: {error}")),
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Op, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read();
        self.failed = read.is_err();
        read.transpose()
    }
}

/// Writes one line per operation.
///
/// # Errors
/// Those of the output.
pub fn write<'a>(ops: impl IntoIterator<Item = &'a Op>, mut out: impl Write) -> io::Result<()> {
    ops.into_iter().try_for_each(|op| writeln!(out, "{}", op.to_line()))
}

fn text(bytes: &[u8]) -> Value {
    Value::from(escape(bytes))
}

fn bytes(what: &str, text: &str) -> Result<Bytes, String> {
    unescape(text).map(Bytes::from).map_err(|why| format!("{what}: {why}"))
}

fn kind(op: &str, arg: Option<Value>) -> Result<OpKind, String> {
    let value = || match &arg {
        Some(Value::String(text)) => bytes("arg", text),
        _ => Err(format!("`{op}` needs a string as arg")),
    };
    let kind = match op {
        "set" => OpKind::Set(value()?),
        "append" => OpKind::Append(value()?),
        "setnx" => OpKind::SetNx(value()?),
        "getset" => OpKind::GetSet(value()?),
        "incr" => {
            let by = arg.as_ref().and_then(Value::as_i64);
            OpKind::Incr(by.ok_or("`incr` needs a 64-bit number as arg")?)
        }
        "get" => OpKind::Get,
        "del" => OpKind::Del,
        "getdel" => OpKind::GetDel,
        "clear" => OpKind::Clear,
        _ => return Err(format!("`{op}` is no operation")),
    };
    match (&kind, arg) {
        (OpKind::Get | OpKind::Del | OpKind::GetDel | OpKind::Clear, Some(_)) => {
            Err(format!("`{op}` has no arg"))
        }
        _ => Ok(kind),
    }
}

fn reply(kind: &OpKind, result: Value) -> Result<Reply, String> {
    let reads = matches!(kind, OpKind::Get | OpKind::GetSet(_) | OpKind::GetDel);
    let reply = match &result {
        Value::Null => Some(Reply::Value(None)),
        Value::String(text) if reads => Some(Reply::Value(Some(bytes("result", text)?))),
        Value::String(text) => (text == "OK").then_some(Reply::Ok),
        other => other.as_i64().map(Reply::Integer),
    };
    let fitting = reply.filter(|reply| kind.allows(reply));
    fitting.ok_or_else(|| format!("{result} is no result of this operation"))
}

#[cfg(test)]
mod tests;
