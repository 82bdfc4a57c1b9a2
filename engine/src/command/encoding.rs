//! How a command is written into the log and between nodes.
//!
//! Layout, little-endian: op u8, flags u8, slot u16, argument count u32, stamp u64, expiry i64,
//! then each argument as length u32 and bytes. Nothing follows the last argument.

use coracle_raft::Payload;

use super::{Access, Command};
use crate::{SlotId, WallMillis};

/// Bytes before the first argument.
pub(crate) const HEADER_BYTES: usize = 24;
/// Longer commands are put together on the heap.
const ON_STACK_BYTES_MAX: usize = 4096 + 256;

/// Flags of [`Op::Set`].
pub(crate) mod set {
    /// Only if the key does not exist.
    pub(crate) const NX: u8 = 1;
    /// Only if the key exists.
    pub(crate) const XX: u8 = 2;
    /// Reply with the previous value.
    pub(crate) const GET: u8 = 4;
    /// Keep the time to live.
    pub(crate) const KEEP_TTL: u8 = 8;
    /// Reply with 1 or 0 (`SETNX`).
    pub(crate) const COUNT: u8 = 16;
}

/// Flags of [`Op::Expire`].
pub(crate) mod expire {
    /// Only if the key has no expiry.
    pub(crate) const NX: u8 = 1;
    /// Only if the key has an expiry.
    pub(crate) const XX: u8 = 2;
    /// Only if the new expiry is later.
    pub(crate) const GT: u8 = 4;
    /// Only if the new expiry is earlier.
    pub(crate) const LT: u8 = 8;
}

/// Flags of [`Op::GetEx`].
pub(crate) mod getex {
    /// Take the expiry away.
    pub(crate) const PERSIST: u8 = 1;
}

/// Flags of [`Op::Scan`].
pub(crate) mod scan {
    /// No key can be meant: of another type than there is.
    pub(crate) const NOTHING: u8 = 1;
}

/// Flags of [`Op::Ttl`].
pub(crate) mod ttl {
    /// In milliseconds instead of seconds.
    pub(crate) const MILLIS: u8 = 1;
    /// As Unix time instead of what remains.
    pub(crate) const ABSOLUTE: u8 = 2;
}

macro_rules! ops {
    ($(
        $(#[$doc:meta])*
        $op:ident = $code:literal $access:ident args $min:literal..=$max:expr,
    )*) => {
        /// What to do. The numbers stand in logs: never reuse or renumber one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Op {
            $( $(#[$doc])* $op = $code, )*
        }

        impl Op {
            const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $( $code => Some(Self::$op), )*
                    _ => None,
                }
            }

            /// Whether it changes anything.
            pub(crate) const fn access(self) -> Access {
                match self {
                    $( Self::$op => Access::$access, )*
                }
            }

            /// Fewest and most arguments.
            const fn arity(self) -> (u32, u32) {
                match self {
                    $( Self::$op => ($min, $max), )*
                }
            }
        }
    };
}

