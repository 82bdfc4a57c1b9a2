//! What a core does when its disk, or those of its followers, fill up.
//!
//! The driver measures how many bytes the log can still grow by, a [`SpaceGauge`] makes a level of
//! it, and [`crate::Input::Space`] tells the core. Cores with the same groups tell each other, so
//! that a leader refuses what no majority could write down, before it is in anybody's log.

use coracle_raft::{Body, EntryKind, Message, SendState};

use crate::core::Core;
use crate::task::disk_full;
use crate::{CoreAddr, PeerMessage, Reply};

/// Ticks between two looks at leaderships that another disk could serve better.
const SHED_TICKS: u64 = 16;
/// Entries that a follower may lack and still get a leadership because its disk has space.
const BEHIND_ENTRIES_MAX: u64 = 1024;
/// What another core said about its disk holds for so many of its reports.
const REPORTS_MISSED_MAX: u64 = 3;

/// How full the disk of a core is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskSpace {
    /// There is space.
    #[default]
    Ample,
    /// What is left is for deleting: writes that add data are refused.
    Low,
    /// What is left is for making space: moved values and checkpoints. All writes are refused.
    Scarce,
    /// What is left is for elections: not even commands of a leader are taken.
    Out,
}

impl DiskSpace {
    /// Levels from the best one to the worst.
    pub const ALL: [Self; 4] = [Self::Ample, Self::Low, Self::Scarce, Self::Out];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ample => "ok",
            Self::Low => "low",
            Self::Scarce => "scarce",
            Self::Out => "out",
        }
    }

    /// It begins with fewer than so many segments.
    const fn segments(self) -> u64 {
        match self {
            Self::Ample => u64::MAX,
            Self::Low => 5,
            Self::Scarce => 3,
            Self::Out => 1,
        }
    }
}

/// Makes a level of what is left on a disk; it gets better only when that is a segment more than
/// what made it worse.
///
/// Between two levels lies what is needed in between. While only deletes are taken, two segments
/// may be filled with them. While nothing is taken, the values in use of a whole segment can still
/// be moved, and with it the oldest segment is free. The last segment has room for many terms and
/// votes.
#[derive(Clone, Copy, Debug)]
pub struct SpaceGauge {
    segment_bytes: u64,
    level: DiskSpace,
}

impl SpaceGauge {
    /// A gauge for a log with segments of this size, which must not be 0.
    pub const fn new(segment_bytes: u64) -> Self {
        assert!(segment_bytes > 0, "a segment has bytes");
        Self { segment_bytes, level: DiskSpace::Ample }
    }

    /// The level now.
    pub const fn level(&self) -> DiskSpace {
        self.level
    }

    /// So many bytes can still be written; the new level if it is another one.
    pub fn update(&mut self, room_bytes: u64) -> Option<DiskSpace> {
        let is_below = |level: DiskSpace, more: u64| {
            level != DiskSpace::Ample
                && room_bytes < (level.segments() + more).saturating_mul(self.segment_bytes)
        };
        let worst = |more: u64| {
            let mut levels = DiskSpace::ALL.into_iter().rev();
            levels.find(|&level| is_below(level, more)).unwrap_or_default()
        };
        let level = self.level.clamp(worst(0), worst(1));
        (level != self.level).then(|| {
            self.level = level;
            level
        })
    }
}

impl Core {
    /// The level of this core's disk, as it was told last.
    pub const fn disk_space(&self) -> DiskSpace {
        self.space
    }

    /// The driver has measured another level.
    pub(crate) fn space_changed(&mut self, space: DiskSpace) {
        self.space = space;
        self.report_space();
    }

    /// Tells the cores with the same groups how full this core's disk is, as long as it matters.
    pub(crate) fn space_tick(&mut self) {
        let reports = self.ticks.is_multiple_of(u64::from(self.config.leads_interval_ticks));
        if reports && self.space != DiskSpace::Ample {
            self.report_space();
        }
    }

    fn report_space(&mut self) {
        let (here, space) = (self.config.addr, self.space);
        let others =
            self.config.map.cores().filter(|to| to.core == here.core && to.node != here.node);
        self.sends.extend(others.map(|to| (to, PeerMessage::Space(space))));
    }

    /// Another core has told how full its disk is.
    pub(crate) fn space_reported(&mut self, from: CoreAddr, space: DiskSpace) {
        let tick = self.ticks;
        if let Some(link) = self.links.get_mut(&from) {
            link.space = (space, tick);
        }
    }

