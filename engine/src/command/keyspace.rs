//! From a client's arguments to commands on the whole keyspace.

use super::decode::{NOT_AN_INTEGER, SYNTAX, parse_integer};
use super::encoding::{Header, Op, scan};
use super::{Command, CommandId, Spec};
use crate::scan::Cursor;
use crate::{Reply, SlotId, WallMillis};

/// Longest pattern in bytes.
const PATTERN_BYTES_MAX: usize = 1024;
/// Keys that a scan looks at in one call unless it says otherwise (Redis, "SCAN").
const SCAN_COUNT: i64 = 10;

/// Decodes a command of [`super::Scope::Keyspace`] whose number of arguments fits.
pub(super) fn decode(spec: &Spec, args: &[&[u8]], at: WallMillis) -> Result<Command, Reply> {
    let first = SlotId::new(0).expect("slot 0 exists");
    let header = |op| Header::new(op, first, at);
    match spec.id {
        CommandId::DbSize => Ok(header(Op::Size).encode(&[])),
        CommandId::RandomKey => Ok(header(Op::RandomKey).encode(&[&[0; 8]])),
        CommandId::Keys => {
            check_pattern(args[1])?;
            Ok(header(Op::Keys).encode(&args[1..]))
        }
        CommandId::FlushAll | CommandId::FlushDb => match &args[1..] {
            [] => Ok(header(Op::Flush).encode(&[])),
            // The tables are dropped behind the answer either way.
            [word] if word.eq_ignore_ascii_case(b"async") || word.eq_ignore_ascii_case(b"sync") => {
                Ok(header(Op::Flush).encode(&[]))
            }
            _ => Err(Reply::error(SYNTAX)),
        },
        _ => decode_scan(args, at),
    }
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`.
fn decode_scan(args: &[&[u8]], at: WallMillis) -> Result<Command, Reply> {
    let cursor = Cursor::parse(args[1]).ok_or_else(|| Reply::error("ERR invalid cursor"))?;
    let (mut count, mut pattern, mut flags) = (SCAN_COUNT, None, 0);
    let mut options = args[2..].iter();
    while let Some(option) = options.next() {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        let Some(value) = options.next() else { return Err(Reply::error(SYNTAX)) };
        if is(b"match") {
            check_pattern(value)?;
            pattern = Some(*value);
        } else if is(b"count") {
            count = parse_integer(value).ok_or_else(|| Reply::error(NOT_AN_INTEGER))?;
            if count < 1 {
                return Err(Reply::error(SYNTAX));
            }
        } else if is(b"type") {
            let strings = value.eq_ignore_ascii_case(b"string");
            flags = if strings { 0 } else { scan::NOTHING };
        } else {
            return Err(Reply::error(SYNTAX));
        }
    }
    let header = Header { flags, ..Header::new(Op::Scan, cursor.slot, at) };
    let (position, count) = (cursor.position.to_le_bytes(), count.to_le_bytes());
    Ok(match pattern {
        Some(pattern) if pattern != b"*" => header.encode(&[&position, &count, pattern]),
        _ => header.encode(&[&position, &count]),
    })
}

fn check_pattern(pattern: &[u8]) -> Result<(), Reply> {
    if pattern.len() <= PATTERN_BYTES_MAX {
        return Ok(());
    }
    Err(Reply::Error(format!("ERR pattern is longer than {PATTERN_BYTES_MAX} bytes")))
}
