//! When a checkpoint is written, and when old segments are emptied: how much of either is done for
//! what is appended to the log.
//!
//! A cycle of checkpoint sections is spread over most of the time until the next one begins, so
//! that it is never felt as a burst. Values are moved out of old segments once the log is larger
//! than it needs to be, the faster the larger it is.

use std::time::{Duration, Instant};

use crate::config::CheckpointConfig;

/// A step of a checkpoint is at least this, unless a cycle is almost nothing.
const SECTIONS_BYTES_MIN: f64 = 16_384.0;
/// And at most this: the core does nothing else meanwhile.
const SECTIONS_BYTES_MAX: f64 = 524_288.0;
/// Bytes of sections written per second at least, while a checkpoint is under way.
const SECTIONS_BYTES_PER_SECOND: f64 = 2e6;
/// The interval between checkpoints grows with the file: at least this many times its length. A
/// start reads up to two and three quarters intervals of log, and a write costs a tenth more.
const INTERVAL_PER_FILE: u64 = 10;
/// Part of an interval in which a cycle is written: while CPUs are busy, the slowest writes are
/// those that wait for what is done in less time.
const CYCLE_PER_INTERVAL: f64 = 0.75;
/// A checkpoint that was given up is tried again after this time.
const RETRY: Duration = Duration::from_secs(10);

/// Intervals that pass on average until a segment that holds no value in use is used again: until
/// the two newest checkpoints do not refer to it.
const INTERVALS_UNTIL_REUSE: f64 = 1.5;
/// Intervals that are added to twice the live values.
const INTERVALS_BESIDE_VALUES: f64 = 2.0;

/// Bytes of an old segment that are read at once while the log is near its bound.
const SCAN_BYTES: f64 = 262_144.0;
/// And at most. One part is read at a time, and at full speed a turn of the core takes long: small
/// parts cannot keep up with a log that grows at the speed of the disk, large ones are felt.
const SCAN_BYTES_MAX: f64 = 8_388_608.0;
/// How many times more for each time that the log exceeds its bound by the bound itself.
const SCAN_BYTES_MORE: f64 = 16.0;
/// And for the square of that: what small parts cannot keep up with needs much larger ones.
const SCAN_BYTES_MORE_SQUARED: f64 = 64.0;
/// Bytes of old segments read for each byte appended when the log has just become too large: as
/// many as keep it that large while nothing of them is in use.
const SCANNED_PER_APPENDED: f64 = 1.0;
/// How many more for each time that the log exceeds its bound by the bound itself.
const SCANNED_MORE: f64 = 8.0;
/// And at most so many.
const SCANNED_PER_APPENDED_MAX: f64 = 16.0;
/// Bytes of old segments read per second at least, while the log is too large.
const SCANNED_BYTES_PER_SECOND: f64 = 4e6;
/// While the disk has little space, bytes of sections written and of segments read per second at
/// least.
const PRESSED_BYTES_PER_SECOND: f64 = 32e6;
/// And values are moved as long as the log has so many times the bytes in use...
const PRESSED_LOG_PER_LIVE: f64 = 1.125;
/// ... and so many segments more: emptying the rest would gain nothing.
const PRESSED_LOG_SEGMENTS: f64 = 2.0;
/// What is needed no more is released when the two newest checkpoints know it.
const CHECKPOINTS_KEPT: u8 = 2;
/// Bytes owed at most: what could not be done in time is not made up for by a burst.
const OWED_BYTES_MAX: f64 = 16e6;

/// How long files are kept that were needed at once with all others.
const PEAK: Duration = Duration::from_secs(30);

/// The most of something in the last one to two times [`PEAK`].
#[derive(Debug)]
struct Peak {
    newest: u64,
    older: u64,
    since: Instant,
}

impl Peak {
    fn add(&mut self, bytes: u64, now: Instant) {
        if now.duration_since(self.since) >= PEAK {
            (self.older, self.newest, self.since) = (self.newest, 0, now);
        }
        self.newest = self.newest.max(bytes);
    }

    fn get(&self) -> u64 {
        self.newest.max(self.older)
    }
}

