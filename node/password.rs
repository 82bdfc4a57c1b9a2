//! The client password, kept only as a keyed digest.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;

/// What is kept of a password: 128 bits of a digest under keys drawn when the process started.
///
/// Comparing costs the same for every wrong password, and neither a log line nor a core dump
/// shows the text. The digest never leaves the process.
#[derive(Clone)]
pub(crate) struct Password {
    keys: [RandomState; 2],
    digest: [u64; 2],
}

impl Password {
    /// Keeps the digest of `text`.
    pub(crate) fn new(text: &[u8]) -> Self {
        let keys = [RandomState::new(), RandomState::new()];
        let digest = digest(&keys, text);
        Self { keys, digest }
    }

    /// Whether `candidate` is the password. The time taken depends on the candidate alone.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        let given = digest(&self.keys, candidate);
        let difference = (given[0] ^ self.digest[0]) | (given[1] ^ self.digest[1]);
        black_box(difference) == 0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}

fn digest(keys: &[RandomState; 2], text: &[u8]) -> [u64; 2] {
    [keys[0].hash_one(text), keys[1].hash_one(text)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the same bytes match, and the text shows nowhere.
    #[test]
    fn matches_only_itself_and_stays_hidden() {
        let password = Password::new(b"canary-7f3a");
        assert!(password.matches(b"canary-7f3a"));
        for wrong in [&b""[..], b"canary-7f3", b"canary-7f3a ", b"CANARY-7F3A"] {
            assert!(!password.matches(wrong), "{wrong:?}");
        }
        assert!(!format!("{password:?}").contains("canary"));
    }
}