ops! {
    /// Value of `key`.
    Get = 1 Read args 1..=1,
    /// `key value`, with flags and expiry (0: none).
    Set = 2 Write args 2..=2,
    /// `key suffix`.
    Append = 3 Write args 2..=2,
    /// Length of `key`'s value.
    StrLen = 4 Read args 1..=1,
    /// `key…`.
    Del = 5 Write args 1..=u32::MAX,
    /// `key…`.
    Exists = 6 Read args 1..=u32::MAX,
    /// `key delta`, the delta as 8 bytes.
    IncrBy = 7 Write args 2..=2,
    /// `key…`.
    MGet = 8 Read args 1..=u32::MAX,
    /// `key value …`.
    MSet = 9 Write args 2..=u32::MAX,
    /// `key start end`, the numbers as 8 bytes each.
    GetRange = 10 Read args 3..=3,
    /// `key offset value`, the offset as 8 bytes.
    SetRange = 11 Write args 3..=3,
    /// `key`.
    GetDel = 12 Write args 1..=1,
    /// `key`, with flags and expiry.
    Expire = 13 Write args 1..=1,
    /// `key`, with flags.
    Ttl = 14 Read args 1..=1,
    /// `key`.
    Persist = 15 Write args 1..=1,
    /// `key`.
    Type = 16 Read args 1..=1,
    /// Moves a group's log clock and removes keys that are due, in place of the expiry: at most so
    /// many from each shard.
    Clock = 17 Write args 0..=0,
    /// Nothing at all: every replica tells the others what it holds right after this entry.
    Check = 18 Write args 0..=0,
    /// `position count [pattern]`, the numbers as 8 bytes each: keys of a group's slots from this
    /// slot and position on.
    Scan = 19 Read args 2..=3,
    /// How many keys a group has.
    Size = 20 Read args 0..=0,
    /// `dice`, 8 bytes that choose one key of a group.
    RandomKey = 21 Read args 1..=1,
    /// Forgets all keys of a group.
    Flush = 22 Write args 0..=0,
    /// `pattern`: the keys of all groups. Only as a client's command, never in one group.
    Keys = 23 Read args 1..=1,
    /// `key`, with flags and expiry.
    GetEx = 24 Write args 1..=1,
    /// `key value …`.
    MSetNx = 25 Write args 2..=u32::MAX,
    /// `key increment`, the increment as text.
    IncrByFloat = 26 Write args 2..=2,
}

impl Op {
    /// Distance from one key to the next in the arguments; 0 if only the first one is a key.
    const fn key_step(self) -> usize {
        match self {
            Self::Del | Self::Exists | Self::MGet => 1,
            Self::MSet | Self::MSetNx => 2,
            _ => 0,
        }
    }

    /// Whether it concerns a whole group, not some keys.
    pub(crate) const fn spans_group(self) -> bool {
        matches!(self, Self::Scan | Self::Size | Self::RandomKey | Self::Flush | Self::Keys)
    }

    /// Whether applying it can make the store larger.
    pub(crate) const fn adds_memory(self) -> bool {
        matches!(
            self,
            Self::Set
                | Self::Append
                | Self::IncrBy
                | Self::IncrByFloat
                | Self::MSet
                | Self::MSetNx
                | Self::SetRange
        )
    }
}

/// What stands before the arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) op: Op,
    pub(crate) flags: u8,
    pub(crate) slot: SlotId,
    pub(crate) at: WallMillis,
    pub(crate) expires_at: i64,
}

impl Header {
    pub(crate) const fn new(op: Op, slot: SlotId, at: WallMillis) -> Self {
        Self { op, flags: 0, slot, at, expires_at: 0 }
    }

    /// Encodes a command. It is put together on the stack if it is not too long, so that the one
    /// allocation is that of the payload.
    pub(crate) fn encode(self, args: &[&[u8]]) -> Command {
        let size = HEADER_BYTES + args.iter().map(|arg| 4 + arg.len()).sum::<usize>();
        let (mut stack, mut heap);
        let bytes = if size <= ON_STACK_BYTES_MAX {
            stack = [0; ON_STACK_BYTES_MAX];
            &mut stack[..size]
        } else {
            heap = vec![0; size];
            &mut heap[..]
        };
        self.write(args, bytes);
        let checksum = crc32c::crc32c(bytes);
        Command {
            slot: self.slot,
            access: self.op.access(),
            payload: Payload::new(&*bytes, checksum),
        }
    }

    /// Fills `bytes`, which has exactly the right length.
    fn write(self, args: &[&[u8]], mut bytes: &mut [u8]) {
        let mut put = |part: &[u8]| {
            let (place, rest) = std::mem::take(&mut bytes).split_at_mut(part.len());
            place.copy_from_slice(part);
            bytes = rest;
        };
        put(&[self.op as u8, self.flags]);
        put(&self.slot.get().to_le_bytes());
        put(&narrow(args.len()).to_le_bytes());
        put(&self.at.0.to_le_bytes());
        put(&self.expires_at.to_le_bytes());
        for arg in args {
            put(&narrow(arg.len()).to_le_bytes());
            put(arg);
        }
        assert!(bytes.is_empty(), "{} bytes too many were made room for", bytes.len());
    }
}

