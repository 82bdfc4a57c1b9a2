//! How much a run could have done: for how long every group had a quorum that nothing kept from
//! working. What has to happen in the first phase of a run is said in these terms, because a run
//! whose quorums are down most of the time rightly does little.

use coracle_raft::GroupId;

use crate::queue::Micros;
use crate::world::World;

/// Times at which every group could work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calm {
    since: Option<Micros>,
    longest: Micros,
}

impl Calm {
    /// The longest time at a stretch so far.
    pub(crate) const fn longest(&self) -> Micros {
        self.longest
    }

    fn look(&mut self, calm: bool, now: Micros) {
        if !calm {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        self.longest = self.longest.max(now - since);
    }
}

impl World {
    /// Looks whether all groups can work now.
    pub(crate) fn look_for_calm(&mut self) {
        let mut groups = (0..self.plan.groups).map(GroupId::new);
        let calm = groups.all(|group| self.has_working_quorum(group));
        self.calm.look(calm, self.now);
    }

    /// Whether a majority of a group's replicas run undisturbed and reach each other.
    fn has_working_quorum(&self, group: GroupId) -> bool {
        let replicas: Vec<usize> =
            self.map.replicas(group).map(|id| id.get() as usize - 1).collect();
        let working: Vec<usize> =
            replicas.iter().copied().filter(|&node| self.is_undisturbed(node)).collect();
        // With one of them in the middle: it can lead.
        working.iter().any(|&leader| {
            let reached = working.iter().filter(|&&other| self.net.is_joined(leader, other));
            reached.count() > replicas.len() / 2
        })
    }

    /// Whether nothing goes on at a node that would keep it from taking part.
    fn is_undisturbed(&self, node: usize) -> bool {
        let state = &self.nodes[node];
        let well = state.up && !state.damaged && state.paused_until <= self.now;
        well && !self.net.corrupting && !self.spells.keys().any(|&(_, place)| place == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stretch_counts_and_not_their_sum() {
        let mut calm = Calm::default();
        for (now, is_calm) in
            [(1, true), (3, true), (4, false), (5, true), (8, true), (9, false), (10, true)]
        {
            calm.look(is_calm, now);
        }
        assert_eq!(calm.longest(), 3);
    }
}
