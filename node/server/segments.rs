//! Segment work of one log: handed to the background one task at a time, never lost when the
//! background takes none, and not repeated in a loop while the disk is full.

use coracle_wal::{Disk, SegmentDone, Wal, WalError};

use super::background::{Background, Job};
use super::pace::Pace;

/// Ticks between two attempts to make a segment on a full disk.
const FULL_PAUSE_TICKS: u32 = 20;

/// The segment work of one log.
pub(super) struct Segments<D: Disk> {
    background: Background<SegmentDone<D::File>>,
    /// A task that the background did not take; the log waits for its result.
    refused: Option<Job<SegmentDone<D::File>>>,
    /// The last attempt to make a segment found no space.
    full: bool,
    granted: Option<bool>,
    pause_ticks: u32,
    pace: Pace,
}

impl<D: Disk> Segments<D> {
    /// Runs tasks on `background`.
    pub(super) fn new(background: Background<SegmentDone<D::File>>) -> Self {
        let pace = Pace::default();
        Self { background, refused: None, full: false, granted: None, pause_ticks: 0, pace }
    }

    /// Hands over the next task, if one is wanted and the disk may be asked.
    pub(super) fn submit(&mut self, wal: &mut Wal<D>) {
        self.pace.hurry(wal.spare_count() == 0);
        if self.pause_ticks > 0 {
            return;
        }
        let refused_before = self.refused.is_some();
        let job = match self.refused.take() {
            Some(job) => job,
            None => {
                let Some(task) = wal.wanted_segments().pop() else { return };
                let (disk, pace) = (wal.disk().clone(), self.pace.clone());
                Box::new(move || {
                    let mut filling = pace.begin();
                    task.run_paced(&disk, &mut |bytes| filling.wait(bytes))
                })
            }
        };
        if let Err(job) = self.background.submit(job) {
            if !refused_before {
                tracing::warn!(target: "wal", "the background takes no work; trying every tick");
            }
            self.refused = Some(job);
            self.pause_ticks = 1;
        }
    }

    /// Whether the disk had space for the last segment that was to be made, if one was since the
    /// last call.
    pub(super) const fn take_granted(&mut self) -> Option<bool> {
        self.granted.take()
    }

    /// The log has grown: new segments are filled at a pace that follows it.
    pub(super) fn appended(&self, bytes: u64) {
        self.pace.appended(bytes);
    }

