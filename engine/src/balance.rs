//! Keeps leadership where the layout wants it: the preferred leader of a group campaigns first
//! at the start, and gets leadership back once it has been caught up for a while. A node that is
//! about to stop hands over everything.

use coracle_raft::{NodeId, Role, SendState, TransferError};

use crate::CoreAddr;
use crate::core::Core;

/// Ticks between two looks at a group led away from its preferred leader.
const CHECK_TICKS: u64 = 16;
/// Ticks between two attempts of a preferred leader to start the first election.
const FIRST_CAMPAIGN_TICKS: u64 = 3;
/// Entries the preferred leader may be behind and still count as caught up.
const BEHIND_ENTRIES_MAX: u64 = 1024;
/// How many times longer the wait becomes at most when hand-overs do not last.
const BACK_OFF_MAX: u64 = 16;
/// Times one leadership is handed over by a core that resigns: when all nodes stop at once, it
/// must not go round for ever.
const RESIGNATIONS_MAX: u8 = 3;

/// How long a group led here has been ready to be handed over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Balance {
    /// Tick since which the preferred leader has been caught up.
    ready_since: u64,
    /// Tick of the last hand-over.
    handed_over_at: u64,
    /// Ticks to wait beyond the configured ones; grows while hand-overs do not last.
    extra_wait: u64,
    /// The cluster starts: the others won what the last node to come is to lead. That is set
    /// right at once, before there is much load.
    is_first: bool,
    /// Times it was handed over because this core resigns.
    resignations: u8,
}

impl Balance {
    /// Leadership has come here at `tick`; `is_first` if this core has known no other leader.
    pub(crate) const fn became_leader(&mut self, tick: u64, is_first: bool) {
        self.ready_since = tick;
        self.is_first = is_first;
        if tick - self.handed_over_at > 4 * self.extra_wait {
            self.extra_wait = 0;
        }
    }
}

impl Core {
    /// Looks after the place of one group's leadership, once per tick.
    pub(crate) fn balance_group(&mut self, place: usize) {
        let preferred = self.config.map.replicas(self.groups[place].id).next();
        if preferred == Some(self.config.addr.node) {
            self.campaign_first(place);
        } else if self.config.balance_after_ticks > 0 && self.ticks.is_multiple_of(CHECK_TICKS) {
            self.hand_over(place);
        }
    }

    /// At the start the preferred leader of a group does not wait for the others to time out.
    fn campaign_first(&mut self, place: usize) {
        let early = self.ticks <= u64::from(self.config.election_timeout_ticks);
        let raft = &mut self.groups[place].raft;
        let due = self.ticks % FIRST_CAMPAIGN_TICKS == 1;
        if early && due && raft.leader().is_none() && raft.role() == Role::Follower {
            raft.campaign();
            self.mark(place);
        }
    }

    /// Hands every leadership here to the follower that is furthest, because the node is about to
    /// stop. Call it once per tick until it returns 0: so many leaderships are still here that
    /// another replica could take. What nobody can take, stays.
    pub fn resign(&mut self) -> usize {
        let places = 0..self.groups.len();
        places.filter(|&place| self.groups[place].leads() && self.resign_group(place)).count()
    }

    /// Whether it makes sense to wait for this leadership to move.
    fn resign_group(&mut self, place: usize) -> bool {
        let core = self.config.addr.core;
        let in_contact = |node| self.links.get(&CoreAddr { node, core }).is_some_and(|l| l.up);
        let group = &mut self.groups[place];
        let fit = |node| in_contact(node) && !group.checks.has_diverged(node);
        let followers = group.raft.progress().filter(|&(node, _)| fit(node));
        let Some((to, progress)) = followers.max_by_key(|(_, progress)| progress.matched) else {
            return false;
        };
        if progress.state != SendState::Replicate {
            // Its answer, or the rest of what it lacks, is on the way.
            return true;
        }
        if self.balance[place].resignations >= RESIGNATIONS_MAX {
            return false;
        }
        match group.raft.transfer_leadership(to) {
            Ok(()) => {
                self.balance[place].resignations += 1;
                self.mark(place);
                true
            }
            Err(error) => matches!(error, TransferError::InProgress { .. }),
        }
    }

    /// Hands a leadership here to the follower that is furthest, if one follows: this replica
    /// cannot read what it leads.
    pub(crate) fn shed_leadership(&mut self, place: usize) {
        self.shed_leadership_to(place, |_| true);
    }

    /// As [`Core::shed_leadership`], to one of those that are `fit`.
    pub(crate) fn shed_leadership_to(&mut self, place: usize, fit: impl Fn(NodeId) -> bool) {
        let group = &mut self.groups[place];
        let followers = group.raft.progress().filter(|&(node, progress)| {
            progress.state == SendState::Replicate && !group.checks.has_diverged(node) && fit(node)
        });
        let Some((to, _)) = followers.max_by_key(|(_, progress)| progress.matched) else { return };
        if group.leads() && group.raft.transfer_leadership(to).is_ok() {
            self.counters.leaderships_shed += 1;
            self.mark(place);
        }
    }

    /// Hands leadership to the preferred leader if that has been safe for long enough.
    fn hand_over(&mut self, place: usize) {
        let id = self.groups[place].id;
        let Some(preferred) = self.config.map.replicas(id).next() else { return };
        let there = CoreAddr { node: preferred, core: self.config.addr.core };
        let is_short = self.is_short_of_space(there);
        let (group, balance) = (&mut self.groups[place], &mut self.balance[place]);
        if !group.leads() || group.checks.has_diverged(preferred) {
            return;
        }
        let commit = group.raft.commit();
        let caught_up = !is_short
            && group.raft.progress().any(|(node, progress)| {
                node == preferred
                    && progress.state == SendState::Replicate
                    && commit.since(progress.matched) <= BEHIND_ENTRIES_MAX
            });
        if !caught_up {
            balance.ready_since = self.ticks;
            return;
        }
        let wait = u64::from(self.config.balance_after_ticks);
        let due = if balance.is_first { 0 } else { wait } + balance.extra_wait;
        if self.ticks - balance.ready_since < due {
            return;
        }
        if group.raft.transfer_leadership(preferred).is_ok() {
            balance.ready_since = self.ticks;
            balance.handed_over_at = self.ticks;
            balance.extra_wait = (2 * balance.extra_wait + wait).min(BACK_OFF_MAX * wait);
            self.counters.balanced += 1;
            self.mark(place);
        }
    }
}
