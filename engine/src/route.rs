//! Where a command goes: executed here, sent on, redirected, or kept until somebody leads.

use coracle_raft::{Bug, GroupId, NodeId, ProposeError, Term, planted};

use crate::command::encoding::{Op, View, restamped};
use crate::command::{Access, KEY_BYTES_MAX};
use crate::core::{Core, LeaderHint};
use crate::task::{
    Origin, Task, not_served, out_of_memory, out_of_order, overloaded, parse_reroute, reroute,
    try_again, uncertain,
};
use crate::{CoreAddr, Forward, PeerMessage, ReadMode, Reply, SlotId, Via};

/// How far ahead of this core's wall clock a command's stamp may be before it is replaced: the
/// log clock never goes back, so one wrong clock must not carry it away.
const STAMP_AHEAD_MS_MAX: u64 = 5_000;
/// Times a command is sent on at once before it waits for a tick.
const HOPS_AT_ONCE_MAX: u8 = 3;

impl Core {
    /// Finds the way for a command that has just arrived.
    pub(crate) fn route(&mut self, mut task: Task) {
        self.pace.command(task.command.payload.len());
        let Some(view) = View::parse(task.command.payload.bytes()) else {
            return self.refuse(&task, Reply::error("ERR malformed command"));
        };
        if let Some(reply) = self.check(&task, &view) {
            return self.refuse(&task, reply);
        }
        let (early, adds_memory) = (view.replies_at_commit(), view.op.adds_memory());
        if view.at.0 > self.now.0 + STAMP_AHEAD_MS_MAX && task.command.access == Access::Write {
            task.command = restamped(&task.command, self.now);
        }
        let group = self.config.map.group_of_slot(task.command.slot);
        if !matches!(task.origin, Origin::Forwarded { .. }) && self.parked.holds(group) {
            return self.park(group, task);
        }
        let Some(place) = self.place(group) else { return self.elsewhere(group, None, task) };
        let here = &self.groups[place];
        let leads = here.leads() && here.may_serve();
        match task.command.access {
            Access::Write if leads => self.propose(place, task, early, adds_memory),
            Access::Read if leads || self.reads_here(place, &task) => self.read(place, task),
            _ => self.elsewhere(group, None, task),
        }
    }

    /// A command was certainly not executed where it went: tries again, at `hint` if given.
    pub(crate) fn again(&mut self, mut task: Task, hint: Option<NodeId>) {
        task.follows &= !planted(Bug::PipelineScattered);
        task.fetched.clear();
        if task.follows {
            return self.refuse(&task, out_of_order());
        }
        if task.deadline <= self.ticks {
            return self.refuse_late(&task);
        }
        let group = self.config.map.group_of_slot(task.command.slot);
        task.hops += 1;
        if matches!(task.origin, Origin::Forwarded { .. }) {
            self.elsewhere(group, None, task);
        } else if task.hops >= HOPS_AT_ONCE_MAX || self.parked.holds(group) {
            self.park(group, task);
        } else if hint.is_some() {
            self.elsewhere(group, hint, task);
        } else {
            self.route(task);
        }
    }

    /// Sends the parked commands of a group on their way again.
    pub(crate) fn retry_parked(&mut self, group: GroupId) {
        for mut task in self.parked.take(group) {
            if task.deadline <= self.ticks {
                self.refuse_late(&task);
            } else {
                task.hops = 0;
                self.route(task);
            }
        }
    }

    /// The time of a command that was certainly not executed is over.
    fn refuse_late(&mut self, task: &Task) {
        let reply = match task.command.access {
            Access::Write => not_served(),
            Access::Read => try_again(),
        };
        self.refuse(task, reply);
    }

