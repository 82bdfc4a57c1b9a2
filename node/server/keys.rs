//! The ring's keys: what a completion belongs to, as a kind and an index.

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Listener of the plain port.
    PlainListener,
    /// Listener of this core's own client port.
    CoreListener,
    /// Listener of this core's peer port.
    PeerListener,
    /// A client connection; the index is its table slot.
    Client,
    /// A connection that another core dialled.
    PeerIn,
    /// A connection to another core; the index is the link.
    PeerOut,
}

const KIND_SHIFT: u32 = 56;
const KINDS: [Kind; 6] = [
    Kind::PlainListener,
    Kind::CoreListener,
    Kind::PeerListener,
    Kind::Client,
    Kind::PeerIn,
    Kind::PeerOut,
];

/// The ring key of a kind and an index.
pub(super) fn key(kind: Kind, index: usize) -> u64 {
    let index = index as u64;
    assert!(index < 1 << KIND_SHIFT, "index {index} does not fit a ring key");
    ((kind as u64) << KIND_SHIFT) | index
}

/// The kind and index of a ring key made by [`key`].
pub(super) fn split(key: u64) -> (Kind, usize) {
    let kind = KINDS[(key >> KIND_SHIFT) as usize];
    (kind, (key & ((1 << KIND_SHIFT) - 1)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key gives back what it was made of.
    #[test]
    fn keys_round_trip() {
        for kind in KINDS {
            for index in [0, 1, 77, (1 << 30) + 3] {
                assert_eq!(split(key(kind, index)), (kind, index));
            }
        }
    }
}
