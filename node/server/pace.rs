//! How fast a new segment is filled with zeros: a little faster than the log grows, so that it is
//! ready in time and the log's own writes do not wait behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes filled for each byte appended. More than one, because a segment must be ready before
/// the one in use is full.
const FILLED_PER_APPENDED: f64 = 1.5;
/// Bytes filled per second while nothing is appended.
const FILLED_PER_SECOND: f64 = 16e6;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// What the filling of a log's segments goes by; the log's core tells, the background looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    appended_bytes: AtomicU64,
    hurry: AtomicBool,
}

impl Pace {
    /// The log has grown.
    pub(super) fn appended(&self, bytes: u64) {
        self.0.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether to fill as fast as the disk can.
    pub(super) fn hurry(&self, hurry: bool) {
        self.0.hurry.store(hurry, Ordering::Relaxed);
    }

    /// The filling of one file, which begins now.
    pub(super) fn begin(&self) -> Filling {
        let appended_before = self.0.appended_bytes.load(Ordering::Relaxed);
        Filling { pace: self.clone(), began: Instant::now(), appended_before, filled_bytes: 0 }
    }
}

/// One file on its way.
pub(super) struct Filling {
    pace: Pace,
    began: Instant,
    appended_before: u64,
    filled_bytes: u64,
}

impl Filling {
    /// Waits until `bytes` more may be written.
    pub(super) fn wait(&mut self, bytes: u64) {
        while !self.may_go_on(self.began.elapsed()) {
            std::thread::sleep(LOOK);
        }
        self.filled_bytes += bytes;
    }

    fn may_go_on(&self, elapsed: Duration) -> bool {
        let appended = self.pace.0.appended_bytes.load(Ordering::Relaxed) - self.appended_before;
        let allowed =
            appended as f64 * FILLED_PER_APPENDED + elapsed.as_secs_f64() * FILLED_PER_SECOND;
        self.pace.0.hurry.load(Ordering::Relaxed) || self.filled_bytes as f64 <= allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first piece goes at once; later ones follow the log, the clock, or the need.
    #[test]
    fn filling_follows_the_log() {
        let pace = Pace::default();
        pace.appended(1 << 30);
        let mut filling = pace.begin();
        filling.wait(3_000_000);
        assert!(!filling.may_go_on(Duration::from_millis(100)), "1.6 MB may be filled by then");
        assert!(filling.may_go_on(Duration::from_millis(200)));
        pace.appended(1_999_999);
        assert!(!filling.may_go_on(Duration::ZERO));
        pace.appended(1);
        assert!(filling.may_go_on(Duration::ZERO));
        filling.wait(3_000_000);
        pace.hurry(true);
        assert!(filling.may_go_on(Duration::ZERO), "the log is about to stop");
        pace.hurry(false);
        assert!(!filling.may_go_on(Duration::ZERO));
    }
}