    /// Refuses what no store may see, whoever sent it.
    fn check(&self, task: &Task, view: &View<'_>) -> Option<Reply> {
        let as_said = view.slot == task.command.slot && view.op.access() == task.command.access;
        if view.op.spans_group() && view.op != Op::Keys {
            return (!as_said).then(|| Reply::error("ERR malformed command"));
        }
        let Some(first) = view.keys().next() else {
            return Some(Reply::error("ERR the command has no key"));
        };
        let honest = as_said
            && (matches!(task.origin, Origin::Client(_)) || view.slot == SlotId::of_key(first));
        if !honest || first.len() > KEY_BYTES_MAX {
            return Some(Reply::error("ERR malformed command"));
        }
        if view.is_multi_key() {
            let map = &self.config.map;
            let shard = map.shard_of(view.slot);
            if view.keys().skip(1).any(|key| map.shard_of(SlotId::of_key(key)) != shard) {
                return Some(Reply::error("CROSSSLOT Keys in request don't hash to the same slot"));
            }
        }
        None
    }

    /// Whether this follower may serve the read by asking the leader for a read index.
    fn reads_here(&self, place: usize, task: &Task) -> bool {
        task.read_mode == ReadMode::AnyReplica
            && !task.follows
            && self.groups[place].raft.leader().is_some()
            && self.groups[place].may_serve()
    }

    fn propose(&mut self, place: usize, task: Task, early: bool, adds_memory: bool) {
        let admitted = self.admit_write(&task, adds_memory);
        if let Some(reply) = admitted.or_else(|| self.admit_to_disk(place, adds_memory)) {
            return self.refuse(&task, reply);
        }
        if early
            && planted(Bug::ReplyBeforeCommit)
            && self.groups[place].raft.propose(task.command.payload.clone()).is_ok()
        {
            self.mark(place);
            return self.refuse(&task, Reply::OK);
        }
        let deadline = self.deadline();
        match self.groups[place].propose(task, early, deadline, &mut self.tally) {
            Ok(()) => {
                self.counters.proposals += 1;
                self.mark(place);
            }
            Err((task, ProposeError::TooManyUncommitted { .. })) => {
                self.counters.refused_overload += 1;
                let limit = self.config.inflight_bytes_max;
                self.refuse(&task, overloaded("uncommitted bytes of the group", limit));
            }
            Err((task, _)) => self.elsewhere(self.groups[place].id, None, task),
        }
    }

    fn read(&mut self, place: usize, task: Task) {
        if let Some(reply) = self.admit_read() {
            return self.refuse(&task, reply);
        }
        self.reads_open += 1;
        self.groups[place].read(task);
        self.mark(place);
    }

    /// Somebody else leads `group`, or nobody does.
    fn elsewhere(&mut self, group: GroupId, hint: Option<NodeId>, task: Task) {
        if task.follows {
            return self.refuse(&task, out_of_order());
        }
        let leader = hint.or_else(|| self.current_leader(group));
        if matches!(task.origin, Origin::Forwarded { .. }) {
            self.counters.forwards_refused += 1;
            return self.refuse(&task, reroute(leader));
        }
        let core = self.config.map.core_of(group);
        let Some(to) = leader.map(|node| CoreAddr { node, core }) else {
            return self.park(group, task);
        };
        if to == self.config.addr {
            return self.park(group, task);
        }
        match task.via {
            Via::Core => self.redirect(to, &task),
            Via::Plain if self.links.get(&to).is_some_and(|link| link.up) => self.forward(to, task),
            Via::Plain => self.park(group, task),
        }
    }

    /// The leader to send commands to now, `None` while it is not known.
    fn current_leader(&self, group: GroupId) -> Option<NodeId> {
        match self.place(group) {
            Some(place) => self.groups[place].raft.leader(),
            None => self.hints.get(group.get() as usize)?.last,
        }
    }

    /// `-MOVED slot host:port` (Redis Cluster spec, "MOVED Redirection").
    fn redirect(&mut self, to: CoreAddr, task: &Task) {
        let Some(node) = self.config.map.node(to.node) else {
            return self.refuse(task, not_served());
        };
        let port = u32::from(node.core_port) + u32::from(to.core.0);
        let text = format!("MOVED {} {}:{port}", task.command.slot.get(), node.host);
        self.counters.moved += 1;
        self.refuse(task, Reply::Error(text));
    }

    fn forward(&mut self, to: CoreAddr, task: Task) {
        if let Some(reply) = self.admit_forward(&task) {
            return self.refuse(&task, reply);
        }
        let (at, command) = (task.at, task.command.clone());
        let deadline = self.deadline();
        let id = self.forwards.send(task, to, deadline);
        self.counters.forwarded += 1;
        self.sends.push((to, PeerMessage::Forward(Forward { id, at, command })));
    }

