//! What the server says to each request, and what follows from it.

use coracle_net::resp::{ProtocolError, ReplyKind, Skipped, skip_reply};

use crate::driver::Driver;
use crate::fleet::Request;
use crate::layout::parse_moved;
use crate::options::Command;
use crate::request::{Op, read_stamp};

/// A request is sent elsewhere, or once more after "not now", this often at most.
const REDIRECTS_MAX: u8 = 32;

/// Later redirections wait: two endpoints that name each other are between two leaders.
const REDIRECTS_AT_ONCE: u8 = 2;
const REDIRECT_DELAY_NS: u64 = 20_000_000;

/// The code of a refusal that says "not now": the request is sent again after the same delay.
const NOT_NOW: &str = "TRYAGAIN";

/// Codes of errors that say that the command certainly did not happen. All others may stand for
/// anything.
const REFUSALS: &[&str] = &[
    "ASK",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGTYPE",
];

/// A connection's replies cannot be matched with its requests any more.
#[derive(Debug)]
pub(crate) enum Broken {
    Protocol(ProtocolError),
    Unasked,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Protocol(error) => write!(f, "{error}"),
            Self::Unasked => f.write_str("a reply without a request"),
        }
    }
}

impl Driver<'_> {
    /// Bytes arrived on a connection.
    pub(crate) fn received(
        &mut self,
        index: usize,
        data: &[u8],
        now_ns: u64,
    ) -> Result<(), Broken> {
        let conn = &mut self.fleet.conns[index];
        if conn.partial.is_empty() {
            let (consumed, needed) = self.consume(index, data, now_ns)?;
            let conn = &mut self.fleet.conns[index];
            conn.partial.extend_from_slice(&data[consumed..]);
            conn.partial_min = data.len() - consumed + needed;
            return Ok(());
        }
        conn.partial.extend_from_slice(data);
        if conn.partial.len() < conn.partial_min {
            return Ok(());
        }
        let mut partial = std::mem::take(&mut conn.partial);
        let (consumed, needed) = self.consume(index, &partial, now_ns)?;
        partial.drain(..consumed);
        let conn = &mut self.fleet.conns[index];
        conn.partial_min = partial.len() + needed;
        conn.partial = partial;
        Ok(())
    }

    /// Handles every complete reply: how many bytes that took, and how many the next one lacks.
    fn consume(
        &mut self,
        index: usize,
        data: &[u8],
        now_ns: u64,
    ) -> Result<(usize, usize), Broken> {
        let mut at = 0;
        while at < data.len() {
            match skip_reply(&data[at..]).map_err(Broken::Protocol)? {
                Skipped::Complete { kind, consumed } => {
                    let request = self.fleet.pop(index).ok_or(Broken::Unasked)?;
                    self.reply(index, request, kind, now_ns);
                    at += consumed;
                }
                Skipped::Incomplete { needed_bytes } => return Ok((at, needed_bytes)),
            }
        }
        Ok((at, 0))
    }

    fn reply(&mut self, index: usize, request: Request, kind: ReplyKind<'_>, now_ns: u64) {
        let command = self.options.command;
        let good = match (request.op, kind) {
            (_, ReplyKind::Error(text)) => {
                let text = String::from_utf8_lossy(text);
                self.error(index, request, &text, now_ns);
                return;
            }
            (Op::Read, ReplyKind::Value(_) | ReplyKind::Null) => true,
            (Op::Write, ReplyKind::Status(text)) => text == b"OK",
            (Op::Write, ReplyKind::Integer(_)) => {
                matches!(command, Command::Incr | Command::Append)
            }
            _ => false,
        };
        if !good {
            self.fail(request, "unexpected reply", &format!("{:?}: {kind:?}", request.op), false);
            return;
        }
        self.meter.answered(request.op, request.intended_ns, request.sent_ns, now_ns);
        if kind == ReplyKind::Null {
            self.meter.found_nothing(request.intended_ns);
        }
        if let Some(history) = &mut self.history {
            history.answered(&request, &kind, now_ns);
        }
        if let Some(ledger) = &mut self.ledger {
            match request.op {
                Op::Write => ledger.acked(request.key, request.sequence),
                Op::Read => {
                    let found = match kind {
                        ReplyKind::Value(value) => read_stamp(value).map_or(0, |(_, found)| found),
                        _ => 0,
                    };
                    if !ledger.may_read(request.key, request.sequence, found) {
                        self.meter.stale += 1;
                    }
                }
            }
        }
    }

    fn error(&mut self, index: usize, mut request: Request, text: &str, now_ns: u64) {
        let code = text.split(' ').next().unwrap_or_default();
        if self.fleet.is_cluster() && matches!(code, "MOVED" | "CLUSTERDOWN" | "TRYAGAIN") {
            self.wish_refresh();
        }
        if code == NOT_NOW && request.redirects < REDIRECTS_MAX {
            request.redirects += 1;
            self.meter.retried(NOT_NOW, request.intended_ns);
            self.delayed.push_back((now_ns + REDIRECT_DELAY_NS, request));
            return;
        }
        let target = &self.fleet.targets[self.fleet.conns[index].target];
        let asked = target.addrs.first().copied();
        let moved = match asked {
            Some(asked) if self.fleet.is_cluster() => parse_moved(text, asked.ip()),
            _ => None,
        };
        let Some((slot, owner)) = moved else {
            self.fail(request, code, text, REFUSALS.contains(&code));
            return;
        };
        if request.redirects >= REDIRECTS_MAX {
            self.fail(request, "redirected too often", text, true);
            return;
        }
        request.redirects += 1;
        self.meter.redirected(request.intended_ns);
        self.fleet.moved(slot, owner, now_ns);
        if request.redirects > REDIRECTS_AT_ONCE {
            self.delayed.push_back((now_ns + REDIRECT_DELAY_NS, request));
        } else {
            self.fleet.enqueue(request, &mut self.encoder);
        }
    }
}
