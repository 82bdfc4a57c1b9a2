//! A hash of what replicas must agree on, the same in every build and on every machine.

use super::item::{Item, SMALL_VALUE_BYTES, Value};

const KEY_SEED: u64 = 0xD6E8_FEB8_6659_FD93;

/// A hash of an item: of its key, version, expiry, length, the commands that made it, and of the
/// value itself where every replica has it in memory. The expiry is given as whoever counts it
/// has it.
pub(crate) fn item_digest(item: &Item, expires_at: u64) -> u64 {
    let numbers = mix(item.version.get() ^ 0x9E37_79B9_7F4A_7C15, expires_at ^ KEY_SEED);
    let made = mix(u64::from(item.sum) ^ numbers, item.value.len() as u64 ^ 0xA076_1D64_78BD_642F);
    let small = match &item.value {
        Value::Memory(bytes) if bytes.len() <= SMALL_VALUE_BYTES => stable_hash(bytes, made),
        _ => made,
    };
    mix(stable_hash(item.key.bytes(), KEY_SEED), small | 1)
}

/// Multiplies into 128 bits and folds.
const fn mix(a: u64, b: u64) -> u64 {
    let wide = (a as u128) * (b as u128);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// A hash of bytes that never changes.
pub(crate) fn stable_hash(bytes: &[u8], seed: u64) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mut hash = seed ^ mix(bytes.len() as u64 ^ 0xA076_1D64_78BD_642F, KEY_SEED);
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = (word(&chunk[..8]), word(&chunk[8..]));
        hash = mix(low ^ 0xE703_7ED1_A0B4_28DB ^ hash, high ^ 0x8EBC_6AF0_9C88_C6E3);
    }
    let (low, high) = chunks.remainder().split_at(chunks.remainder().len().min(8));
    mix(word(low) ^ 0x5899_65CC_7537_4CC3 ^ hash, word(high) ^ 0x1D8E_4E27_C47D_124F)
}
