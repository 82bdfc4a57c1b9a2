//! How much the log of a core can still grow, and what that means: measured in the background,
//! kept up to date by what the log takes in between.

use coracle_engine::{DiskSpace, SpaceGauge};

/// Ticks between two looks at the file system.
const MEASURE_TICKS: u32 = 10;
/// The next checkpoint is expected to be longer than the newest one by this part of it...
const CHECKPOINT_GROWTH: u64 = 4;
/// ... and by this.
const CHECKPOINT_MORE_BYTES: u64 = 1 << 20;
/// With room for fewer segments, old ones are emptied although the log is not too large.
const PRESSED_SEGMENTS: u64 = 8;

/// Ticks for which nothing is believed of a disk that had no space although it said so...
const DISBELIEF_TICKS: u32 = 40;
/// ... at most, after several times in a row.
const DISBELIEF_TICKS_MAX: u32 = 2400;

/// What is known at a tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    /// Bytes of the log's files.
    pub(super) log_bytes: u64,
    /// Bytes that can be appended without a new file.
    pub(super) reserved_bytes: u64,
    /// A segment is being made that is in neither: how much of it the disk has given is not known.
    pub(super) is_taking_space: bool,
    /// The newest checkpoint, or what the first one may have.
    pub(super) checkpoint_bytes: u64,
}

/// The room of one core's log.
#[derive(Debug)]
pub(in super::super) struct Room {
    gauge: SpaceGauge,
    segment_bytes: u64,
    /// Cores of the node, which share its disk.
    cores: u64,
    /// Bytes that this core may take; `None`: what the disk has.
    bytes_max: Option<u64>,
    /// Bytes that the file system had, and the log then.
    measured: Option<(u64, u64)>,
    measure_in_ticks: u32,
    /// Ticks until the file system is believed again, and how long that took last.
    disbelief_ticks: u32,
    disbelief_last: u32,
    free_bytes: u64,
    room_bytes: u64,
    is_thrifty: bool,
}

impl Room {
    /// `bytes_max` is for all cores of the node.
    pub(in super::super) fn new(segment_bytes: u64, cores: u16, bytes_max: Option<u64>) -> Self {
        let cores = u64::from(cores.max(1));
        Self {
            gauge: SpaceGauge::new(segment_bytes),
            segment_bytes,
            cores,
            bytes_max: bytes_max.map(|bytes| bytes / cores),
            measured: None,
            measure_in_ticks: 0,
            disbelief_ticks: 0,
            disbelief_last: 0,
            free_bytes: 0,
            room_bytes: u64::MAX,
            is_thrifty: false,
        }
    }

    /// Whether the file system is to be asked again now; called once per tick.
    pub(super) const fn is_measuring_due(&mut self) -> bool {
        self.disbelief_ticks = self.disbelief_ticks.saturating_sub(1);
        if self.measure_in_ticks == 0 {
            self.measure_in_ticks = MEASURE_TICKS;
            return true;
        }
        self.measure_in_ticks -= 1;
        false
    }

    /// The file system has so many bytes for new files.
    pub(super) fn measured(&mut self, available_bytes: u64, sizes: &Sizes) {
        if self.disbelief_ticks > 0 {
            return;
        }
        let mut available = available_bytes;
        if sizes.is_taking_space
            && let Some(before) = self.estimate(sizes)
        {
            // Between nothing and all of the segment is gone already: only what cannot be
            // explained by that is news.
            let least = before.saturating_sub(self.segment_bytes);
            if (least..=before).contains(&available) {
                return;
            }
            available += if available < least { self.segment_bytes } else { 0 };
        }
        self.measured = Some((available, sizes.log_bytes));
    }

    /// The disk had no space for a segment, whatever it says.
    pub(super) fn refused(&mut self, sizes: &Sizes) {
        self.measured = Some((0, sizes.log_bytes));
        let longer = (2 * self.disbelief_last).clamp(DISBELIEF_TICKS, DISBELIEF_TICKS_MAX);
        (self.disbelief_ticks, self.disbelief_last) = (longer, longer);
    }

