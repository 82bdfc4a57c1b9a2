//! Checkpoint files: written in the background, in the order of the work, one job at a time.
//!
//! Nothing that goes wrong here ends the node: the file is given up, the log keeps what it would
//! have replaced, and the next one is tried later.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use coracle_engine::{CheckpointWork, Input};
use coracle_wal::{CheckpointError, CheckpointWriter, Disk, Finished, Identity};

use super::super::background::{Background, Job};

/// Sections are handed over in jobs of so many bytes: what a file is written with at once.
const JOB_BYTES: usize = 256 << 10;

/// What a job gives back.
pub(in super::super) struct CheckpointDone<D: Disk> {
    writer: Option<CheckpointWriter<D>>,
    outcomes: Vec<(u64, Result<Finished, CheckpointError>)>,
    /// Bytes for new files that the disk had afterwards.
    available: io::Result<Option<u64>>,
}

/// The checkpoint files of one core.
pub(super) struct CheckpointFiles<D: Disk> {
    disk: D,
    identity: Identity,
    background: Background<CheckpointDone<D>>,
    /// What waits for the job before it, or for more.
    queue: VecDeque<CheckpointWork>,
    /// Bytes of the sections in it.
    queued_bytes: usize,
    /// The file that is being written, unless a job has it.
    writer: Option<CheckpointWriter<D>>,
    running: bool,
    /// The disk is to be asked for its space although there is no other work.
    measuring: bool,
    available: Option<u64>,
    /// A job that the background did not take.
    refused: Option<Job<CheckpointDone<D>>>,
    began: Instant,
    newest: Option<Newest>,
}

/// The newest file that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Newest {
    pub(in super::super) number: u64,
    pub(in super::super) bytes: u64,
}

impl<D: Disk + Sync> CheckpointFiles<D> {
    pub(super) fn new(
        disk: D,
        identity: Identity,
        background: Background<CheckpointDone<D>>,
        newest: Option<Newest>,
    ) -> Self {
        Self {
            disk,
            identity,
            background,
            queue: VecDeque::new(),
            queued_bytes: 0,
            writer: None,
            running: false,
            measuring: false,
            available: None,
            refused: None,
            began: Instant::now(),
            newest,
        }
    }

    /// Asks the disk for its space when nothing else is under way.
    pub(super) fn measure(&mut self) {
        self.measuring = true;
        self.submit();
    }

    /// Bytes for new files that the disk had, if it was asked since the last call.
    pub(super) const fn take_available(&mut self) -> Option<u64> {
        self.available.take()
    }

    /// Whether there is room for more sections.
    pub(super) const fn has_room(&self) -> bool {
        self.queued_bytes < JOB_BYTES
    }

    /// Length of the newest file, 0 if there is none.
    pub(super) fn newest_bytes(&self) -> u64 {
        self.newest.map_or(0, |newest| newest.bytes)
    }

    /// Takes work.
    pub(super) fn push(&mut self, work: impl Iterator<Item = CheckpointWork>) {
        for work in work {
            match &work {
                CheckpointWork::Begin { .. } => self.began = Instant::now(),
                CheckpointWork::Section { bytes, .. } => self.queued_bytes += bytes.len(),
                CheckpointWork::Finish { .. } => {}
            }
            self.queue.push_back(work);
        }
        self.submit();
    }

    /// Whether what waits is worth a job: a hand-over costs more than a section.
    fn has_job(&self) -> bool {
        let is_end = matches!(self.queue.back(), Some(CheckpointWork::Finish { .. }));
        is_end || self.queued_bytes >= JOB_BYTES || self.measuring
    }

    /// Runs what waits, if no job is under way.
    fn submit(&mut self) {
        let job = match self.refused.take() {
            Some(job) => job,
            None if self.running || !self.has_job() => return,
            None => {
                let (work, writer) = (std::mem::take(&mut self.queue), self.writer.take());
                let (disk, identity) = (self.disk.clone(), self.identity);
                (self.running, self.measuring, self.queued_bytes) = (true, false, 0);
                Box::new(move || run(&disk, identity, work, writer))
            }
        };
        self.refused = self.background.submit(job).err();
    }

    /// Takes finished work; the answers for the core go to `answer`.
    pub(super) fn take_finished(&mut self, answer: &mut dyn FnMut(Input)) {
        while let Some(done) = self.background.finished() {
            self.running = false;
            self.writer = done.writer;
            match done.available {
                Ok(available) => self.available = available.or(self.available),
                Err(error) => tracing::warn!(target: "wal", %error, "cannot ask for free space"),
            }
            for (number, outcome) in done.outcomes {
                let result = self.ended(number, outcome);
                answer(Input::Checkpointed { number, result });
            }
            self.submit();
        }
    }

    /// A tick has passed.
    pub(super) fn tick(&mut self) {
        self.submit();
        self.background.nudge();
    }

    /// A file is complete or was given up. The core may count on two files: this one and the one
    /// that was the newest before. If that one has been damaged meanwhile and is gone, the core
    /// goes on as if this one had not been made; the next one then has this one beside it.
    fn ended(
        &mut self,
        number: u64,
        outcome: Result<Finished, CheckpointError>,
    ) -> Result<(), String> {
        let finished = match outcome {
            Ok(finished) => finished,
            Err(error) => {
                tracing::warn!(
                    target: "wal", number, %error,
                    "checkpoint given up; the next one is tried later"
                );
                return Err(error.to_string());
            }
        };
        let Finished { bytes, sections, older, .. } = finished;
        let seconds = self.began.elapsed().as_secs_f64();
        tracing::info!(target: "wal", number, bytes, sections, seconds, "checkpoint finished");
        let expected = self.newest.replace(Newest { number, bytes }).map(|newest| newest.number);
        if older >= expected {
            return Ok(());
        }
        let expected = expected.unwrap_or_default();
        tracing::warn!(
            target: "wal", number, damaged = expected,
            "the checkpoint before this one was damaged; the log is kept until the next one"
        );
        Err(format!("checkpoint {expected} was damaged"))
    }
}