/// What upkeep goes by, looked at once per tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Levels {
    /// The core writes a checkpoint.
    pub(super) is_checkpointing: bool,
    /// Length of the newest checkpoint file; 0 if there is none.
    pub(super) newest_bytes: u64,
    /// Bytes that a checkpoint may have if none was made so far.
    pub(super) index_bytes: u64,
    /// Bytes of the log that hold values in use.
    pub(super) live_bytes: u64,
    /// Bytes of the log from the oldest value in use, or from where recovery begins, if that is
    /// before it: what is older only waits for the next checkpoints.
    pub(super) log_bytes: u64,
    /// There are values in use in segments that recovery does not read.
    pub(super) has_old_values: bool,
    /// Bytes of segment files in which something is needed, or that are ready.
    pub(super) files_bytes: u64,
    /// Length of a segment file.
    pub(super) segment_bytes: u64,
    /// The disk has little space.
    pub(super) is_pressed: bool,
}

/// What is to be done for one log.
#[derive(Debug)]
pub(super) struct Upkeep {
    config: CheckpointConfig,
    log_bytes_target: u64,
    /// Appended since the last checkpoint began.
    appended_bytes: u64,
    /// Checkpoints until nothing is kept only for older ones.
    cycles_left: u8,
    began: Instant,
    /// Not before this time: the last one was given up.
    retry_at: Option<Instant>,
    /// Length of the newest checkpoint file, and of the index when that was new.
    newest_bytes: u64,
    index_then: u64,
    is_checkpointing: bool,
    sections_per_appended: f64,
    sections_owed: f64,
    /// 0 while the log is small enough.
    scanned_per_appended: f64,
    scan_owed: f64,
    /// At most so many at once.
    scan_bytes: f64,
    /// Some of what is old enough to be read is in use.
    may_scan: bool,
    /// Bytes that the files are expected to have.
    files_bytes: f64,
    /// Bytes that they had.
    files_peak: Peak,
    looked_at: Instant,
}

impl Upkeep {
    pub(super) fn new(config: CheckpointConfig, log_bytes_target: u64, now: Instant) -> Self {
        Self {
            config,
            log_bytes_target,
            appended_bytes: 0,
            cycles_left: CHECKPOINTS_KEPT,
            began: now,
            retry_at: None,
            newest_bytes: 0,
            index_then: 0,
            is_checkpointing: false,
            sections_per_appended: 0.0,
            sections_owed: 0.0,
            scanned_per_appended: 0.0,
            scan_owed: 0.0,
            scan_bytes: SCAN_BYTES,
            may_scan: false,
            files_bytes: log_bytes_target as f64,
            files_peak: Peak { newest: 0, older: 0, since: now },
            looked_at: now,
        }
    }

    /// The log has grown by `bytes`, of which `moved` are values that were there before: these
    /// call for no more moves.
    pub(super) fn appended(&mut self, bytes: u64, moved: u64) {
        self.appended_bytes += bytes;
        self.cycles_left = CHECKPOINTS_KEPT;
        if self.is_checkpointing {
            self.sections_owed += bytes as f64 * self.sections_per_appended;
        }
        let new = bytes.saturating_sub(moved) as f64;
        self.scan_owed = (self.scan_owed + new * self.scanned_per_appended).min(OWED_BYTES_MAX);
    }

    /// A tick has passed. Returns whether a checkpoint is to be begun.
    pub(super) fn tick(&mut self, levels: &Levels, now: Instant) -> bool {
        let seconds = now.duration_since(self.looked_at).as_secs_f64();
        self.looked_at = now;
        let interval = self.config.bytes.max(INTERVAL_PER_FILE * levels.newest_bytes);
        self.files_peak.add(levels.files_bytes, now);
        if levels.newest_bytes != self.newest_bytes {
            (self.newest_bytes, self.index_then) = (levels.newest_bytes, levels.index_bytes);
        }
        self.look_at_log(levels, interval, seconds);
        self.is_checkpointing = levels.is_checkpointing;
        if levels.is_checkpointing {
            // A file is smaller than the index that it holds, so what has grown counts too much.
            let held = if self.newest_bytes > 0 { self.index_then } else { 0 };
            let grown = levels.index_bytes.saturating_sub(held);
            let cycle = (self.newest_bytes + grown) as f64;
            self.sections_per_appended = cycle / (interval as f64 * CYCLE_PER_INTERVAL);
            let period = self.config.period.as_secs_f64() * CYCLE_PER_INTERVAL;
            let pressed = if levels.is_pressed { PRESSED_BYTES_PER_SECOND } else { 0.0 };
            let least = (cycle / period).max(SECTIONS_BYTES_PER_SECOND).max(pressed);
            self.sections_owed += seconds * least;
            return false;
        }
        let due = self.appended_bytes >= interval
            || (self.appended_bytes > 0 && now >= self.began + self.config.period)
            || (levels.is_pressed && self.is_due_for_space(levels, now))
            || self.retry_at.is_some();
        let due = due && self.retry_at.is_none_or(|at| now >= at);
        if due {
            self.appended_bytes = 0;
            self.cycles_left = self.cycles_left.saturating_sub(1);
            (self.began, self.retry_at) = (now, None);
            (self.is_checkpointing, self.sections_owed) = (true, SECTIONS_BYTES_MIN);
        }
        due
    }