/// The same command with another stamp. Costs a copy.
pub(crate) fn restamped(command: &Command, at: WallMillis) -> Command {
    let mut bytes = command.payload.bytes().to_vec();
    bytes[8..16].copy_from_slice(&at.0.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    Command { payload: Payload::new(bytes, checksum), ..command.clone() }
}

/// The operation of an encoded command, nothing else of which is looked at.
pub(crate) fn op_of(bytes: &[u8]) -> Option<Op> {
    Op::from_code(*bytes.first()?)
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).expect("commands are limited to far below 4 GiB")
}

/// An encoded command, checked and ready to be executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) op: Op,
    pub(crate) flags: u8,
    pub(crate) slot: SlotId,
    pub(crate) at: WallMillis,
    pub(crate) expires_at: i64,
    count: u32,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// Bytes of a command with two arguments beside these.
    pub(crate) const AROUND_PAIR: usize = HEADER_BYTES + 8;

    /// Argument `n` of a command as a range of its encoding; `None` if there is none.
    pub(crate) fn find(bytes: &[u8], n: usize) -> Option<(usize, usize)> {
        let mut start = HEADER_BYTES;
        for arg in 0.. {
            let len = bytes.get(start..)?.first_chunk::<4>()?;
            let (first, end) = (start + 4, start + 4 + u32::from_le_bytes(*len) as usize);
            if arg == n {
                return (end <= bytes.len()).then_some((first, end));
            }
            start = end;
        }
        None
    }

    /// Checks the whole encoding: `None` if any part of it is not as [`Header::encode`] makes it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let op = Op::from_code(header[0])?;
        let word = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let count = u32::from_le_bytes(header[4..8].try_into().ok()?);
        let (min, max) = op.arity();
        if count < min || count > max || (op.key_step() == 2 && count % 2 != 0) {
            return None;
        }
        let view = Self {
            op,
            flags: header[1],
            slot: SlotId::new(u16::from_le_bytes([header[2], header[3]]))?,
            at: WallMillis(word(8)?),
            expires_at: i64::from_le_bytes(header[16..24].try_into().ok()?),
            count,
            bytes,
        };
        for _ in 0..count {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            rest = tail.get(u32::from_le_bytes(*len) as usize..)?;
        }
        let numbers_fit = match op {
            Op::IncrBy => view.arg(1).len() == 8,
            Op::GetRange => view.arg(1).len() == 8 && view.arg(2).len() == 8,
            Op::SetRange => view.arg(1).len() == 8,
            Op::Scan => view.arg(0).len() == 8 && view.arg(1).len() == 8,
            Op::RandomKey => view.arg(0).len() == 8,
            _ => true,
        };
        (rest.is_empty() && numbers_fit).then_some(view)
    }

    /// Arguments as ranges of the encoding.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let bytes = self.bytes;
        let mut next = HEADER_BYTES;
        (0..self.count).map(move |_| {
            let len = bytes[next..].first_chunk::<4>().expect("lengths were checked by parse");
            let start = next + 4;
            next = start + u32::from_le_bytes(*len) as usize;
            (start, next)
        })
    }

    /// Argument `n` as a range of the encoding.
    pub(crate) fn range(&self, n: usize) -> (usize, usize) {
        self.ranges().nth(n).expect("the argument count was checked by parse")
    }

    /// How many arguments there are.
    pub(crate) const fn arg_count(&self) -> usize {
        self.count as usize
    }

    /// Argument `n`.
    pub(crate) fn arg(&self, n: usize) -> &'a [u8] {
        let (start, end) = self.range(n);
        &self.bytes[start..end]
    }

    /// The first argument.
    pub(crate) fn key(&self) -> &'a [u8] {
        self.arg(0)
    }

    /// Whether the reply has values of its keys in it.
    pub(crate) const fn shows_values(&self) -> bool {
        match self.op {
            Op::Get | Op::MGet | Op::GetRange | Op::GetDel | Op::GetEx => true,
            Op::Set => self.flags & set::GET != 0,
            _ => false,
        }
    }

    /// Argument `n` as a number.
    pub(crate) fn number(&self, n: usize) -> i64 {
        let bytes = self.arg(n).try_into().expect("numbers were checked by parse");
        i64::from_le_bytes(bytes)
    }

    /// Every key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        let (step, take) = match self.op.key_step() {
            0 if self.op.spans_group() => (1, 0),
            0 => (1, 1),
            step => (step, usize::MAX),
        };
        self.ranges().step_by(step).take(take).map(move |(start, end)| &bytes[start..end])
    }

    /// Whether it may have more than one key.
    pub(crate) const fn is_multi_key(&self) -> bool {
        self.op.key_step() > 0
    }

    /// Whether the reply is `+OK` whatever the store holds, so that it may be sent at commit,
    /// before the command is applied.
    pub(crate) const fn replies_at_commit(&self) -> bool {
        match self.op {
            Op::Set => self.flags & !set::KEEP_TTL == 0,
            Op::MSet => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot() -> SlotId {
        SlotId::new(77).unwrap()
    }

    proptest! {
        /// Whatever is encoded is read back; the checksum is that of the bytes.
        #[test]
        fn encoding_round_trips(key: Vec<u8>, value: Vec<u8>, flags in 0u8..16, at: u64, exp: i64) {
            let header = Header {
                op: Op::Set, flags, slot: slot(), at: WallMillis(at), expires_at: exp,
            };
            let command = header.encode(&[&key, &value]);
            prop_assert_eq!(command.payload.checksum(), crc32c::crc32c(command.payload.bytes()));
            let view = View::parse(command.payload.bytes()).unwrap();
            prop_assert_eq!((view.op, view.flags, view.slot), (Op::Set, flags, slot()));
            prop_assert_eq!((view.at.0, view.expires_at), (at, exp));
            prop_assert_eq!(view.key(), &key[..]);
            prop_assert_eq!(view.arg(1), &value[..]);
            let later = restamped(&command, WallMillis(9));
            prop_assert_eq!(View::parse(later.payload.bytes()).unwrap().at.0, 9);
        }

        /// Commands on whole groups have no keys.
        #[test]
        fn commands_on_groups_have_no_keys(position: i64, count: i64, pattern: Vec<u8>) {
            let args = [&position.to_le_bytes()[..], &count.to_le_bytes(), &pattern];
            let command = Header::new(Op::Scan, slot(), WallMillis(1)).encode(&args);
            prop_assert!(command.spans_groups());
            let view = View::parse(command.payload.bytes()).unwrap();
            prop_assert_eq!(view.keys().count(), 0);
            prop_assert_eq!((view.number(0), view.number(1)), (position, count));
            prop_assert_eq!((view.arg_count(), view.arg(2)), (3, &pattern[..]));
        }

        /// No bytes make the parser panic, nor the accessors of what it accepts.
        #[test]
        fn parse_never_panics(mut bytes: Vec<u8>, flip in 0usize..64, with: u8) {
            let pairs: [&[u8]; 4] = [b"a", b"1", b"b", b"2"];
            let good = Header::new(Op::MSet, slot(), WallMillis(1)).encode(&pairs);
            let mut mutated = good.payload.bytes().to_vec();
            let at = flip % mutated.len();
            mutated[at] = with;
            bytes.insert(0, with % 28);
            for input in [&bytes, &mutated] {
                if let Some(view) = View::parse(input) {
                    prop_assert!(view.ranges().all(|(start, end)| start <= end));
                    prop_assert!(view.keys().count() <= input.len());
                }
            }
        }
    }

    /// Only commands whose answer cannot depend on the store are answered at commit.
    #[test]
    fn only_unconditional_sets_reply_at_commit() {
        let cases = [
            (Op::Set, 0, true),
            (Op::Set, set::KEEP_TTL, true),
            (Op::Set, set::NX, false),
            (Op::Set, set::XX, false),
            (Op::Set, set::GET, false),
            (Op::Set, set::NX | set::COUNT, false),
            (Op::MSet, 0, true),
            (Op::Append, 0, false),
        ];
        for (op, flags, want) in cases {
            let command =
                Header { flags, ..Header::new(op, slot(), WallMillis(0)) }.encode(&[b"k", b"v"]);
            let view = View::parse(command.payload.bytes()).unwrap();
            assert_eq!(view.replies_at_commit(), want, "{op:?} {flags}");
        }
    }
}
