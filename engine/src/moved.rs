//! A value on its own in the log: the payload of [`coracle_raft::Record::Value`].
//!
//! Little-endian: version u64, sum u32, key length u32, shard u16, then key and value. The index
//! says what the value means; key and version are there so that nobody takes one for another.

use coracle_raft::{LogIndex, Payload};

use crate::ShardId;

/// Bytes before the key.
pub(crate) const HEADER_BYTES: usize = 18;

/// A value record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved<'a> {
    pub(crate) shard: ShardId,
    pub(crate) sum: u32,
    pub(crate) version: LogIndex,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Moved<'a> {
    /// Reads a payload; any bytes may be given.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let (key, value) = rest.split_at_checked(word(12)? as usize)?;
        Some(Self {
            shard: ShardId(u16::from_le_bytes([header[16], header[17]])),
            sum: word(8)?,
            version: LogIndex::new(u64::from_le_bytes(header[..8].try_into().ok()?)),
            key,
            value,
        })
    }

    pub(crate) fn encode(&self) -> Payload {
        let key_len = u32::try_from(self.key.len()).expect("keys are bounded");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.key.len() + self.value.len());
        bytes.extend_from_slice(&self.version.get().to_le_bytes());
        bytes.extend_from_slice(&self.sum.to_le_bytes());
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(&self.shard.0.to_le_bytes());
        bytes.extend_from_slice(self.key);
        bytes.extend_from_slice(self.value);
        let checksum = crc32c::crc32c(&bytes);
        Payload::new(bytes, checksum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_round_trip(shard: u16, sum: u32, version: u64, key: Vec<u8>, value: Vec<u8>) {
            let (shard, version) = (ShardId(shard), LogIndex::new(version));
            let moved = Moved { shard, sum, version, key: &key, value: &value };
            let payload = moved.encode();
            prop_assert_eq!(Moved::parse(payload.bytes()), Some(moved));
            prop_assert!(payload.bytes().ends_with(&value));
        }

        #[test]
        fn parse_never_panics(bytes: Vec<u8>) {
            if let Some(moved) = Moved::parse(&bytes) {
                prop_assert_eq!(moved.key.len() + moved.value.len() + HEADER_BYTES, bytes.len());
            }
        }
    }
}