    /// Whether a checkpoint would free something, and the last one is long enough ago: the longer
    /// the larger it is.
    fn is_due_for_space(&self, levels: &Levels, now: Instant) -> bool {
        let pause = 1.0 + 4.0 * levels.newest_bytes as f64 / PRESSED_BYTES_PER_SECOND;
        self.cycles_left > 0 && now >= self.began + Duration::from_secs_f64(pause)
    }

    fn look_at_log(&mut self, levels: &Levels, interval: u64, seconds: f64) {
        let needed = 2.0 * levels.live_bytes as f64 + INTERVALS_BESIDE_VALUES * interval as f64;
        let bound = needed.max(self.log_bytes_target as f64);
        self.files_bytes = bound + INTERVALS_UNTIL_REUSE * interval as f64;
        let mut over = levels.log_bytes as f64 / bound - 1.0;
        let mut per_second = SCANNED_BYTES_PER_SECOND;
        if levels.is_pressed {
            let least = PRESSED_LOG_PER_LIVE * levels.live_bytes as f64
                + PRESSED_LOG_SEGMENTS * levels.segment_bytes as f64;
            over = over.max(levels.log_bytes as f64 / least.max(1.0) - 1.0);
            per_second = PRESSED_BYTES_PER_SECOND;
        }
        self.may_scan = levels.has_old_values;
        if over <= 0.0 || !self.may_scan {
            (self.scanned_per_appended, self.scan_owed) = (0.0, 0.0);
            return;
        }
        let scanned = SCANNED_PER_APPENDED + SCANNED_MORE * over;
        self.scanned_per_appended = scanned.min(SCANNED_PER_APPENDED_MAX);
        let more = SCAN_BYTES_MORE * over + SCAN_BYTES_MORE_SQUARED * over * over;
        self.scan_bytes = (SCAN_BYTES * (1.0 + more)).min(SCAN_BYTES_MAX);
        self.scan_owed = (self.scan_owed + seconds * per_second).min(OWED_BYTES_MAX);
    }

    /// Bytes of files that the log may well need: no reason to remove any.
    pub(super) fn files_bytes(&self) -> u64 {
        (self.files_bytes as u64).max(self.files_peak.get())
    }

    /// A checkpoint was given up.
    pub(super) fn checkpoint_failed(&mut self, now: Instant) {
        self.retry_at = Some(now + RETRY);
    }

    /// Bytes of sections to be written now; 0 if it is not time yet.
    pub(super) fn take_sections(&mut self) -> usize {
        if !self.is_checkpointing || self.sections_owed < SECTIONS_BYTES_MIN {
            return 0;
        }
        std::mem::take(&mut self.sections_owed).min(SECTIONS_BYTES_MAX) as usize
    }

    /// Bytes of an old segment to be read now, if so many are owed.
    pub(super) fn scan_bytes(&self) -> Option<usize> {
        let bytes = self.scan_owed.min(self.scan_bytes);
        (bytes >= SCAN_BYTES).then_some(bytes as usize)
    }

