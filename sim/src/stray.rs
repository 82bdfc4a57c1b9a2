//! A key in the memory of one replica that no entry of the log has put there: what a bug or bad
//! memory would do. The replicas' comparison must find it, and who holds it must not show it.

use coracle_raft::GroupId;

use crate::plan::{MS, SECOND};
use crate::queue::Micros;
use crate::report::Failure;
use crate::world::World;

/// No client writes or reads it. It begins like the keys that clients let expire, so that a list
/// of all keys may show it as long as nobody knows better.
pub(crate) const KEY: &[u8] = b"xstray";

/// How long replicas that all work may take to compare what they hold, once they are asked to.
const COMPARED_MAX: Micros = 20 * SECOND;

impl World {
    /// Lets the stray key appear at a node, once per run.
    pub(crate) fn put_stray(&mut self, node: usize) -> bool {
        if self.stray.is_some() {
            return false;
        }
        for host in self.hosts_of(node) {
            let group = self.hosts[host].core.as_mut().and_then(|core| core.stray(KEY));
            if let Some(group) = group {
                self.stray = Some(group);
                self.invariants.will_differ(group);
                return true;
            }
        }
        false
    }

    /// The node that holds the stray key while all other replicas of its group do not, after all
    /// of them had time to find that out.
    pub(crate) fn lone_holder(&mut self) -> Result<Option<usize>, Failure> {
        let Some(group) = self.stray else { return Ok(None) };
        let end = self.now + COMPARED_MAX;
        while self.now < end {
            let Some(holders) = self.holders(group) else { return Ok(None) };
            let &[holder] = &holders[..] else { return Ok(None) };
            if self.is_found(holder, group) {
                return Ok(Some(holder));
            }
            for host in 0..self.hosts.len() {
                if let Some(core) = &mut self.hosts[host].core {
                    core.check_soon();
                }
            }
            self.run_until(self.now + 200 * MS)?;
        }
        let text = format!("nobody finds that replicas of {group} differ");
        Err(self.failure("divergence", text))
    }

    /// The nodes that hold the stray key, if all replicas take part.
    fn holders(&self, group: GroupId) -> Option<Vec<usize>> {
        let replicas = self.map.replicas(group).map(|id| id.get() as usize - 1);
        let mut holders = Vec::new();
        for node in replicas {
            let host = self.hosts_of(node).start + usize::from(self.map.core_of(group).0);
            let core = self.hosts[host].core.as_ref()?;
            core.group_status(group)?;
            if core.version_of(group, KEY).is_some() {
                holders.push(node);
            }
        }
        Some(holders)
    }

    /// Whether a replica has heard that it holds something else than the others.
    fn is_found(&self, node: usize, group: GroupId) -> bool {
        let host = self.hosts_of(node).start + usize::from(self.map.core_of(group).0);
        let core = self.hosts[host].core.as_ref();
        core.is_some_and(|core| core.has_diverged(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Profile};
    use crate::trace::Trace;

    fn world() -> World {
        let plan = Plan::draw(1, Profile::Calm, 1);
        let trace = Trace::new(plan.nodes, None);
        World::new(plan, trace).expect("an empty cluster starts")
    }

    #[test]
    fn the_holder_of_a_stray_key_is_found() {
        let mut world = world();
        world.run_until(3 * SECOND).expect("nothing is wrong");
        assert_eq!(world.lone_holder().expect("no difference"), None);
        assert!(world.put_stray(1));
        assert!(!world.put_stray(2), "once");
        assert_eq!(world.lone_holder().expect("found"), Some(1));
    }

    /// The same check without leave to differ.
    #[test]
    fn a_difference_that_nobody_made_is_a_failure() {
        let mut world = world();
        world.run_until(3 * SECOND).expect("nothing is wrong");
        assert!(world.put_stray(1));
        world.stray = None;
        let failure = world.run_until(10 * SECOND).expect_err("replicas differ");
        assert_eq!(failure.kind, "equal digests at equal applied index");
    }
}