    /// The disk had space for a segment.
    pub(super) const fn granted(&mut self) {
        (self.disbelief_ticks, self.disbelief_last) = (0, 0);
    }

    /// Bytes that the file system has, without those of a segment that is being made.
    fn estimate(&self, sizes: &Sizes) -> Option<u64> {
        let (available, log_then) = self.measured?;
        let freed = log_then.saturating_sub(sizes.log_bytes);
        Some((available + freed).saturating_sub(sizes.log_bytes.saturating_sub(log_then)))
    }

    /// Looks at the sizes; the new level if it is another one.
    pub(super) fn look(&mut self, sizes: &Sizes) -> Option<DiskSpace> {
        let &Sizes { log_bytes, reserved_bytes, is_taking_space, checkpoint_bytes } = sizes;
        let coming = if is_taking_space { self.segment_bytes } else { 0 };
        let shared = self.estimate(sizes).map(|free| free.saturating_sub(coming) / self.cores);
        // Both kept checkpoints count.
        let used = log_bytes + coming + 2 * checkpoint_bytes;
        let own = self.bytes_max.map(|bytes_max| bytes_max.saturating_sub(used));
        let free = shared.into_iter().chain(own).min()?;
        self.free_bytes = free;
        let next = checkpoint_bytes + checkpoint_bytes / CHECKPOINT_GROWTH + CHECKPOINT_MORE_BYTES;
        let for_log = free.saturating_sub(next);
        self.is_thrifty = for_log < self.segment_bytes;
        // What is not a whole segment cannot be used.
        self.room_bytes =
            reserved_bytes + coming + for_log / self.segment_bytes * self.segment_bytes;
        self.gauge.update(self.room_bytes)
    }

    /// The level now.
    pub(super) const fn level(&self) -> DiskSpace {
        self.gauge.level()
    }

    /// Bytes that this core may still take of the disk.
    pub(super) const fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Whether old segments are to be emptied, and checkpoints made, to gain space.
    pub(super) fn is_pressed(&self) -> bool {
        self.level() > DiskSpace::Ample || self.room_bytes < PRESSED_SEGMENTS * self.segment_bytes
    }

    /// Whether what is free is needed for the next checkpoint, without which nothing gets free.
    pub(super) const fn is_thrifty(&self) -> bool {
        self.is_thrifty
    }

