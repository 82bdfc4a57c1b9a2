//! Disk space: segments are prepared ahead of use and let go when nothing in them is needed.

use std::io;

use coracle_raft::{BatchSeq, Bug, GroupId, planted};

use crate::format::BLOCK_BYTES;
use crate::groups::Before;
use crate::segment::{Job, SegmentDone, SegmentId, SegmentTask, is_full};
use crate::wal::{OnDurable, Release, Retired};
use crate::{Disk, Lsn, Wal, WalError};

impl<D: Disk> Wal<D> {
    /// Slow file work to be run elsewhere, see [`SegmentTask`]; its result goes to
    /// [`Wal::segment_ready`]. Ask after each turn: one task at a time is handed out, because the
    /// order of what happens to the files matters.
    pub fn wanted_segments(&mut self) -> Vec<SegmentTask> {
        if self.latched || self.task_running {
            return Vec::new();
        }
        let job = self.wanted_job();
        self.task_running = job.is_some();
        self.is_taking_space = matches!(job, Some(Job::Prepare { recycle: None, .. }));
        job.map(|job| SegmentTask { job }).into_iter().collect()
    }

    /// Segments that are ready and not yet in use.
    pub fn spare_count(&self) -> usize {
        let ahead = self
            .segments
            .iter()
            .rev()
            .take_while(|segment| Some(SegmentId::new(segment.header.number)) > self.active);
        ahead.filter(|segment| segment.file.is_some()).count()
    }

    fn wanted_job(&mut self) -> Option<Job> {
        let wanted = self.spare_count() < self.options.spare_max;
        let old = self.retired.front();
        // Some old files are kept to become new segments; what cannot be used goes at once.
        let files = self.segments.len() + self.retired.len();
        let many = self.retired.len() > self.options.spare_max && files > self.files_kept;
        if let Some(old) = old.filter(|old| !old.reusable || many) {
            return Some(Job::Remove { name: old.name.clone() });
        }
        if !wanted || (self.is_thrifty && old.is_none() && self.spare_count() > 0) {
            return None;
        }
        let recycle = old.map(|old| old.name.clone());
        let planned = self.segments.iter().find(|segment| segment.file.is_none());
        let header = match planned {
            Some(segment) => segment.header,
            None => self.plan_segment(),
        };
        Some(Job::Prepare { header, recycle })
    }

    /// From now on files of which nothing is needed are kept, to become new segments, as long as
    /// the log has at most `count` in all. Otherwise as many are kept as segments are made ahead.
    ///
    /// What is released in clumps is used up slowly: a file that is kept need not be filled with
    /// zeros again.
    pub const fn keep_files(&mut self, count: usize) {
        self.files_kept = count;
    }

    /// From now on no more space is taken from the disk than the log cannot do without: a new file
    /// is made only when no segment is ready. Files of which nothing is needed are used as ever.
    pub const fn be_thrifty(&mut self, thrifty: bool) {
        self.is_thrifty = thrifty;
    }

    /// Bytes that can be written without taking space from the disk: in segments at hand, and in
    /// those made from files of which nothing is needed.
    pub fn reserved_bytes(&self) -> u64 {
        let reusable = self.retired.iter().filter(|retired| retired.reusable).count() as u64;
        self.free_bytes() + reusable * (self.options.segment_bytes - BLOCK_BYTES as u64)
    }

    /// Whether a file is being made that takes its space from the disk bit by bit.
    pub const fn is_taking_space(&self) -> bool {
        self.is_taking_space
    }

    /// Takes the result of a [`SegmentTask`].
    ///
    /// # Errors
    /// [`WalError::NoSpace`] is not latched: the task is handed out again, when to run it is the
    /// driver's choice. Every other error is final.
    pub fn segment_ready(&mut self, done: SegmentDone<D::File>) -> Result<(), WalError> {
        (self.task_running, self.is_taking_space) = (false, false);
        let (file, recycled) = match &done.job {
            Job::Prepare { header, recycle } => {
                (SegmentId::new(header.number).file_name(), recycle.is_some())
            }
            Job::Remove { name } => (name.clone(), true),
        };
        let opened = match done.result {
            Ok(opened) => opened,
            Err(source) => return Err(self.segment_failed(file, recycled, source)),
        };
        if recycled {
            let old = self.retired.pop_front();
            self.released.extend(old.and_then(|old| old.segment));
        }
        if let Job::Prepare { header, .. } = done.job {
            let segment = self.segment_mut(SegmentId::new(header.number));
            let segment = segment.expect("a segment that is being prepared is planned");
            segment.file = opened;
        }
        Ok(())
    }

    fn segment_failed(&mut self, file: String, recycled: bool, source: io::Error) -> WalError {
        let file = self.disk.display(&file);
        if !is_full(&source) {
            self.latched = true;
            return WalError::Segment { file, source };
        }
        if recycled {
            // It may have lost its name halfway: make sure of that, then go on without it.
            if let Some(old) = self.retired.front_mut() {
                old.reusable = false;
            }
        }
        WalError::NoSpace { file, source }
    }

    /// Runs all segment work here and now; for start-up and for drivers that may block.
    ///
    /// # Errors
    /// As [`Wal::segment_ready`].
    pub fn prepare_segments(&mut self) -> Result<(), WalError> {
        while let Some(task) = self.wanted_segments().pop() {
            let done = task.run(&self.disk);
            self.segment_ready(done)?;
        }
        Ok(())
    }