    fn park(&mut self, group: GroupId, task: Task) {
        let full = self.parked.len() >= self.config.parked_max
            || self.parked.bytes() + task.size_bytes() > self.config.inflight_bytes_max;
        if full || task.deadline <= self.ticks {
            return self.refuse(&task, not_served());
        }
        self.parked.push(group, task);
    }

    /// The core that a command was sent to has answered.
    pub(crate) fn forward_reply(&mut self, from: CoreAddr, id: u64, reply: Reply) {
        let Some(task) = self.forwards.answered(from, id) else {
            self.counters.ignored_messages += 1;
            return;
        };
        match parse_reroute(&reply) {
            None => self.refuse(&task, reply),
            Some(hint) => {
                let group = self.config.map.group_of_slot(task.command.slot);
                let hint = hint.filter(|&node| {
                    node != from.node && self.config.map.replicas(group).any(|n| n == node)
                });
                let elsewhere = hint.is_some_and(|node| node != self.config.addr.node);
                if elsewhere {
                    self.again(task, hint);
                } else {
                    self.park(group, task);
                }
            }
        }
    }

    /// The link to a core broke.
    pub(crate) fn peer_lost(&mut self, addr: CoreAddr) {
        let Some(link) = self.links.get_mut(&addr) else { return };
        link.up = false;
        link.losses = link.losses.wrapping_add(1);
        self.peer_with_values_lost(addr);
        self.peer_with_entries_lost(addr);
        for task in self.forwards.lost(addr) {
            match task.command.access {
                Access::Read => self.again(task, None),
                Access::Write if planted(Bug::LostForwardRetried) => self.again(task, None),
                Access::Write => {
                    self.tally.uncertain += 1;
                    self.refuse(&task, uncertain("the link to the leader broke"));
                }
            }
        }
    }

    pub(crate) fn expire_forwards(&mut self) {
        while let Some(task) = self.forwards.overdue(self.ticks) {
            let reply = match task.command.access {
                Access::Read => try_again(),
                Access::Write => {
                    self.tally.uncertain += 1;
                    uncertain("the leader did not answer in time")
                }
            };
            self.refuse(&task, reply);
        }
    }

    /// `from` says which groups it leads.
    pub(crate) fn leads(&mut self, from: CoreAddr, led: &[(GroupId, Term)]) {
        for &(group, term) in led {
            let map = &self.config.map;
            let possible = group.get() < map.group_count()
                && map.core_of(group) == from.core
                && map.replicas(group).any(|node| node == from.node);
            let Some(hint) = self.hints.get_mut(group.get() as usize).filter(|_| possible) else {
                self.counters.ignored_messages += 1;
                continue;
            };
            if term >= hint.term {
                *hint = LeaderHint { term, last: Some(from.node) };
                self.retry_parked(group);
            }
        }
    }
}

impl Core {
    /// `None` if the write may be appended.
    fn admit_write(&mut self, task: &Task, adds_memory: bool) -> Option<Reply> {
        if adds_memory && self.memory_bytes() >= self.config.memory_budget_bytes as u64 {
            self.counters.refused_memory += 1;
            return Some(out_of_memory());
        }
        let limit = self.config.inflight_bytes_max;
        if self.tally.inflight_bytes + task.size_bytes() > limit {
            self.counters.refused_overload += 1;
            return Some(overloaded("bytes of writes in flight", limit));
        }
        None
    }

    /// `None` if another read may wait.
    fn admit_read(&mut self) -> Option<Reply> {
        (self.reads_open + self.cold.readers() >= self.config.reads_max).then(|| {
            self.counters.refused_overload += 1;
            overloaded("waiting reads", self.config.reads_max)
        })
    }

    /// `None` if another command may be sent on.
    fn admit_forward(&mut self, task: &Task) -> Option<Reply> {
        let limit = self.config.inflight_bytes_max;
        (self.forwards.bytes() + task.size_bytes() > limit).then(|| {
            self.counters.refused_overload += 1;
            overloaded("bytes of forwarded commands", limit)
        })
    }
}