    /// That many are being read.
    pub(super) fn scanned(&mut self, bytes: usize) {
        self.scan_owed -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn upkeep(now: Instant) -> Upkeep {
        let config = CheckpointConfig { bytes: 100 * MIB, period: Duration::from_secs(300) };
        Upkeep::new(config, 1000 * MIB, now)
    }

    /// By bytes, by time if there is anything new, and again soon after a failure.
    #[test]
    fn checkpoints_begin_when_enough_is_new() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let levels = Levels::default();
        let mut upkeep = upkeep(start);
        upkeep.appended(100 * MIB - 1, 0);
        assert!(!upkeep.tick(&levels, at(1)), "a byte is missing");
        upkeep.appended(1, 0);
        assert!(upkeep.tick(&levels, at(2)));
        assert!(!upkeep.tick(&levels, at(301)), "nothing is new");
        upkeep.appended(1, 0);
        assert!(!upkeep.tick(&levels, at(301)), "299 s after the last one");
        assert!(upkeep.tick(&levels, at(302)));
        upkeep.checkpoint_failed(at(303));
        assert!(!upkeep.tick(&levels, at(312)));
        assert!(upkeep.tick(&levels, at(313)), "also without anything new");
        upkeep.appended(100 * MIB, 0);
        let large = Levels { newest_bytes: 11 * MIB, ..levels };
        assert!(!upkeep.tick(&large, at(314)), "10 times the file is more");
        upkeep.appended(10 * MIB, 0);
        assert!(upkeep.tick(&large, at(315)));
    }

    /// A cycle takes three quarters of the bytes of an interval.
    #[test]
    fn a_cycle_is_spread_over_most_of_the_interval() {
        let start = Instant::now();
        let mut upkeep = upkeep(start);
        let levels = Levels { is_checkpointing: true, newest_bytes: 10 * MIB, ..Levels::default() };
        assert!(!upkeep.tick(&levels, start));
        let mut written = 0;
        for _ in 0..750 {
            upkeep.appended(MIB / 10, 0);
            written += upkeep.take_sections() as u64;
        }
        assert!((9 * MIB..=10 * MIB).contains(&written), "{written} of 10 MiB for 75 MiB");
        upkeep.take_sections();
        let (mut now, mut written) = (start, 0);
        while written < 10 * MIB {
            now += Duration::from_millis(25);
            upkeep.tick(&levels, now);
            written += upkeep.take_sections() as u64;
        }
        let seconds = now.duration_since(start).as_secs_f64();
        assert!((4.0..6.0).contains(&seconds), "{seconds} s for 10 MiB, idle");
        upkeep.sections_owed = 1e9;
        assert_eq!(upkeep.take_sections(), SECTIONS_BYTES_MAX as usize, "no burst");
        assert_eq!(upkeep.take_sections(), 0);
    }

    /// What the index has grown by since the newest file will be in this one as well.
    #[test]
    fn a_cycle_follows_an_index_that_grows() {
        let start = Instant::now();
        let mut upkeep = upkeep(start);
        // (newest file, index) in MiB; MiB of sections for three quarters of an interval.
        for (newest, index, want) in
            [(0, 4, 4.0), (2, 4, 2.0), (2, 7, 5.0), (5, 8, 5.0), (5, 6, 5.0)]
        {
            let (newest_bytes, index_bytes) = (newest * MIB, index * MIB);
            let levels = Levels { newest_bytes, index_bytes, ..Levels::default() };
            upkeep.tick(&Levels { is_checkpointing: false, ..levels }, start);
            upkeep.tick(&Levels { is_checkpointing: true, ..levels }, start);
            upkeep.sections_owed = 0.0;
            upkeep.appended(75 * MIB, 0);
            let owed = upkeep.sections_owed / MIB as f64;
            assert!((owed - want).abs() < 0.01, "{newest} and {index}: {owed} MiB");
        }
    }

    /// Values are moved when the log is larger than its bound, the faster the larger it is, and
    /// moves call for no moves.
    #[test]
    fn old_segments_are_emptied_at_a_pace_that_follows_the_log() {
        let start = Instant::now();
        // (live, log, appended, moved) in MiB; MiB to be read.
        let cases: &[(&str, [u64; 4], f64)] = &[
            ("small", [1, 1000, 1, 0], 0.0),
            ("just over the target", [1, 1001, 1, 0], 1.0),
            ("a tenth over the target", [1, 1100, 1, 0], 1.8),
            ("far over", [1, 9000, 1, 0], 15.26),
            ("half live", [900, 2000, 1, 0], 0.0),
            ("less than half live", [900, 2002, 1, 0], 1.0),
            ("moved values", [1, 1001, 2, 1], 1.0),
        ];
        for &(name, [live, log, appended, moved], want) in cases {
            let mut upkeep = upkeep(start);
            let (live_bytes, log_bytes) = (live * MIB, log * MIB);
            let levels = Levels { live_bytes, log_bytes, ..Levels::default() };
            upkeep.tick(&levels, start);
            upkeep.appended(appended * MIB, moved * MIB);
            assert_eq!(upkeep.scan_bytes(), None, "{name}: nothing is old enough");
            upkeep.tick(&Levels { has_old_values: true, ..levels }, start);
            upkeep.appended(appended * MIB, moved * MIB);
            let files = (2 * live + 200).max(1000) + 150;
            assert_eq!(upkeep.files_bytes(), files * MIB, "{name}");
            let owed = upkeep.scan_owed / MIB as f64;
            assert!((owed - want).abs() < 0.02, "{name}: {owed} MiB");
            let mut read = 0;
            while let Some(bytes) = upkeep.scan_bytes() {
                upkeep.scanned(bytes);
                read += bytes as u64;
            }
            assert!(read.abs_diff((owed * MIB as f64) as u64) < 262_144, "{name}: {read}");
        }
    }

