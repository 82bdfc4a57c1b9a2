//! Ends the sleep of a ring from another thread.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The ring's thread works; it looks at the state before it sleeps.
const AWAKE: u8 = 0;
/// Somebody called `wake` since the ring looked last.
const NOTIFIED: u8 = 1;
/// The ring's thread sleeps or is about to: only now a system call is needed.
const SLEEPING: u8 = 2;

/// Makes the ring that gave it return [`crate::Event::Woken`] from its next or current wait.
///
/// Many calls before the ring looks again are one event. What the caller wrote before
/// [`Waker::wake`] (a queue entry, say) is visible to the ring's thread at that event.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    /// An eventfd. It is written but never read: the ring's poll reacts to each write.
    event: File,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else knows it.
        let event = unsafe { File::from_raw_fd(raw) };
        Ok(Self { shared: Arc::new(Shared { state: AtomicU8::new(AWAKE), event }) })
    }

    /// Wakes the ring. Costs a system call only if the ring sleeps and nobody woke it yet.
    ///
    /// Does nothing useful, and no harm, after the ring is gone.
    pub fn wake(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            let written = (&self.shared.event).write(&1u64.to_ne_bytes());
            assert!(written.is_ok(), "an eventfd takes 2^64 wakes: {written:?}");
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Announces sleep. `false`: somebody called `wake`, do not sleep.
    pub(crate) fn fall_asleep(&self) -> bool {
        let state = &self.shared.state;
        state.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the sleep, if any. `true`: somebody called `wake` since the last call.
    pub(crate) fn wake_up(&self) -> bool {
        let state = &self.shared.state;
        state.load(Ordering::Relaxed) != AWAKE && state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(waker: &Waker) -> u64 {
        // A read would block on zero: ask the kernel's description of the descriptor instead.
        let path = format!("/proc/self/fdinfo/{}", waker.raw_fd());
        let text = std::fs::read_to_string(path).expect("the descriptor is open");
        let count = text.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
        u64::from_str_radix(count.expect("it is an eventfd").trim(), 16).expect("hexadecimal")
    }

    #[test]
    fn only_the_first_wake_of_a_sleeping_ring_costs_a_system_call() {
        let waker = Waker::new().expect("eventfd");
        waker.wake();
        waker.wake();
        assert_eq!(writes(&waker), 0, "the ring is awake and will look");
        assert!(!waker.fall_asleep(), "the wake is not slept through");
        assert!(waker.wake_up());
        assert!(!waker.wake_up(), "one event for many wakes");

        assert!(waker.fall_asleep());
        waker.wake();
        waker.wake();
        assert_eq!(writes(&waker), 1);
        assert!(waker.wake_up());
        assert!(waker.fall_asleep());
        assert!(!waker.wake_up(), "woken by something else");
    }
}
