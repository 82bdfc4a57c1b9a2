//! The ring's keys of reads: what for, and a number.

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A piece of a load of entries.
    Entries,
    /// A value.
    Value,
    /// A part of an old segment.
    Scan,
}

const SHIFT: u32 = 62;

/// The key of a read and its number.
pub(super) fn key(read: Read, number: u64) -> u64 {
    assert!(number < 1 << SHIFT, "number {number} does not fit a key");
    (read as u64) << SHIFT | number
}

/// What a key made by [`key`] is for, and the number.
pub(super) fn split(key: u64) -> (Read, u64) {
    let read = match key >> SHIFT {
        0 => Read::Entries,
        1 => Read::Value,
        _ => Read::Scan,
    };
    (read, key & ((1 << SHIFT) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key gives back what it was made of.
    #[test]
    fn keys_round_trip() {
        for read in [Read::Entries, Read::Value, Read::Scan] {
            for number in [0, 1, (1 << SHIFT) - 1] {
                assert_eq!(split(key(read, number)), (read, number));
            }
        }
    }
}