/// Does work in its order. After a failure the rest of that file is skipped.
fn run<D: Disk>(
    disk: &D,
    identity: Identity,
    work: VecDeque<CheckpointWork>,
    mut writer: Option<CheckpointWriter<D>>,
) -> CheckpointDone<D> {
    let mut outcomes = Vec::new();
    for work in work {
        match work {
            CheckpointWork::Begin { number } => {
                // The one before removes its file first.
                drop(writer.take());
                match CheckpointWriter::create(disk.clone(), identity, number) {
                    Ok(created) => writer = Some(created),
                    Err(error) => outcomes.push((number, Err(error))),
                }
            }
            CheckpointWork::Section { number, group, shard, bytes } => {
                let Some(open) = writer.as_mut().filter(|open| open.number() == number) else {
                    continue;
                };
                if let Err(error) = open.add(group, shard, &bytes) {
                    drop(writer.take());
                    outcomes.push((number, Err(error)));
                }
            }
            CheckpointWork::Finish { number } => {
                if let Some(open) = writer.take_if(|open| open.number() == number) {
                    outcomes.push((number, open.finish()));
                }
            }
        }
    }
    let available = disk.available_bytes();
    CheckpointDone { writer, outcomes, available }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use coracle_raft::GroupId;
    use coracle_wal::{DiskOp, MemDisk};

    use super::*;

    struct Rig {
        disk: MemDisk,
        files: CheckpointFiles<MemDisk>,
        woken: Receiver<()>,
    }

    impl Rig {
        fn new() -> Self {
            let (disk, (wake, woken)) = (MemDisk::new(), channel());
            let woke = move || wake.send(()).unwrap_or_default();
            let background = Background::start(0, 0, woke).expect("a thread");
            let identity = Identity::default();
            let files = CheckpointFiles::new(disk.clone(), identity, background, None);
            Self { disk, files, woken }
        }

        /// Hands work over, waits until all of it is done; the answers.
        fn run(&mut self, work: Vec<CheckpointWork>) -> Vec<(u64, Result<(), String>)> {
            let mut answers = Vec::new();
            self.files.push(work.into_iter());
            while self.files.running || self.files.has_job() {
                if self.woken.recv_timeout(Duration::from_millis(10)).is_err() {
                    self.files.tick();
                }
                self.files.take_finished(&mut |input| match input {
                    Input::Checkpointed { number, result } => answers.push((number, result)),
                    other => panic!("{other:?}"),
                });
            }
            answers
        }

        /// Writes a whole file, in two parts.
        fn write(&mut self, number: u64) -> Vec<(u64, Result<(), String>)> {
            let mut answers = self.run(vec![begin(number), section(number, 0)]);
            answers.extend(self.run(vec![section(number, 1), CheckpointWork::Finish { number }]));
            answers
        }
    }

    fn begin(number: u64) -> CheckpointWork {
        CheckpointWork::Begin { number }
    }

    fn section(number: u64, shard: u16) -> CheckpointWork {
        let (group, bytes) = (GroupId::new(1), vec![7; 300_000]);
        CheckpointWork::Section { number, group, shard, bytes }
    }

    /// A full disk ends this file only; what was handed out for it after that is skipped.
    #[test]
    fn a_failed_checkpoint_is_told_once_and_the_next_one_counts() {
        let mut rig = Rig::new();
        assert_eq!(rig.write(1), [(1, Ok(()))]);
        rig.disk.fail(DiskOp::Write, 0, io::ErrorKind::StorageFull);
        let answers = rig.write(2);
        assert!(matches!(&answers[..], [(2, Err(why))] if why.contains("no space")), "{answers:?}");
        assert_eq!(rig.write(3), [(3, Ok(()))]);
        assert_eq!(rig.files.newest.map(|newest| newest.number), Some(3));
        let mut names = rig.disk.list().expect("names");
        names.sort();
        assert_eq!(names, ["0000000001.ckp", "0000000003.ckp"]);
    }

    /// A file that was not finished gives way to the next one.
    #[test]
    fn an_unfinished_checkpoint_is_given_up_for_the_next() {
        let mut rig = Rig::new();
        assert_eq!(rig.run(vec![begin(1), section(1, 0)]), []);
        assert_eq!(rig.write(2), [(2, Ok(()))]);
        assert_eq!(rig.run(vec![section(1, 1), CheckpointWork::Finish { number: 1 }]), []);
        assert_eq!(rig.disk.list().expect("names"), ["0000000002.ckp"]);
    }

    /// The core must not count on a file that was removed because it was damaged.
    #[test]
    fn a_checkpoint_whose_predecessor_is_damaged_does_not_count() {
        let mut rig = Rig::new();
        assert_eq!((rig.write(1), rig.write(2)), (vec![(1, Ok(()))], vec![(2, Ok(()))]));
        rig.disk.truncate("0000000002.ckp", 4096).expect("cut");
        let answers = rig.write(3);
        assert!(matches!(&answers[..], [(3, Err(why))] if why.contains('2')), "{answers:?}");
        assert_eq!(rig.write(4), [(4, Ok(()))]);
    }
}