    /// The further the log is over its bound, the more of an old segment is read at once, up to a
    /// limit.
    #[test]
    fn parts_of_old_segments_grow_with_the_log() {
        let start = Instant::now();
        for (log, kib) in [(1001, 260), (1100, 829), (1500, 6400), (2000, 8192), (9000, 8192)] {
            let mut upkeep = upkeep(start);
            let log_bytes = log * MIB;
            let levels = Levels { log_bytes, has_old_values: true, ..Levels::default() };
            upkeep.tick(&levels, start);
            upkeep.scan_owed = OWED_BYTES_MAX;
            let bytes = upkeep.scan_bytes().expect("more is owed than a part");
            assert_eq!(bytes as u64 / 1024, kib, "{log} MiB of log, bound 1000");
        }
    }

    /// Files that the log has needed at once are kept for a while, or they would be removed when
    /// the log is short and made anew when it is long.
    #[test]
    fn files_that_were_needed_are_kept_for_a_while() {
        let start = Instant::now();
        let mut upkeep = upkeep(start);
        for (second, in_use, kept) in [
            (0, 100, 1150),
            (1, 2000, 2000),
            (2, 1900, 2000),
            (31, 1400, 2000),
            (60, 1500, 2000),
            (62, 1000, 1500),
            (93, 1000, 1150),
        ] {
            let levels = Levels { files_bytes: in_use * MIB, ..Levels::default() };
            upkeep.tick(&levels, start + Duration::from_secs(second));
            assert_eq!(upkeep.files_bytes(), kept * MIB, "second {second}");
        }
    }

    /// Little space: values are moved as long as something is gained, also far below the bound of
    /// the log, and checkpoints are made until nothing is kept for older ones.
    #[test]
    fn with_little_space_what_can_be_freed_is_freed() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut upkeep = upkeep(start);
        let levels = |live: u64, log: u64, is_pressed: bool| Levels {
            live_bytes: live * MIB,
            log_bytes: log * MIB,
            has_old_values: true,
            segment_bytes: 10 * MIB,
            newest_bytes: 8_000_000,
            is_pressed,
            ..Levels::default()
        };
        for (live, log, is_pressed, moves) in [
            (10, 80, false, false),
            (10, 80, true, true),
            (10, 32, true, true),
            (10, 31, true, false),
            (80, 100, true, false),
            (80, 111, true, true),
        ] {
            upkeep.scan_owed = 0.0;
            upkeep.tick(&levels(live, log, is_pressed), at(0));
            upkeep.appended(MIB, 0);
            let case = format!("{live} live of {log}, {is_pressed}");
            assert_eq!(upkeep.scan_bytes().is_some(), moves, "{case}");
        }
        let pressed = levels(10, 31, true);
        assert!(!upkeep.tick(&levels(10, 31, false), at(3)), "there is space");
        assert!(!upkeep.tick(&pressed, at(1)), "too soon: 2 s with this length");
        assert!(upkeep.tick(&pressed, at(2)));
        assert!(upkeep.tick(&pressed, at(4)), "the second that is kept");
        assert!(!upkeep.tick(&pressed, at(60)), "a third would free nothing");
        upkeep.appended(1, 0);
        assert!(upkeep.tick(&pressed, at(61)));
        assert!(upkeep.tick(&pressed, at(63)));
        assert!(!upkeep.tick(&pressed, at(100)));
    }
}