    /// How full the disk of another core is, as far as is known.
    fn space_of(&self, addr: CoreAddr) -> DiskSpace {
        let holds = REPORTS_MISSED_MAX * u64::from(self.config.leads_interval_ticks);
        match self.links.get(&addr).map(|link| link.space) {
            Some((space, tick)) if self.ticks - tick <= holds => space,
            _ => DiskSpace::Ample,
        }
    }

    /// Whether a majority of the group's replicas are at most that full.
    fn majority_has(&self, place: usize, worst: DiskSpace) -> bool {
        let core = self.config.addr.core;
        let (mut replicas, mut with_space) = (0, 0);
        for node in self.config.map.replicas(self.groups[place].id) {
            let addr = CoreAddr { node, core };
            let space = if addr == self.config.addr { self.space } else { self.space_of(addr) };
            replicas += 1;
            with_space += usize::from(space <= worst);
        }
        2 * with_space > replicas
    }

    /// `None` if the disks have room for the write.
    pub(crate) fn admit_to_disk(&mut self, place: usize, adds_data: bool) -> Option<Reply> {
        let (here, majority) = match adds_data {
            true => (DiskSpace::Ample, DiskSpace::Ample),
            false => (DiskSpace::Low, DiskSpace::Scarce),
        };
        if self.space <= here && self.majority_has(place, majority) {
            return None;
        }
        self.counters.refused_disk += 1;
        Some(disk_full(adds_data))
    }

    /// Whether a message of a leader may go to the log: on a disk with space for elections only,
    /// nothing is taken but what needs no space.
    pub(crate) fn has_space_for(&mut self, message: &Message) -> bool {
        let grows = match &message.body {
            Body::Append { entries, .. } => {
                entries.iter().any(|entry| entry.kind == EntryKind::Command)
            }
            Body::Snapshot { .. } => true,
            _ => false,
        };
        let fits = !grows || self.space < DiskSpace::Out;
        self.counters.dropped_disk += u64::from(!fits);
        fits
    }

    /// Hands a leadership that cannot take writes for want of space to a follower that can.
    pub(crate) fn shed_for_space(&mut self, place: usize) {
        let due = self.space >= DiskSpace::Low && self.ticks.is_multiple_of(SHED_TICKS);
        if !due || !self.groups[place].leads() || !self.majority_has(place, DiskSpace::Ample) {
            return;
        }
        let core = self.config.addr.core;
        let raft = &self.groups[place].raft;
        let followers = raft.progress().filter(|&(node, progress)| {
            progress.state == SendState::Replicate
                && raft.commit().since(progress.matched) <= BEHIND_ENTRIES_MAX
                && self.has_contact(CoreAddr { node, core })
                && self.space_of(CoreAddr { node, core }) == DiskSpace::Ample
        });
        let Some((to, _)) = followers.max_by_key(|(_, progress)| progress.matched) else { return };
        if self.groups[place].raft.transfer_leadership(to).is_ok() {
            self.counters.leaderships_shed += 1;
            self.mark(place);
        }
    }

    fn has_contact(&self, addr: CoreAddr) -> bool {
        self.links.get(&addr).is_some_and(|link| link.up)
    }

    /// Whether the disk of `addr` is filling up, as far as is known.
    pub(crate) fn is_short_of_space(&self, addr: CoreAddr) -> bool {
        self.space_of(addr) != DiskSpace::Ample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worse at once, better only with a segment more: room in tenths of a segment.
    #[test]
    fn levels_have_hysteresis() {
        use DiskSpace::{Ample, Low, Out, Scarce};
        let steps = [
            (50, Ample),
            (49, Low),
            (59, Low),
            (30, Low),
            (60, Ample),
            (29, Scarce),
            (39, Scarce),
            (40, Low),
            (10, Scarce),
            (9, Out),
            (19, Out),
            (20, Scarce),
            (0, Out),
            (1000, Ample),
            (0, Out),
            (55, Low),
        ];
        let mut gauge = SpaceGauge::new(10);
        let mut before = Ample;
        for (step, (room, want)) in steps.into_iter().enumerate() {
            let changed = gauge.update(room);
            assert_eq!(gauge.level(), want, "step {step}: {room}");
            assert_eq!(changed, (want != before).then_some(want), "step {step}: {room}");
            before = want;
        }
        assert_eq!(SpaceGauge::new(u64::MAX / 2).update(u64::MAX), None, "no overflow");
    }
}
