//! Every queue and memory stays within its limit (`ARCHITECTURE.md`, "Bounds").

use coracle_engine::testing::Levels;
use coracle_engine::{CoreAddr, CoreConfig};
use coracle_raft::{GroupId, Raft};

use super::seen::{Rule, Violation};

pub(crate) const RULE: Rule = Rule { name: "bounds", source: "ARCHITECTURE.md, \"Bounds\"" };

/// Entries beside commands in a leader's uncommitted bytes: its first one, memberships, headers.
const OWN_ENTRIES_BYTES: usize = 64 << 10;

/// The limits of one core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    levels: Levels,
    inflight_bytes_max: usize,
}

impl Limits {
    /// `memory_counts`: whether all cores of this number hold the same groups. Otherwise a core
    /// follows leaders with more room than it has itself.
    pub(crate) fn new(config: &CoreConfig, memory_counts: bool) -> Self {
        let inflight = config.inflight_bytes_max;
        // Commands in flight on the leaders were admitted, and may fill more than they count.
        let slack = inflight.saturating_mul(2);
        let memory = if memory_counts { config.memory_budget_bytes } else { usize::MAX };
        let levels = Levels {
            reads_open: config.reads_max,
            uncommitted_bytes: inflight,
            forwards_bytes: inflight,
            parked: config.parked_max,
            parked_bytes: inflight,
            memory_bytes: memory.saturating_add(slack),
        };
        Self { levels, inflight_bytes_max: inflight }
    }

    /// The levels of a core.
    pub(crate) fn check(&self, at: CoreAddr, levels: &Levels) -> Result<(), Violation> {
        let max = &self.levels;
        let all = [
            ("reads_open", levels.reads_open, max.reads_open),
            ("uncommitted_bytes", levels.uncommitted_bytes, max.uncommitted_bytes),
            ("forwards_bytes", levels.forwards_bytes, max.forwards_bytes),
            ("parked", levels.parked, max.parked),
            ("parked_bytes", levels.parked_bytes, max.parked_bytes),
            ("memory_bytes", levels.memory_bytes, max.memory_bytes),
        ];
        let Some((what, level, max)) = all.into_iter().find(|(_, level, max)| level > max) else {
            return Ok(());
        };
        let text = format!("{what} is {level}, but must be at most {max}");
        Err(Violation { invariant: RULE.name, source: RULE.source, at, group: None, text })
    }

    /// The bytes of a replica's log.
    pub(crate) fn check_log(
        &self,
        (at, group): (CoreAddr, GroupId),
        bytes: LogBytes,
        unsettled: impl FnOnce() -> usize,
    ) -> Result<(), Violation> {
        let broken = |what, level, max| {
            let text = format!("{what} is {level}, but must be at most {max}");
            Err(RULE.broken(at, group, text))
        };
        if let Some(level) = bytes.uncommitted {
            let max = self.inflight_bytes_max.saturating_add(OWN_ENTRIES_BYTES);
            if level > max {
                return broken("uncommitted bytes", level, max);
            }
        }
        // What is not settled must stay; what has become so leaves with the next apply.
        let least = bytes.cache_max.saturating_add(self.inflight_bytes_max);
        if bytes.cache <= least {
            return Ok(());
        }
        let max = least.saturating_add(unsettled());
        if bytes.cache > max { broken("the entries in memory", bytes.cache, max) } else { Ok(()) }
    }
}

/// Sizes of a replica's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogBytes {
    /// Of a leader that has committed in its term; before, it counts what others left.
    pub(crate) uncommitted: Option<usize>,
    pub(crate) cache: usize,
    pub(crate) cache_max: usize,
}

impl LogBytes {
    pub(crate) fn of(raft: &Raft) -> Self {
        Self {
            uncommitted: raft.can_read().then(|| raft.uncommitted_bytes()),
            cache: raft.cache_bytes(),
            cache_max: raft.config().cache_bytes_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::{addr, map_of};

    use super::super::seen::tests::assert_breaks;
    use super::*;

    fn limits() -> Limits {
        let mut config = CoreConfig::new(addr(1, 0), map_of(3, 1, 4, 2));
        config.inflight_bytes_max = 10 << 20;
        config.memory_budget_bytes = 1 << 20;
        (config.reads_max, config.parked_max) = (100, 50);
        Limits::new(&config, true)
    }

    #[test]
    fn levels_up_to_their_limits_are_legal() {
        let limits = limits();
        assert_eq!(limits.check(addr(1, 0), &Levels::default()), Ok(()));
        assert_eq!(limits.check(addr(1, 0), &limits.levels), Ok(()));
    }

    #[test]
    fn a_level_beyond_its_limit_is_found() {
        let limits = limits();
        let full = limits.levels;
        assert_eq!((full.reads_open, full.parked, full.memory_bytes), (100, 50, 21 << 20));
        let beyond = [
            Levels { reads_open: full.reads_open + 1, ..full },
            Levels { uncommitted_bytes: full.uncommitted_bytes + 1, ..full },
            Levels { forwards_bytes: full.forwards_bytes + 1, ..full },
            Levels { parked: full.parked + 1, ..full },
            Levels { parked_bytes: full.parked_bytes + 1, ..full },
            Levels { memory_bytes: full.memory_bytes + 1, ..full },
        ];
        for levels in beyond {
            assert_breaks(&RULE, limits.check(addr(1, 0), &levels));
        }
    }

    /// Entries that are neither applied nor durable must stay in memory, all others leave it.
    #[test]
    fn logs_are_bounded() {
        let limits = limits();
        let log = |uncommitted, cache: usize, unsettled: usize| {
            let bytes = LogBytes { uncommitted, cache: cache << 20, cache_max: 2 << 20 };
            limits.check_log((addr(1, 0), GroupId::new(0)), bytes, || unsettled << 20)
        };
        assert_eq!(log(Some(10 << 20), 12, 0), Ok(()));
        assert_eq!(log(None, 30, 18), Ok(()));
        assert_breaks(&RULE, log(Some(11 << 20), 12, 0));
        assert_breaks(&RULE, log(None, 30, 17));
    }
}
