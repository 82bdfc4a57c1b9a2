//! The two queues shared with the kernel: entries go down, completions come up.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, squeue};

/// How long to sleep at most when the kernel lacks memory for what is to be submitted.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// One completion, copied out of the kernel's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    /// What the system call would have returned, or a negated errno.
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

pub(crate) struct Queue {
    uring: IoUring,
    /// Entries for which the submission queue had no room, oldest first. At most one per
    /// operation in flight and one per cancellation.
    backlog: VecDeque<squeue::Entry>,
    wait_flags: EnterFlags,
}

impl Queue {
    pub(crate) fn open(entries: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4))
            .dontfork();
        // Without the indirection array submission is a little cheaper, but that needs Linux 6.6.
        let mut newer = builder.clone();
        let uring = match newer.setup_no_sqarray().build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(entries)?,
            other => other?,
        };
        let mut wait_flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        // Waiting for the network is not waiting for a disk: keep it out of the I/O statistics.
        wait_flags.set(EnterFlags::NO_IOWAIT, uring.params().is_feature_no_iowait());
        Ok(Self { uring, backlog: VecDeque::new(), wait_flags })
    }

    pub(crate) const fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Queues an entry for the next [`Queue::enter`]. When the queue is full it is submitted.
    ///
    /// # Safety
    /// All memory and descriptors that `entry` refers to stay valid until its last completion.
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise.
        if unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return;
        }
        // A failure is no loss: what is not taken now is taken by `enter`, which reports errors.
        let _ = self.uring.submit();
        // SAFETY: the caller's promise.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Whether entries wait to be submitted.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }

    /// Whether completions wait to be taken.
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Submits what is queued and waits for `want` completions, at most for `timeout`.
    ///
    /// Returning early is no error: on a signal, on the timeout, on a full completion queue.
    pub(crate) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let stuck = !self.move_backlog();
        let want = if stuck { 0 } else { want };
        let queued = self.uring.submission().len() as u32;
        match self.system_call(queued, want, timeout) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && queued > 0 => {
                // No memory for a request. Wait for others to complete, but not for ever.
                let timeout = timeout.map_or(RETRY_AFTER, |timeout| timeout.min(RETRY_AFTER));
                harmless(self.system_call(0, want, Some(timeout)))
            }
            other => harmless(other),
        }
    }

    /// Takes up to `limit` completions.
    pub(crate) fn take_completions(&mut self, limit: usize, taken: &mut Vec<Completion>) {
        taken.extend(self.uring.completion().take(limit).map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
    }

    /// `false`: the kernel takes no more entries at the moment.
    fn move_backlog(&mut self) -> bool {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever called `push` with this entry made the promise.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if !matches!(self.uring.submit(), Ok(1..)) {
                return false;
            }
        }
        true
    }

    fn system_call(&self, queued: u32, want: u32, timeout: Option<Duration>) -> io::Result<usize> {
        let span = timeout.map(Timespec::from);
        let args = SubmitArgs::new();
        let args = match &span {
            Some(span) => args.timespec(span),
            None => args,
        };
        // SAFETY: EXT_ARG says that the argument is an `io_uring_getevents_arg`, which
        // `SubmitArgs` is transparently; it and its timespec outlive the call.
        unsafe { self.uring.submitter().enter(queued, want, self.wait_flags.bits(), Some(&args)) }
    }
}

fn harmless(outcome: io::Result<usize>) -> io::Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use io_uring::opcode;

    use super::*;

    #[test]
    fn a_full_submission_queue_loses_nothing_and_keeps_the_order() {
        let mut queue = Queue::open(8).expect("io_uring works here");
        for number in 0..100 {
            // SAFETY: a no-op refers to no memory.
            unsafe { queue.push(opcode::Nop::new().build().user_data(number)) };
        }
        let mut taken = Vec::new();
        while taken.len() < 100 {
            queue.enter(1, None).expect("the ring works");
            queue.take_completions(7, &mut taken);
        }
        let numbers: Vec<u64> = taken.iter().map(|completion| completion.user_data).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        assert!(!queue.has_unsubmitted() && !queue.has_completions());
    }

    #[test]
    fn the_backlog_goes_down_in_order() {
        let mut queue = Queue::open(8).expect("io_uring works here");
        for number in 0..50 {
            queue.backlog.push_back(opcode::Nop::new().build().user_data(number));
        }
        // SAFETY: a no-op refers to no memory.
        unsafe { queue.push(opcode::Nop::new().build().user_data(50)) };
        let mut taken = Vec::new();
        while taken.len() < 51 {
            queue.enter(1, None).expect("the ring works");
            queue.take_completions(64, &mut taken);
        }
        assert!(taken.iter().map(|completion| completion.user_data).eq(0..51));
    }
}
