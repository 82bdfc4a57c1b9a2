//! A leader that hears no quorum steps down within an election timeout (CheckQuorum, thesis §6.2).
//!
//! The invariants see one replica at a time; who can hear whom only the world knows.

use std::collections::BTreeMap;

use coracle_raft::{GroupId, Role};

use crate::plan::{MS, SECOND};
use crate::queue::Micros;
use crate::world::{Event, Step, World};

/// How often leaders are looked at.
const EVERY: Micros = 100 * MS;
/// Two election timeouts, slow ticks, and answers that were on their way, several times over.
const PATIENCE: Micros = 4 * SECOND;

/// Since when each leader has certainly been without a quorum.
pub(crate) type Lonely = BTreeMap<(usize, GroupId), Micros>;

impl World {
    /// Looks at all leaders, and plans the next look.
    pub(crate) fn check_lonely_leaders(&mut self) -> Step {
        self.queue.push(self.now + EVERY, Event::LonelyCheck);
        let mut lonely = Lonely::new();
        for host in 0..self.hosts.len() {
            let node = self.node_of(host);
            // Time stands still for those who are paused.
            if self.nodes[node].paused_until > self.now {
                continue;
            }
            let Some(core) = &self.hosts[host].core else { continue };
            for group in core.groups_hosted() {
                let leads = core.group_status(group).is_some_and(|s| s.role == Role::Leader);
                if !leads || self.may_hear_a_quorum(node, group) {
                    continue;
                }
                let since = self.lonely.get(&(host, group)).copied().unwrap_or(self.now);
                if self.now - since > PATIENCE {
                    let text = format!(
                        "{} has led {group} without a quorum for {} ms",
                        self.hosts[host].addr,
                        (self.now - since) / MS
                    );
                    return Err(self.failure("a leader without a quorum steps down", text));
                }
                lonely.insert((host, group), since);
            }
        }
        self.lonely = lonely;
        Ok(())
    }

    /// Whether enough replicas are up and not cut off from this node.
    fn may_hear_a_quorum(&self, node: usize, group: GroupId) -> bool {
        let replicas: Vec<usize> =
            self.map.replicas(group).map(|id| id.get() as usize - 1).collect();
        let heard = replicas.iter().filter(|&&other| {
            other == node || (self.nodes[other].up && self.net.is_joined(node, other))
        });
        heard.count() > replicas.len() / 2
    }
}
