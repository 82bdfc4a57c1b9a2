//! How fast snapshots are sent to followers that lag: as fast as disks and links take them while
//! clients want little, and slowly while they want much. Nobody waits for a snapshot as they wait
//! for an answer.

/// Bytes of pieces in one tick while clients want nothing: about 80 MB/s with ticks of 25 ms.
const IDLE_BYTES: usize = 2 << 20;
/// Bytes in one tick at least, or the snapshot would never end: one piece, about 10 MB/s.
const LEAST_BYTES: usize = 256 << 10;
/// A byte that clients write takes so many from snapshots: it goes to every replica and disk.
const PER_CLIENT_BYTE: usize = 4;
/// A command counts as so many bytes, whatever it holds.
const COMMAND_BYTES: usize = 512;

/// The budget of one core for pieces of snapshots.
#[derive(Debug)]
pub(crate) struct SnapshotPace {
    /// Below zero when the last piece was larger than what was left.
    left_bytes: isize,
    /// What clients wanted since the last tick.
    client_bytes: usize,
}

impl Default for SnapshotPace {
    fn default() -> Self {
        Self { left_bytes: IDLE_BYTES.cast_signed(), client_bytes: 0 }
    }
}

impl SnapshotPace {
    /// A client wants something of this size.
    pub(crate) const fn command(&mut self, bytes: usize) {
        self.client_bytes = self.client_bytes.saturating_add(bytes + COMMAND_BYTES);
    }

    /// A tick has passed. What is left of the last one is not added up to a burst.
    pub(crate) fn tick(&mut self) {
        let taken = std::mem::take(&mut self.client_bytes).saturating_mul(PER_CLIENT_BYTE);
        let allowed = IDLE_BYTES.saturating_sub(taken).max(LEAST_BYTES).cast_signed();
        self.left_bytes = self.left_bytes.min(0) + allowed;
    }

    /// Whether another piece may go now.
    pub(crate) const fn may_send(&self) -> bool {
        self.left_bytes > 0
    }

    /// A piece goes.
    pub(crate) const fn sent(&mut self, bytes: usize) {
        self.left_bytes -= bytes.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent in the tick after `commands` of `bytes` each, in pieces of 100 KB.
    fn sent_after(pace: &mut SnapshotPace, commands: usize, bytes: usize) -> usize {
        (0..commands).for_each(|_| pace.command(bytes));
        pace.tick();
        let mut sent = 0;
        while pace.may_send() {
            pace.sent(100_000);
            sent += 100_000;
        }
        sent
    }

    /// The more clients want, the less is sent, but never nothing; debts are paid, and pauses do
    /// not add up.
    #[test]
    fn snapshots_give_way_to_clients() {
        let mut pace = SnapshotPace::default();
        let cases = [(0, 0, 2_100_000), (500, 0, 1_100_000), (100, 4000, 300_000)];
        for (commands, bytes, want) in cases {
            pace = SnapshotPace::default();
            assert_eq!(sent_after(&mut pace, commands, bytes), want, "{commands} of {bytes}");
        }
        let busy: usize = (0..100).map(|_| sent_after(&mut pace, 10_000, 1000)).sum();
        assert!((26_000_000..=26_400_000).contains(&busy), "{busy} in 100 ticks, one piece each");
        (0..100).for_each(|_| pace.tick());
        assert_eq!(sent_after(&mut pace, 0, 0), 2_100_000, "no burst");
    }
}
