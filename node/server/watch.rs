//! How long a client may take: for its password, for the rest of a command, for its replies, for
//! nothing at all.
//!
//! Every connection is looked at once per second; deadlines are counted in such looks, so a node
//! that was stopped and goes on does not hold the time against its clients.

use std::fmt;

/// Seconds to give the password, where one is needed.
pub(super) const AUTH_SECONDS: u32 = 10;
/// Seconds for the rest of a command that has begun to arrive.
pub(super) const COMMAND_SECONDS: u32 = 60;
/// Seconds that [`super::connection::OUTPUT_SOFT_MAX`] bytes of replies may go unread.
pub(super) const OUTPUT_SECONDS: u32 = 60;

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// No password in time.
    Auth,
    /// Half a command, and no rest of it.
    Command,
    /// Replies are not read.
    Output,
    /// No command for the configured time.
    Idle,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth => "no password in time",
            Self::Command => "a command was not completed in time",
            Self::Output => "replies were not read in time",
            Self::Idle => "idle for too long",
        })
    }
}

/// What a look at a connection sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// It has given the password, or needs none.
    pub(super) authenticated: bool,
    /// Commands are being executed.
    pub(super) busy: bool,
    /// Part of a command has arrived, and the node waits for the rest.
    pub(super) half: bool,
    /// Too many bytes of replies wait to be read.
    pub(super) swollen: bool,
}

/// The clocks of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Something has arrived or was read by the client since the last look.
    pub(super) heard: bool,
    /// A command has been taken since the last look.
    pub(super) progressed: bool,
    unknown_seconds: u32,
    half_seconds: u32,
    swollen_seconds: u32,
    idle_seconds: u32,
}

impl Watch {
    /// A second has passed. `idle_max` is the idle timeout in seconds, 0 for none.
    pub(super) fn look(&mut self, seen: Seen, idle_max: u32) -> Option<Overdue> {
        let heard = std::mem::take(&mut self.heard);
        let progressed = std::mem::take(&mut self.progressed);
        let count = |clock: &mut u32, runs: bool, max: u32| {
            *clock = if runs { clock.saturating_add(1) } else { 0 };
            *clock > max
        };
        let overdue = [
            (count(&mut self.unknown_seconds, !seen.authenticated, AUTH_SECONDS), Overdue::Auth),
            (
                count(&mut self.half_seconds, seen.half && !progressed, COMMAND_SECONDS),
                Overdue::Command,
            ),
            (count(&mut self.swollen_seconds, seen.swollen, OUTPUT_SECONDS), Overdue::Output),
            (
                count(&mut self.idle_seconds, !heard && !seen.busy, idle_max) && idle_max > 0,
                Overdue::Idle,
            ),
        ];
        overdue.into_iter().find_map(|(is_overdue, why)| is_overdue.then_some(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Seen = Seen { authenticated: true, busy: false, half: false, swollen: false };

    /// Looks `count` times; the first look that finds something, from 1.
    fn looks(watch: &mut Watch, seen: Seen, idle_max: u32, count: u32) -> Option<(u32, Overdue)> {
        (1..=count).find_map(|n| Some((n, watch.look(seen, idle_max)?)))
    }

    /// Each deadline at its last good second and at the next.
    #[test]
    fn deadlines_hold_to_the_second() {
        let cases = [
            (Seen { authenticated: false, ..IDLE }, AUTH_SECONDS, Overdue::Auth),
            (Seen { half: true, ..IDLE }, COMMAND_SECONDS, Overdue::Command),
            (Seen { swollen: true, ..IDLE }, OUTPUT_SECONDS, Overdue::Output),
        ];
        for (seen, max, why) in cases {
            let (before, at) = (max - 1, max);
            assert_eq!(looks(&mut Watch::default(), seen, 0, before), None, "{why}");
            assert_eq!(looks(&mut Watch::default(), seen, 0, at), None, "{why}");
            assert_eq!(looks(&mut Watch::default(), seen, 0, 2 * max), Some((max + 1, why)));
            let mut watch = Watch::default();
            looks(&mut watch, seen, 0, max);
            assert_eq!(watch.look(IDLE, 0), None, "{why}: over in time");
            assert_eq!(looks(&mut watch, seen, 0, max), None, "{why}: counts from the start again");
        }
        assert_eq!(looks(&mut Watch::default(), IDLE, 7, 20), Some((8, Overdue::Idle)));
        assert_eq!(looks(&mut Watch::default(), IDLE, 0, 100_000), None, "no idle timeout");
    }

    /// Trickling bytes keep a connection from being idle, but not a command from its deadline;
    /// whole commands do both.
    #[test]
    fn only_whole_commands_count_as_progress() {
        let half = Seen { half: true, ..IDLE };
        let trickle = |progressed: bool| {
            let mut watch = Watch::default();
            (1..=2 * COMMAND_SECONDS).find_map(|n| {
                (watch.heard, watch.progressed) = (true, progressed);
                Some((n, watch.look(half, 5)?))
            })
        };
        assert_eq!(trickle(false), Some((COMMAND_SECONDS + 1, Overdue::Command)));
        assert_eq!(trickle(true), None);
        let busy = Seen { busy: true, ..IDLE };
        assert_eq!(looks(&mut Watch::default(), busy, 5, 100), None, "it waits for us");
    }
}
