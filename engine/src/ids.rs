//! Slots, shards, cores and wall time as types.

use std::fmt;

use coracle_raft::NodeId;

/// Number of hash slots (Redis Cluster spec, "Key distribution model").
pub const SLOT_COUNT: u16 = 16384;
const _: () = assert!(SLOT_COUNT.is_power_of_two(), "of_key() masks instead of dividing");

/// One of the 16384 hash slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u16);

impl SlotId {
    /// `None` at 16384 and above.
    pub const fn new(raw: u16) -> Option<Self> {
        if raw < SLOT_COUNT { Some(Self(raw)) } else { None }
    }

    /// The slot of a key: CRC16 of its hash tag (Redis Cluster spec, "Hash tags").
    pub fn of_key(key: &[u8]) -> Self {
        Self(crc16_xmodem(hash_tag(key)) & (SLOT_COUNT - 1))
    }

    /// The number, below 16384.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The shard that holds this slot when there are `shard_count` shards.
    pub const fn shard(self, shard_count: u16) -> ShardId {
        ShardId((self.0 as u32 * shard_count as u32 / SLOT_COUNT as u32) as u16)
    }
}

/// A fixed contiguous range of slots: the unit of ownership and of atomic multi-key commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// One engine instance of a node, with its own log and its own groups. Counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// One core of one node: the address of a peer message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreAddr {
    /// The node.
    pub node: NodeId,
    /// The core on it.
    pub core: CoreId,
}

impl fmt::Display for CoreAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/c{}", self.node, self.core.0)
    }
}

/// Milliseconds since the Unix epoch, put on a request where it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMillis(pub u64);

/// The part of a key between the first `{` and the next `}`, if that part is not empty.
fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else { return key };
    let rest = &key[open + 1..];
    match rest.iter().position(|&b| b == b'}') {
        Some(len) if len > 0 => &rest[..len],
        _ => key,
    }
}

/// CRC16-XMODEM: polynomial 0x1021, initial value 0, no reflection.
const fn crc16_table() -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

static CRC16: [u16; 256] = crc16_table();

fn crc16_xmodem(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, &byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values of the Redis Cluster specification, "Appendix A" and "Hash tags".
    #[test]
    fn slots_match_the_specification() {
        assert_eq!(crc16_xmodem(b"123456789"), 0x31C3);
        let same: &[(&str, &str)] = &[
            ("{user1000}.following", "{user1000}.followers"),
            ("foo{bar}{zap}", "bar"),
            ("foo{{bar}}zap", "{bar"),
        ];
        for &(a, b) in same {
            assert_eq!(SlotId::of_key(a.as_bytes()), SlotId::of_key(b.as_bytes()), "{a} {b}");
        }
        assert_eq!(SlotId::of_key(b"foo{}{bar}").get(), crc16_xmodem(b"foo{}{bar}") % SLOT_COUNT);
        assert_eq!(SlotId::of_key(b"foo").get(), 12182);
    }

    /// Every slot has a shard, shards are contiguous and their sizes differ by at most one.
    #[test]
    fn shards_partition_the_slots() {
        for shard_count in [1u16, 3, 10, 1024, 16384] {
            let mut sizes = vec![0u32; usize::from(shard_count)];
            let mut last = 0;
            for raw in 0..SLOT_COUNT {
                let shard = SlotId::new(raw).expect("in range").shard(shard_count).0;
                assert!(
                    shard == last || shard == last + 1,
                    "slot {raw} shard {shard} after {last}"
                );
                last = shard;
                sizes[usize::from(shard)] += 1;
            }
            let (min, max) = (sizes.iter().min().copied(), sizes.iter().max().copied());
            assert!(max.unwrap_or(0) - min.unwrap_or(0) <= 1, "{shard_count}: {min:?}..{max:?}");
        }
    }
}
