//! From a client's arguments to a [`Command`]: everything that can be refused without looking
//! at the store is refused here, with Redis' own words.

use super::encoding::{HEADER_BYTES, Header, Op, expire, getex, set, ttl};
use super::{Command, CommandId, Scope, Spec, decimal, keyspace, lookup};
use crate::{Reply, SlotId, WallMillis};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;
/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest encoded command in bytes: one value of the largest size, or many that together are
/// hardly more, so that a command always fits in a peer frame.
pub const COMMAND_BYTES_MAX: usize = VALUE_BYTES_MAX + 1024 * 1024;

pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub(crate) const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
pub(crate) const NOT_A_FLOAT: &str = "ERR value is not a valid float";
pub(super) const SYNTAX: &str = "ERR syntax error";

/// Decodes a command on keys. `args[0]` is its name; `at` is the time it arrived.
///
/// The error is the reply to the client. Commands of [`Scope::Node`] are refused: the caller
/// answers those itself.
pub fn decode(args: &[&[u8]], at: WallMillis) -> Result<Command, Reply> {
    let Some(name) = args.first() else { return Err(Reply::error("ERR empty command")) };
    let Some(spec) = lookup(name) else { return Err(unknown_command(args)) };
    decode_spec(spec, args, at)
}

/// [`decode`] for a caller that has looked up `spec` already.
pub fn decode_spec(spec: &Spec, args: &[&[u8]], at: WallMillis) -> Result<Command, Reply> {
    if !spec.accepts(args.len()) {
        return Err(wrong_arity(spec));
    }
    if spec.scope == Scope::Node {
        return Err(Reply::error(format!("ERR '{}' has no keys", spec.name)));
    }
    if spec.scope == Scope::Keyspace {
        return keyspace::decode(spec, args, at);
    }
    check_sizes(spec, args)?;
    let key = args[1];
    let header = |op| Header::new(op, SlotId::of_key(key), at);
    let plain = |op| Ok(header(op).encode(&args[1..]));
    match spec.id {
        CommandId::Get => plain(Op::Get),
        CommandId::Set | CommandId::Put => decode_set(spec, args, header(Op::Set)),
        CommandId::GetSet => Ok(with_flags(header(Op::Set), set::GET).encode(&args[1..])),
        CommandId::SetNx => {
            Ok(with_flags(header(Op::Set), set::NX | set::COUNT).encode(&args[1..]))
        }
        CommandId::SetEx => decode_setex(spec, args, header(Op::Set), 1000),
        CommandId::PSetEx => decode_setex(spec, args, header(Op::Set), 1),
        CommandId::Append => plain(Op::Append),
        CommandId::StrLen => plain(Op::StrLen),
        CommandId::Incr => Ok(header(Op::IncrBy).encode(&[key, &1i64.to_le_bytes()])),
        CommandId::Decr => Ok(header(Op::IncrBy).encode(&[key, &(-1i64).to_le_bytes()])),
        CommandId::IncrBy => {
            let delta = integer(args[2])?;
            Ok(header(Op::IncrBy).encode(&[key, &delta.to_le_bytes()]))
        }
        CommandId::DecrBy => {
            let delta = integer(args[2])?
                .checked_neg()
                .ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
            Ok(header(Op::IncrBy).encode(&[key, &delta.to_le_bytes()]))
        }
        CommandId::IncrByFloat => decimal::Decimal::parse(args[2])
            .map(|_| header(Op::IncrByFloat).encode(&args[1..]))
            .ok_or_else(|| Reply::error(NOT_A_FLOAT)),
        CommandId::MGet => plain(Op::MGet),
        CommandId::MSet | CommandId::MSetNx if args.len().is_multiple_of(2) => {
            Err(wrong_arity(spec))
        }
        CommandId::MSet => plain(Op::MSet),
        CommandId::MSetNx => plain(Op::MSetNx),
        CommandId::GetEx => decode_getex(spec, args, at),
        CommandId::GetRange | CommandId::SubStr => {
            let (start, end) = (integer(args[2])?, integer(args[3])?);
            Ok(header(Op::GetRange).encode(&[key, &start.to_le_bytes(), &end.to_le_bytes()]))
        }
        CommandId::SetRange => decode_setrange(args, header(Op::SetRange)),
        CommandId::GetDel => plain(Op::GetDel),
        CommandId::Del | CommandId::Unlink => plain(Op::Del),
        CommandId::Exists | CommandId::Touch => plain(Op::Exists),
        CommandId::Type => plain(Op::Type),
        CommandId::Expire => decode_expire(spec, args, header(Op::Expire), 1000, true),
        CommandId::PExpire => decode_expire(spec, args, header(Op::Expire), 1, true),
        CommandId::ExpireAt => decode_expire(spec, args, header(Op::Expire), 1000, false),
        CommandId::PExpireAt => decode_expire(spec, args, header(Op::Expire), 1, false),
        CommandId::Ttl => plain(Op::Ttl),
        CommandId::PTtl => Ok(with_flags(header(Op::Ttl), ttl::MILLIS).encode(&[key])),
        CommandId::ExpireTime => Ok(with_flags(header(Op::Ttl), ttl::ABSOLUTE).encode(&[key])),
        CommandId::PExpireTime => {
            Ok(with_flags(header(Op::Ttl), ttl::ABSOLUTE | ttl::MILLIS).encode(&[key]))
        }
        CommandId::Persist => plain(Op::Persist),
        CommandId::Ping
        | CommandId::Echo
        | CommandId::Hello
        | CommandId::Auth
        | CommandId::Quit
        | CommandId::Reset
        | CommandId::Select
        | CommandId::Client
        | CommandId::Command
        | CommandId::Info
        | CommandId::Config
        | CommandId::Cluster
        | CommandId::ReadOnly
        | CommandId::ReadWrite
        | CommandId::Asking
        | CommandId::DbSize
        | CommandId::FlushAll
        | CommandId::FlushDb
        | CommandId::Keys
        | CommandId::RandomKey
        | CommandId::Scan
        | CommandId::Time
        | CommandId::Wait => unreachable!("{} names no key, see above", spec.name),
    }
}

