//! What the bytes in a log and in a checkpoint mean, for tools that look at them while no node
//! runs. Any bytes may be given.

use std::ops::Range;

use coracle_raft::{GroupId, LogPosition, Payload, Place, Record};

use crate::checkpoint::section;
use crate::command::encoding::View;
use crate::moved::Moved;
use crate::snapshot::Piece;
use crate::store::{Located, Value};
use crate::{ShardId, SlotId};

/// A command of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// What it does, in upper case: `SET`, `INCRBY`, …
    pub name: String,
    /// Its keys.
    pub keys: Vec<&'a [u8]>,
    /// The last of its arguments that are no keys: the value of a `SET`, the number of an `INCRBY`.
    pub value: Option<&'a [u8]>,
}

/// Reads the payload of a command.
pub fn command(payload: &[u8]) -> Option<Described<'_>> {
    let view = View::parse(payload)?;
    let keys: Vec<&[u8]> =
        if view.ranges().next().is_some() { view.keys().collect() } else { Vec::new() };
    let count = view.ranges().count();
    let value = (count > 0).then(|| view.arg(count - 1)).filter(|last| {
        let is_key = keys.iter().any(|key| std::ptr::eq(*key, *last));
        !is_key
    });
    Some(Described { name: format!("{:?}", view.op).to_ascii_uppercase(), keys, value })
}

/// The entry after which a shard was taken that is written down in a state record, if the record is
/// the first of such a shard: everything up to it was committed.
pub fn taken_at(state: &[u8]) -> Option<LogPosition> {
    match Piece::parse(state) {
        Ok(Piece::Begin(begin)) => Some(begin.at),
        _ => None,
    }
}

/// What a section of a checkpoint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Whose.
    pub group: GroupId,
    /// Which shard.
    pub shard: ShardId,
    /// The last entry whose effect is in it.
    pub at: LogPosition,
    /// Milliseconds of the group's log clock there.
    pub clock: u64,
    /// Items in it.
    pub items: u64,
}

/// A value of a section that stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAt {
    /// The record.
    pub place: Place,
    /// Bytes that its payload has at least.
    pub payload_len: usize,
    located: Located,
}

impl StoredAt {
    /// Whether the record is of this key and holds a value as long as the index says.
    pub fn matches(&self, group: GroupId, key: &[u8], record: &Record) -> bool {
        let payload: &Payload = match record {
            Record::Entry { group: of, entry } if *of == group => &entry.payload,
            Record::Value { group: of, payload } if *of == group => payload,
            _ => return false,
        };
        self.located.slice(key, payload).is_some()
    }
}

/// The entry after which a section was taken.
pub fn about(section: &[u8]) -> Option<LogPosition> {
    section::about(section).ok().map(|about| about.at)
}

/// Reads a section: calls `each` with every key whose value stands in the log. `None` if the bytes
/// are no section, or hold a key of another shard than they say, of `shards` in all.
pub fn section(
    bytes: &[u8],
    shards: u16,
    each: &mut dyn FnMut(&[u8], StoredAt),
) -> Option<Section> {
    let about = section::about(bytes).ok()?;
    let mut items = 0;
    let take = &mut |item: crate::store::Item| {
        let key = item.key.bytes();
        if SlotId::of_key(key).shard(shards) != about.shard {
            return Err(section::Malformed);
        }
        items += 1;
        if let Value::Log(located) = item.value {
            let payload_len = located.payload_len(key);
            each(key, StoredAt { place: located.place, payload_len, located });
        }
        Ok(())
    };
    section::each(bytes, take).ok()?;
    let section::About { group, shard, at, clock, .. } = about;
    Some(Section { group, shard, at, clock, items })
}

/// The key of a value that stands in the log on its own, and where its bytes are in the payload.
pub fn value(payload: &[u8]) -> Option<(&[u8], Range<usize>)> {
    let moved = Moved::parse(payload)?;
    Some((moved.key, payload.len() - moved.value.len()..payload.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::WallMillis;
    use crate::command::decode;

    /// Every kind of command with its keys and what it carries.
    #[test]
    fn commands_are_described() {
        let cases: &[(&str, &str, &[&str], Option<&str>)] = &[
            ("SET k v", "SET", &["k"], Some("v")),
            ("APPEND k more", "APPEND", &["k"], Some("more")),
            ("DEL a", "DEL", &["a"], None),
            ("MSET {t}a 1 {t}b 2", "MSET", &["{t}a", "{t}b"], Some("2")),
            ("GETDEL k", "GETDEL", &["k"], None),
            ("PERSIST k", "PERSIST", &["k"], None),
        ];
        for &(text, name, keys, value) in cases {
            let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            let payload = decode(&args, WallMillis(1)).unwrap().payload;
            let seen = command(payload.bytes()).unwrap();
            assert_eq!(seen.name, name);
            let keys: Vec<_> = keys.iter().map(|key| key.as_bytes()).collect();
            assert_eq!((seen.keys, seen.value), (keys, value.map(str::as_bytes)), "{text}");
        }
    }

    proptest! {
        /// No bytes make a reader panic.
        #[test]
        fn any_bytes_may_be_given(bytes: Vec<u8>) {
            let _ = (command(&bytes), taken_at(&bytes), value(&bytes));
            let _ = section(&bytes, 16, &mut |_, _| {});
        }
    }
}