    /// Whether values may be written again to gain space.
    pub(super) fn may_move(&self) -> bool {
        self.level() < DiskSpace::Out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sizes(log: u64, reserved: u64, checkpoint: u64) -> Sizes {
        Sizes {
            log_bytes: log * MIB,
            reserved_bytes: reserved * MIB,
            checkpoint_bytes: checkpoint * MIB,
            is_taking_space: false,
        }
    }

    /// Room is what is at hand, and whole segments of what is free beyond the next checkpoint.
    #[test]
    fn room_is_what_the_log_can_use() {
        // (free, reserved, checkpoint) in MiB, with segments of 10; the level, thrifty, pressed.
        let cases = [
            (1000, 20, 0, DiskSpace::Ample, false, false),
            (61, 20, 0, DiskSpace::Ample, false, false),
            (60, 20, 0, DiskSpace::Ample, false, true),
            (31, 20, 0, DiskSpace::Ample, false, true),
            (30, 20, 0, DiskSpace::Low, false, true),
            (65, 20, 36, DiskSpace::Low, false, true),
            (55, 20, 36, DiskSpace::Scarce, true, true),
            (10, 20, 0, DiskSpace::Scarce, true, true),
            (0, 10, 0, DiskSpace::Scarce, true, true),
            (0, 9, 0, DiskSpace::Out, true, true),
        ];
        for (free, reserved, checkpoint, level, thrifty, pressed) in cases {
            let mut room = Room::new(10 * MIB, 1, None);
            assert_eq!(room.look(&sizes(100, 0, 0)), None, "nothing was measured");
            room.measured(free * MIB, &sizes(100, 0, 0));
            room.look(&sizes(100, reserved, checkpoint));
            let case = format!("{free} free, {reserved} reserved, {checkpoint}");
            assert_eq!(room.level(), level, "{case}");
            assert_eq!((room.is_thrifty(), room.is_pressed()), (thrifty, pressed), "{case}");
        }
    }

    /// What the log takes after the last look at the disk counts, and what it gives back; cores
    /// share the disk, and a bound of its own holds beside that.
    #[test]
    fn room_follows_the_log_between_two_looks() {
        let mut room = Room::new(10 * MIB, 2, Some(400 * MIB));
        room.measured(121 * MIB, &sizes(100, 0, 0));
        room.look(&sizes(100, 20, 0));
        assert_eq!(room.free_bytes(), 121 * MIB / 2);
        room.look(&sizes(141, 20, 0));
        assert_eq!((room.free_bytes(), room.level()), (40 * MIB, DiskSpace::Ample));
        room.look(&sizes(190, 20, 0));
        assert_eq!((room.free_bytes(), room.level()), (10 * MIB, DiskSpace::Scarce));
        room.look(&sizes(40, 20, 0));
        assert_eq!((room.free_bytes(), room.level()), (181 * MIB / 2, DiskSpace::Ample));
        room.measured(10_000 * MIB, &sizes(150, 0, 0));
        room.look(&sizes(150, 20, 3));
        assert_eq!(room.free_bytes(), 44 * MIB, "the bound is closer");
    }

    /// A segment that is being made counts once, however much of it is there: the level does not
    /// move. What others take or give back meanwhile counts.
    #[test]
    fn a_segment_on_its_way_changes_nothing() {
        let mut room = Room::new(10 * MIB, 1, None);
        let (before, after) = (sizes(100, 15, 0), sizes(110, 25, 0));
        let during = Sizes { is_taking_space: true, ..before };
        room.measured(41 * MIB, &before);
        room.look(&before);
        assert_eq!(room.room_bytes, 55 * MIB);
        for available in [41, 38, 31] {
            room.measured(available * MIB, &during);
            assert_eq!(room.look(&during), None);
            assert_eq!((room.room_bytes, room.free_bytes()), (55 * MIB, 31 * MIB), "{available}");
        }
        room.look(&after);
        assert_eq!((room.room_bytes, room.free_bytes()), (55 * MIB, 31 * MIB));
        room.measured(21 * MIB, &during);
        room.look(&during);
        assert_eq!((room.room_bytes, room.free_bytes()), (45 * MIB, 21 * MIB), "others took ten");
        room.measured(91 * MIB, &during);
        room.look(&during);
        assert_eq!(room.free_bytes(), 81 * MIB, "and gave some back");
    }

    /// A disk that has no space although it says so is not believed for a while, the longer the
    /// more often.
    #[test]
    fn a_disk_that_refuses_is_full() {
        let mut room = Room::new(10 * MIB, 1, None);
        let now = sizes(100, 20, 0);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            room.measured(1000 * MIB, &now);
            room.look(&now);
            assert_eq!(room.level(), DiskSpace::Ample);
            room.refused(&now);
            assert_eq!(room.look(&now), Some(DiskSpace::Scarce));
            let mut ticks = 0;
            while room.level() != DiskSpace::Ample {
                room.is_measuring_due();
                room.measured(1000 * MIB, &now);
                room.look(&now);
                ticks += 1;
            }
            pauses.push(ticks);
        }
        assert_eq!(pauses, [40, 80, 160, 320, 640, 1280, 2400, 2400, 2400]);
        room.granted();
        room.refused(&now);
        assert_eq!(room.disbelief_ticks, 40);
    }

    #[test]
    fn the_disk_is_asked_in_intervals() {
        let mut room = Room::new(10 * MIB, 1, None);
        let asked: Vec<usize> = (0..25).filter(|_| room.is_measuring_due()).collect();
        assert_eq!(asked, [0, 11, 22]);
    }
}