/// `-ERR unknown command …`, with the first arguments (redis `server.c`).
pub fn unknown_command(args: &[&[u8]]) -> Reply {
    const SHOWN_BYTES_MAX: usize = 128;
    let cut = |bytes: &[u8], max: usize| {
        String::from_utf8_lossy(&bytes[..bytes.len().min(max)]).into_owned()
    };
    let name = cut(args.first().copied().unwrap_or_default(), SHOWN_BYTES_MAX);
    let mut shown = String::new();
    for arg in args.iter().skip(1) {
        if shown.len() >= SHOWN_BYTES_MAX {
            break;
        }
        let rest = SHOWN_BYTES_MAX - shown.len();
        shown.push('\'');
        shown.push_str(&cut(arg, rest));
        shown.push_str("' ");
    }
    let text = format!("ERR unknown command '{name}', with args beginning with: {shown}");
    Reply::Error(text.replace(['\r', '\n'], " "))
}

/// `-ERR wrong number of arguments for '…' command`.
pub fn wrong_arity(spec: &Spec) -> Reply {
    Reply::Error(format!("ERR wrong number of arguments for '{}' command", spec.name))
}

/// A number as Redis reads it: decimal, no sign but `-`, no leading zeros, no spaces.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

fn check_sizes(spec: &Spec, args: &[&[u8]]) -> Result<(), Reply> {
    let step = if spec.last_key < 0 { usize::try_from(spec.step).unwrap_or(1) } else { 0 };
    let mut total = HEADER_BYTES;
    for (i, arg) in args.iter().enumerate().skip(1) {
        let is_key = i == 1 || (step > 0 && (i - 1) % step == 0);
        if is_key && arg.len() > KEY_BYTES_MAX {
            return Err(Reply::Error(format!("ERR key is longer than {KEY_BYTES_MAX} bytes")));
        }
        if arg.len() > VALUE_BYTES_MAX {
            return Err(Reply::error(TOO_LONG));
        }
        total += 4 + arg.len();
    }
    if total > COMMAND_BYTES_MAX {
        return Err(Reply::Error(format!(
            "ERR command of {total} bytes is larger than {COMMAND_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn with_flags(header: Header, flags: u8) -> Header {
    Header { flags, ..header }
}

fn integer(text: &[u8]) -> Result<i64, Reply> {
    parse_integer(text).ok_or_else(|| Reply::error(NOT_AN_INTEGER))
}

fn invalid_expire(spec: &Spec) -> Reply {
    Reply::Error(format!("ERR invalid expire time in '{}' command", spec.name))
}

/// Absolute expiry in milliseconds of `text` units of `unit_ms`; must be positive.
fn positive_expiry(
    spec: &Spec,
    text: &[u8],
    unit_ms: i64,
    relative_to: Option<WallMillis>,
) -> Result<i64, Reply> {
    let number = integer(text)?;
    if number <= 0 {
        return Err(invalid_expire(spec));
    }
    absolute(number, unit_ms, relative_to).ok_or_else(|| invalid_expire(spec))
}

fn absolute(number: i64, unit_ms: i64, relative_to: Option<WallMillis>) -> Option<i64> {
    let millis = number.checked_mul(unit_ms)?;
    match relative_to {
        Some(now) => millis.checked_add(i64::try_from(now.0).ok()?),
        None => Some(millis),
    }
}

/// `SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`.
fn decode_set(spec: &Spec, args: &[&[u8]], mut header: Header) -> Result<Command, Reply> {
    let mut expiry: Option<(&[u8], i64, Option<WallMillis>)> = None;
    let mut options = args[3..].iter();
    while let Some(option) = options.next() {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        let free_of = |flags: u8| header.flags & flags == 0;
        if is(b"nx") && free_of(set::XX) {
            header.flags |= set::NX;
        } else if is(b"xx") && free_of(set::NX) {
            header.flags |= set::XX;
        } else if is(b"get") {
            header.flags |= set::GET;
        } else if is(b"keepttl") && expiry.is_none() {
            header.flags |= set::KEEP_TTL;
        } else {
            let (unit_ms, relative_to) = match () {
                () if is(b"ex") => (1000, Some(header.at)),
                () if is(b"px") => (1, Some(header.at)),
                () if is(b"exat") => (1000, None),
                () if is(b"pxat") => (1, None),
                () => return Err(Reply::error(SYNTAX)),
            };
            let Some(number) = options.next() else { return Err(Reply::error(SYNTAX)) };
            if expiry.is_some() || !free_of(set::KEEP_TTL) {
                return Err(Reply::error(SYNTAX));
            }
            expiry = Some((number, unit_ms, relative_to));
        }
    }
    if let Some((number, unit_ms, relative_to)) = expiry {
        header.expires_at = positive_expiry(spec, number, unit_ms, relative_to)?;
    }
    Ok(header.encode(&args[1..3]))
}

/// `GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`.
fn decode_getex(spec: &Spec, args: &[&[u8]], at: WallMillis) -> Result<Command, Reply> {
    let header = |op| Header::new(op, SlotId::of_key(args[1]), at);
    let is = |name: &[u8]| args[2].eq_ignore_ascii_case(name);
    let (unit_ms, relative_to) = match args.len() {
        // Nothing is changed.
        2 => return Ok(header(Op::Get).encode(&args[1..2])),
        3 if is(b"persist") => {
            return Ok(with_flags(header(Op::GetEx), getex::PERSIST).encode(&args[1..2]));
        }
        4 if is(b"ex") => (1000, Some(at)),
        4 if is(b"px") => (1, Some(at)),
        4 if is(b"exat") => (1000, None),
        4 if is(b"pxat") => (1, None),
        _ => return Err(Reply::error(SYNTAX)),
    };
    let expires_at = positive_expiry(spec, args[3], unit_ms, relative_to)?;
    Ok(Header { expires_at, ..header(Op::GetEx) }.encode(&args[1..2]))
}

/// `SETEX key seconds value`.
fn decode_setex(
    spec: &Spec,
    args: &[&[u8]],
    mut header: Header,
    unit_ms: i64,
) -> Result<Command, Reply> {
    header.expires_at = positive_expiry(spec, args[2], unit_ms, Some(header.at))?;
    Ok(header.encode(&[args[1], args[3]]))
}

/// `SETRANGE key offset value`.
fn decode_setrange(args: &[&[u8]], header: Header) -> Result<Command, Reply> {
    let offset = integer(args[2])?;
    let Ok(start) = usize::try_from(offset) else {
        return Err(Reply::error("ERR offset is out of range"));
    };
    let fits = start.checked_add(args[3].len()).is_some_and(|end| end <= VALUE_BYTES_MAX);
    if !args[3].is_empty() && !fits {
        return Err(Reply::error(TOO_LONG));
    }
    Ok(header.encode(&[args[1], &offset.to_le_bytes(), args[3]]))
}

/// `EXPIRE key seconds [NX | XX | GT | LT]` and its relatives.
fn decode_expire(
    spec: &Spec,
    args: &[&[u8]],
    mut header: Header,
    unit_ms: i64,
    relative: bool,
) -> Result<Command, Reply> {
    for option in &args[3..] {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        header.flags |= match () {
            () if is(b"nx") => expire::NX,
            () if is(b"xx") => expire::XX,
            () if is(b"gt") => expire::GT,
            () if is(b"lt") => expire::LT,
            () => {
                let shown = String::from_utf8_lossy(&option[..option.len().min(128)]);
                let text = format!("ERR Unsupported option {shown}");
                return Err(Reply::Error(text.replace(['\r', '\n'], " ")));
            }
        };
    }
    let has = |flag: u8| header.flags & flag != 0;
    if has(expire::NX) && has(expire::XX | expire::GT | expire::LT) {
        return Err(Reply::error(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if has(expire::GT) && has(expire::LT) {
        return Err(Reply::error("ERR GT and LT options at the same time are not compatible"));
    }
    let number = integer(args[2])?;
    header.expires_at = absolute(number, unit_ms, relative.then_some(header.at))
        .ok_or_else(|| invalid_expire(spec))?;
    Ok(header.encode(&args[1..2]))
}