    /// Segments whose files are gone since the last call; the driver forgets their handles.
    pub fn take_released(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.released)
    }

    /// State records of the group put before `position` are superseded: recovery does not need
    /// them any more. Takes effect once everything appended so far is on disk, so it may be
    /// called as soon as the superseding records are appended.
    ///
    /// Take the position from [`Wal::position`] before appending the first record that must stay.
    pub fn release_state_before(&mut self, group: GroupId, position: Lsn) {
        self.release_state(group, Before::Position(position));
    }

    /// As [`Wal::release_state_before`], for state records appended with batch numbers below
    /// `batch`; those of earlier processes count as older than all of this one.
    pub fn release_state_before_batch(&mut self, group: GroupId, batch: BatchSeq) {
        self.release_state(group, Before::Batch(batch));
    }

    fn release_state(&mut self, group: GroupId, before: Before) {
        if self.latched || !self.groups.contains_key(&group) {
            return;
        }
        self.release(Release::State(group, before));
    }

    /// No value is needed any more in segments before this one, whoever referred to it. Takes
    /// effect once everything appended so far is on disk, so it may be called as soon as the
    /// values that are still needed are appended again. What is appended after it is not meant,
    /// however large the number is.
    ///
    /// After recovery all values are needed, until this is called.
    pub fn release_values_before(&mut self, segment: u64) {
        let active = self.active.map_or(0, SegmentId::number);
        let segment = SegmentId::new(segment.min(active));
        let waiting = self.releases.iter().rev().find_map(|(_, release)| match release {
            Release::ValuesBefore(from) => Some(*from),
            Release::State(..) => None,
        });
        if !self.latched && segment > waiting.unwrap_or(self.values_from) {
            self.release(Release::ValuesBefore(segment));
        }
    }

    fn release(&mut self, release: Release) {
        self.releases.push_back((self.position(), release));
        self.apply_releases();
        self.retire_segments();
    }

    /// Position of the oldest segment that the group needs, if it needs any. The groups with the
    /// lowest one keep the log from being recycled.
    pub fn oldest_needed(&self, group: GroupId) -> Option<Lsn> {
        let oldest = self.groups.get(&group)?.oldest_segment()?;
        self.segment(oldest).map(|segment| segment.header.first_lsn)
    }

    pub(crate) fn apply_durable(&mut self, effect: OnDurable) {
        let freed = match effect {
            OnDurable::Purge(group, base) => {
                self.groups.get_mut(&group).map(|state| state.purge_durable(base))
            }
            OnDurable::Reset(group, segment) => {
                self.groups.get_mut(&group).map(|state| state.reset_durable(segment))
            }
        };
        for segment in freed.unwrap_or_default() {
            self.release_use(segment);
        }
    }

    pub(crate) fn apply_releases(&mut self) {
        // Nothing pending counts as durable up to where the next record goes.
        let idle = self.open.is_none() && self.closed.is_empty() && self.inflight.is_empty();
        while let Some(&(needed, release)) = self.releases.front() {
            if !idle && needed > self.durable {
                return;
            }
            self.releases.pop_front();
            let (group, before) = match release {
                Release::State(group, before) => (group, before),
                Release::ValuesBefore(segment) => {
                    self.values_from = self.values_from.max(segment);
                    continue;
                }
            };
            let state = self.groups.get_mut(&group);
            for segment in state.map(|state| state.state_released(before)).unwrap_or_default() {
                self.release_use(segment);
            }
        }
    }

    /// A group needs nothing of this segment any more.
    pub(crate) fn release_use(&mut self, id: SegmentId) {
        let segment = self.segment_mut(id).expect("a segment in use is known");
        assert!(segment.groups > 0, "{id} is released more often than it was used");
        segment.groups -= 1;
    }

    /// Moves the start of the log proper past segments that recovery needs no more, never past
    /// one that it needs: entries in an older segment may have been overwritten by those in it.
    fn advance_log_start(&mut self) {
        let spared = usize::from(planted(Bug::SegmentRecycledInUse));
        while let Some(segment) = self.segment(self.log_start) {
            let id = self.log_start;
            let pinned = || self.groups.values().any(|group| group.pin == Some(id));
            if segment.groups > spared || Some(id) >= self.restated || pinned() {
                return;
            }
            self.log_start = SegmentId::new(id.number() + 1);
        }
    }

    /// Lets go of the oldest segments: those before the log proper that hold no value that is
    /// needed. Never one from the middle, so that numbers and positions have no gaps.
    pub(crate) fn retire_segments(&mut self) {
        self.advance_log_start();
        let values_from =
            if planted(Bug::ValuesRetiredTooEarly) { self.log_start } else { self.values_from };
        while let Some(segment) = self.segments.front() {
            let id = SegmentId::new(segment.header.number);
            if id >= self.log_start || id >= values_from {
                return;
            }
            let Some(segment) = self.segments.pop_front() else { return };
            self.retired.push_back(Retired {
                name: id.file_name(),
                segment: Some(id),
                reusable: segment.file_bytes == self.options.segment_bytes,
                file_bytes: segment.file_bytes,
                _file: segment.file,
            });
        }
    }
}