    /// Takes finished work.
    pub(super) fn take_finished(&mut self, wal: &mut Wal<D>) -> Result<(), WalError> {
        while let Some(done) = self.background.finished() {
            let took_space = done.took_space();
            let ready = wal.segment_ready(done);
            if took_space || matches!(ready, Err(WalError::NoSpace { .. })) {
                self.granted = Some(ready.is_ok());
            }
            match ready {
                // Old files can become new segments, or be removed, on a disk that stays full.
                Ok(()) if self.full && took_space => {
                    self.full = false;
                    tracing::info!(target: "wal", "segments can be made again");
                }
                Ok(()) => {}
                Err(error @ WalError::NoSpace { .. }) => {
                    self.pause_ticks = FULL_PAUSE_TICKS;
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::error!(
                            target: "wal", %error,
                            "no space for a segment; it is tried again and again"
                        );
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A tick has passed.
    pub(super) fn tick(&mut self) {
        self.pause_ticks = self.pause_ticks.saturating_sub(1);
        self.background.nudge();
    }
}

impl<D: Disk> Drop for Segments<D> {
    /// The end of the background waits for the running task.
    fn drop(&mut self) {
        self.pace.hurry(true);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use coracle_wal::{DiskOp, MemDisk, MemFile, Options, recover};

    use super::*;

    fn empty_log() -> (MemDisk, Wal<MemDisk>) {
        let disk = MemDisk::new();
        let options = Options {
            segment_bytes: 64 << 10,
            batch_bytes_max: 16 << 10,
            groups_max: 16,
            ..Options::default()
        };
        let (wal, _) = recover(disk.clone(), options, &mut |_, _| {}).expect("an empty log");
        (disk, wal)
    }

    struct Rig {
        disk: MemDisk,
        wal: Wal<MemDisk>,
        segments: Segments<MemDisk>,
        woken: Receiver<()>,
    }

    impl Rig {
        fn new() -> Self {
            let (disk, wal) = empty_log();
            let (wake, woken) = channel();
            let woke = move || wake.send(()).unwrap_or_default();
            let background = Background::start(0, 0, woke).expect("a thread");
            Self { disk, wal, segments: Segments::new(background), woken }
        }

        /// Waits for one finished job and takes it.
        fn finish(&mut self) {
            while self.woken.recv_timeout(Duration::from_millis(10)).is_err() {
                self.segments.background.nudge();
            }
            self.segments.take_finished(&mut self.wal).expect("nothing final");
        }
    }

    /// A job that is about another log.
    fn foreign_job() -> Job<SegmentDone<MemFile>> {
        let (disk, mut wal) = empty_log();
        let task = wal.wanted_segments().pop().expect("an empty log wants a segment");
        Box::new(move || task.run(&disk))
    }

    /// The log hands out no second task until it has the result of the first, so one that the
    /// background refuses must be kept.
    #[test]
    fn a_refused_task_is_kept_and_handed_over_later() {
        let mut rig = Rig::new();
        let background = &mut rig.segments.background;
        let ((began, begins), (release, released)) = (channel(), channel::<()>());
        let first = foreign_job();
        let blocking = Box::new(move || {
            began.send(()).expect("the test waits");
            released.recv().expect("the test goes on");
            first()
        });
        assert!(background.submit(blocking).is_ok(), "an empty queue takes a job");
        while begins.recv_timeout(Duration::from_millis(10)).is_err() {
            background.nudge();
        }
        while background.submit(foreign_job()).is_ok() {}
        rig.segments.submit(&mut rig.wal);
        assert!(rig.segments.refused.is_some(), "the queue is full");
        assert!(rig.wal.wanted_segments().is_empty(), "the log waits for the task");

        release.send(()).expect("the job waits");
        // Results of foreign jobs are no news for this log.
        for _ in 0..2 {
            while rig.segments.background.finished().is_none() {
                rig.segments.background.nudge();
                let _ = rig.woken.recv_timeout(Duration::from_millis(10));
            }
        }
        rig.segments.submit(&mut rig.wal);
        assert!(rig.segments.refused.is_some(), "it pauses until the next tick");
        rig.segments.tick();
        rig.segments.submit(&mut rig.wal);
        assert!(rig.segments.refused.is_none(), "the queue has room again");
        // Its result comes last.
        while !rig.wal.can_seal() {
            rig.segments.background.nudge();
            if let Some(done) = rig.segments.background.finished()
                && rig.segments.background.is_idle()
            {
                rig.wal.segment_ready(done).expect("prepared");
            }
        }
    }

    /// A full disk is asked again after a pause, and serves again when it has space (fault
    /// matrix, row 11).
    #[test]
    fn a_full_disk_is_asked_in_intervals() {
        let mut rig = Rig::new();
        for attempt in 0..3 {
            rig.disk.fail(DiskOp::Write, 0, io::ErrorKind::StorageFull);
            rig.segments.submit(&mut rig.wal);
            rig.finish();
            assert!(rig.segments.full && !rig.wal.can_seal(), "attempt {attempt}");
            for tick in 0..FULL_PAUSE_TICKS {
                rig.segments.submit(&mut rig.wal);
                assert!(rig.segments.background.is_idle(), "tick {tick} of the pause");
                rig.segments.tick();
            }
        }
        rig.segments.submit(&mut rig.wal);
        rig.finish();
        assert!(!rig.segments.full && rig.wal.can_seal());
        rig.segments.submit(&mut rig.wal);
        rig.finish();
        assert!(rig.wal.wanted_segments().is_empty(), "all spares are there, without a pause");
    }
}
