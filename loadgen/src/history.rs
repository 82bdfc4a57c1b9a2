//! What every request asked and was told, and when: for a check of linearizability.
//!
//! One line of JSON per operation, in the order in which they ended:
//!
//! ```text
//! {"client":1,"op":"set","key":"key:7","arg":"v7","result":"OK","call_ns":12,"return_ns":34}
//! {"client":2,"op":"get","key":"key:7","result":null,"call_ns":40,"return_ns":51}
//! {"client":1,"op":"incr","key":"key:7:n","arg":1,"result":null,"call_ns":41,"return_ns":null}
//! ```
//!
//! A client is a connection; its operations overlap if it is pipelined. `return_ns: null` says
//! that the outcome is unknown: no answer in time, a lost connection, `-UNCERTAIN`, or an error
//! that does not say that nothing happened. What certainly did not happen has no line. In keys
//! and values, bytes that are not printable ASCII, and `%`, are written as `%` and two
//! hexadecimal digits. The simulator's checker (`coracle-sim`) reads this format; `testdata` has an
//! example that the tests of both programs use.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use coracle_net::resp::ReplyKind;
use serde::Serialize;

use crate::fleet::Request;
use crate::options::{Command, Options};
use crate::request::{Encoder, Op};

/// Writes the operations of one run.
#[derive(Debug)]
pub(crate) struct History {
    path: PathBuf,
    /// The file while it is not complete: a part of a history may look wrong though all was right.
    partial: PathBuf,
    out: BufWriter<File>,
    failure: Option<io::Error>,
    encoder: Encoder,
    command: Command,
}

#[derive(Serialize)]
struct Line<'a> {
    client: u32,
    op: &'a str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    arg: Option<Value>,
    result: Option<Value>,
    call_ns: u64,
    return_ns: Option<u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Number(i64),
}

impl History {
    pub(crate) fn create(path: &Path, options: &Options) -> anyhow::Result<Self> {
        let mut partial = OsString::from(path);
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            out: BufWriter::with_capacity(1 << 16, file),
            failure: None,
            encoder: Encoder::new(options),
            command: options.command,
        })
    }

    /// The server answered, and not with an error.
    pub(crate) fn answered(&mut self, request: &Request, reply: &ReplyKind<'_>, now_ns: u64) {
        let result = match *reply {
            ReplyKind::Status(text) | ReplyKind::Value(text) => Some(Value::Text(escape(text))),
            ReplyKind::Integer(number) => Some(Value::Number(number)),
            _ => None,
        };
        self.write(request, result, Some(now_ns));
    }

    /// It cannot be known whether the request took effect, or will.
    pub(crate) fn unknown(&mut self, request: &Request) {
        self.write(request, None, None);
    }

    /// Hands everything to the operating system; fails if any line could not be written.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        let result = self.failure.take().map_or_else(|| self.out.flush(), Err);
        result.with_context(|| format!("cannot write {}", self.partial.display()))
    }

    /// The run is over: gives the file its name.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        std::fs::rename(&self.partial, &self.path)
            .with_context(|| format!("cannot rename {} to its name", self.partial.display()))
    }

    fn write(&mut self, request: &Request, result: Option<Value>, return_ns: Option<u64>) {
        self.encoder.set_key(request.key);
        let value = || {
            let value = self.encoder.value(request.key, request.sequence);
            Some(Value::Text(escape(&value)))
        };
        let (op, arg) = match (request.op, self.command) {
            (Op::Read, _) => ("get", None),
            (Op::Write, Command::Set | Command::Get) => ("set", value()),
            (Op::Write, Command::Append) => ("append", value()),
            (Op::Write, Command::Incr) => ("incr", Some(Value::Number(1))),
        };
        let line = Line {
            client: request.conn,
            op,
            key: escape(self.encoder.key()),
            arg,
            result,
            call_ns: request.sent_ns,
            return_ns,
        };
        let written = serde_json::to_writer(&mut self.out, &line).map_err(io::Error::from);
        if let Err(failure) = written.and_then(|()| self.out.write_all(b"\n")) {
            self.failure.get_or_insert(failure);
        }
    }
}

/// Printable ASCII as it is, everything else and `%` as `%` and two digits.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
                text.extend(['%', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => text.push(char::from(byte)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op: Op, sequence: u64, sent_ns: u64) -> Request {
        Request { key: 7, sequence, intended_ns: 1, sent_ns, op, redirects: 0, conn: 3 }
    }

    /// The golden file is also read by the checker's tests.
    #[test]
    fn lines_are_golden() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("history");
        let mut text = String::new();
        for command in [Command::Set, Command::Append, Command::Incr] {
            let options = Options {
                keys: 10,
                value_size: 34,
                key_prefix: "k%\n\"".to_owned(),
                command,
                ..Options::default()
            };
            let mut history = History::create(&path, &options).expect("created");
            let answer = match command {
                Command::Set => ReplyKind::Status(b"OK"),
                Command::Append => ReplyKind::Integer(34),
                _ => ReplyKind::Integer(1),
            };
            history.answered(&request(Op::Read, 0, 5), &ReplyKind::Null, 9);
            history.answered(&request(Op::Write, 1, 10), &answer, 19);
            let value = match command {
                Command::Incr => b"1".to_vec(),
                _ => history.encoder.value(7, 1),
            };
            history.answered(&request(Op::Read, 1, 20), &ReplyKind::Value(&value), 29);
            history.unknown(&request(Op::Write, 2, 30));
            history.unknown(&request(Op::Read, 1, 40));
            assert!(!path.exists(), "a part of a history does not look like a whole one");
            history.finish().expect("finished");
            text += &std::fs::read_to_string(&path).expect("text");
            std::fs::remove_file(&path).expect("removed");
        }
        assert_eq!(text, include_str!("../testdata/history.ndjson"));
    }

    #[test]
    fn any_bytes_become_printable() {
        assert_eq!(escape(b"a ~%\x00\x1f\x7f\x80\xff\""), "a ~%25%00%1f%7f%80%ff\"");
    }
}
