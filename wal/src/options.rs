//! How a log is laid out and bounded.

use std::fmt;

use coracle_raft::NodeId;

use crate::echo::PART_BYTES;
use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES, aligned, record_bytes};

/// Whose log it is. Stored in each segment, so that a directory put in the wrong place is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Number of the cluster, drawn when it was made.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// The core of that node.
    pub core: u32,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {:032x} node {} core {}", self.cluster, self.node.get(), self.core)
    }
}

/// Layout and bounds of one core's log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose log it is.
    pub identity: Identity,
    /// Size of a new segment file. Default: 64 MiB. A multiple of 4096, at least 32 KiB.
    /// Segments of another size, written before a change of this option, stay readable.
    pub segment_bytes: u64,
    /// A batch is closed before it grows beyond this; only a single larger record makes a larger
    /// batch. Default: 4 MiB. Range: 4096..=`segment_bytes - 4096`.
    pub batch_bytes_max: usize,
    /// Writes in flight at once. Default: 2. Range: 1..=16.
    pub inflight_max: usize,
    /// Segments prepared ahead of use. Default: 2. Range: 1..=8.
    pub spare_max: usize,
    /// Groups that may have records in this log. Default: 4096. Term, vote and base of all of
    /// them are written again at the start of each segment and must fit into half of it.
    pub groups_max: usize,
    /// Record headers that recovery keeps in memory, 48 bytes each. Behind more of them, so in a
    /// log of tiny records, it reads the log more than once instead. Default: 2^20.
    pub recovery_headers_max: usize,
    /// Seed of the segment salts, for reproducible runs; it must differ between two runs over
    /// the same directory. Default: 0, which draws it from the operating system.
    pub salt_seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            segment_bytes: 64 << 20,
            batch_bytes_max: 4 << 20,
            inflight_max: 2,
            spare_max: 2,
            groups_max: 4096,
            recovery_headers_max: RECOVERY_HEADERS_MAX,
            salt_seed: 0,
        }
    }
}

impl Options {
    /// Checks every range.
    ///
    /// # Errors
    /// Says which option is out of which range, with both numbers.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let block = BLOCK_BYTES as u64;
        let refuse = |text: String| Err(OptionsError(text));
        if !self.segment_bytes.is_multiple_of(block)
            || self.segment_bytes < 8 * block
            || self.segment_bytes > 1 << 31
        {
            return refuse(format!(
                "segment_bytes is {}, must be a multiple of {block} in {}..={}",
                self.segment_bytes,
                8 * block,
                1u64 << 31
            ));
        }
        let batch_max = self.segment_bytes - block;
        if (self.batch_bytes_max as u64) < block || self.batch_bytes_max as u64 > batch_max {
            return refuse(format!(
                "batch_bytes_max is {}, must be in {block}..={batch_max}",
                self.batch_bytes_max
            ));
        }
        if !(1..=16).contains(&self.inflight_max) {
            return refuse(format!("inflight_max is {}, must be in 1..=16", self.inflight_max));
        }
        if !(1..=8).contains(&self.spare_max) {
            return refuse(format!("spare_max is {}, must be in 1..=8", self.spare_max));
        }
        let restated = self.groups_max as u64 * RESTATED_BYTES_PER_GROUP;
        if self.groups_max == 0 || restated > self.segment_bytes / 2 {
            return refuse(format!(
                "groups_max is {}, must be in 1..={} for segments of {} bytes",
                self.groups_max,
                self.segment_bytes / 2 / RESTATED_BYTES_PER_GROUP,
                self.segment_bytes
            ));
        }
        Ok(())
    }

    /// The longest payload a record may have: it must fit into a segment beside what is written
    /// again at the segment's start.
    pub fn payload_bytes_max(&self) -> usize {
        let restated =
            BATCH_HEADER_BYTES as u64 + self.groups_max as u64 * RESTATED_BYTES_PER_GROUP;
        // Where the log starts is said there too.
        let restated = aligned(restated + RECORD_HEADER_BYTES as u64);
        let echo = record_bytes(self.echo_parts_max() * PART_BYTES);
        // Restated records may be split over several batches, each rounded up to a block.
        let batch_bytes = (self.batch_bytes_max - echo.min(self.batch_bytes_max / 2)) as u64;
        let batches = restated / batch_bytes + 1;
        let used = BLOCK_BYTES as u64 + restated + batches * (BLOCK_BYTES + echo) as u64;
        (self.segment_bytes.saturating_sub(used) as usize)
            .saturating_sub(BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + 8 + echo)
    }

    /// Parts of a batch that the next one repeats, at most: never more than a small part of a
    /// segment.
    pub(crate) fn echo_parts_max(&self) -> usize {
        (self.segment_bytes as usize / 64 / PART_BYTES).min(ECHO_PARTS_MAX)
    }
}

/// A batch of more parts is not repeated.
const ECHO_PARTS_MAX: usize = 512;

/// Default of [`Options::recovery_headers_max`].
pub(crate) const RECOVERY_HEADERS_MAX: usize = 1 << 20;

/// A hard state and a purge.
pub(crate) const RESTATED_BYTES_PER_GROUP: u64 = 2 * RECORD_HEADER_BYTES as u64;

/// An option outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_checked_and_named() {
        Options::default().validate().expect("defaults are valid");
        type Case = (&'static str, fn(&mut Options));
        let cases: [Case; 7] = [
            ("segment_bytes is 5000", |o| o.segment_bytes = 5000),
            ("segment_bytes is 4096", |o| o.segment_bytes = 4096),
            ("batch_bytes_max is 100", |o| o.batch_bytes_max = 100),
            ("batch_bytes_max is 67108864", |o| o.batch_bytes_max = 64 << 20),
            ("inflight_max is 0", |o| o.inflight_max = 0),
            ("spare_max is 9", |o| o.spare_max = 9),
            ("groups_max is 1000000", |o| o.groups_max = 1_000_000),
        ];
        for (want, change) in cases {
            let mut options = Options::default();
            change(&mut options);
            let text = options.validate().expect_err(want).to_string();
            assert!(text.starts_with(want), "{text}");
        }
    }

    #[test]
    fn default_segments_take_the_largest_value() {
        assert!(Options::default().payload_bytes_max() > (8 << 20) + (64 << 10) + 4096);
    }
}
