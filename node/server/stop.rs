//! A clean stop: leaderships are handed over, then nothing new is accepted, what was taken is
//! answered, and the log is finished.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use coracle_engine::CoreId;

use super::hot_loop::HotLoop;

/// How long the node tries to hand over its leaderships.
pub(super) const RESIGN_MAX: Duration = Duration::from_secs(2);
/// How long clients have to take their last answers.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Ticks for which the last messages about leaderships that have moved travel.
const QUIET_TICKS: u32 = 4;

/// Where the node is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It serves.
    Serving,
    /// It serves, and hands over what it leads.
    Resigning,
    /// It accepts nothing more.
    Stopping,
}

/// The phase, as all cores see it.
pub(super) struct Stop {
    phase: AtomicU8,
    /// By core: it leads nothing any more that another node could lead.
    resigned: Vec<AtomicBool>,
}

impl Stop {
    /// A node of `cores` cores that serves.
    pub(super) fn new(cores: u16) -> Self {
        let resigned = (0..cores).map(|_| AtomicBool::new(false)).collect();
        Self { phase: AtomicU8::new(Phase::Serving as u8), resigned }
    }

    /// Goes on to a phase; never back.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Resigning,
            _ => Phase::Stopping,
        }
    }

    /// Whether every core has handed over what it can.
    pub(super) fn all_resigned(&self) -> bool {
        self.resigned.iter().all(|core| core.load(Ordering::Acquire))
    }

    fn resigned(&self, core: CoreId) {
        self.resigned[usize::from(core.0)].store(true, Ordering::Release);
    }
}

/// How far one core is.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Ticks since the last leadership went; `None` while nothing had to go.
    quiet_ticks: Option<u32>,
    /// When clients are left alone with their unread answers.
    deadline: Option<Instant>,
}

impl HotLoop {
    /// A tick of a node that resigns.
    pub(super) fn resign(&mut self) {
        if self.core.resign() > 0 {
            self.leaving.quiet_ticks = Some(0);
            return;
        }
        let done = match &mut self.leaving.quiet_ticks {
            None => true,
            Some(quiet) => {
                *quiet += 1;
                *quiet > QUIET_TICKS
            }
        };
        if done {
            self.shared.stop().resigned(self.me.core);
        }
    }

    /// A turn of a node that stops: whether the core has nothing left to do for its clients.
    pub(super) fn finish_clients(&mut self) -> bool {
        let deadline = *self.leaving.deadline.get_or_insert_with(|| {
            for listener in self.listeners.drain(..) {
                self.ring.stop_listening(listener);
            }
            self.clients.finish();
            self.again = true;
            Instant::now() + ANSWER_MAX
        });
        self.clients.open() == 0 || Instant::now() >= deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Phases are passed in their order, whoever asks for them.
    #[test]
    fn a_stop_is_not_taken_back() {
        let stop = Stop::new(2);
        assert_eq!(stop.phase(), Phase::Serving);
        stop.enter(Phase::Resigning);
        assert_eq!(stop.phase(), Phase::Resigning);
        stop.enter(Phase::Stopping);
        stop.enter(Phase::Resigning);
        assert_eq!(stop.phase(), Phase::Stopping);
        stop.resigned(CoreId(0));
        assert!(!stop.all_resigned());
        stop.resigned(CoreId(1));
        assert!(stop.all_resigned());
    }
}
