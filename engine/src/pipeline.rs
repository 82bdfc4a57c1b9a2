//! Commands of one connection on one shard take effect in their order, as with Redis.
//!
//! Waiting for each answer before the next command goes would be enough, and is what happens
//! in general. Where this core leads the shard's group, commands overlap: they stand in its log
//! in their order. That ends with its leadership, for then commands find their new way one by
//! one: one that follows another is not executed elsewhere, but refused.

use coracle_raft::Term;

use crate::command::{Access, Command};
use crate::{Core, ShardId};

/// A command that was handed to [`Core::handle`] and is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// `None`: it concerns all of them.
    shard: Option<ShardId>,
    access: Access,
    /// The term in which this core took it as leader, if it did.
    led: Option<Term>,
}

/// When the next command of a connection may be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Now: no unanswered command of the connection concerns its shard.
    Free,
    /// Now, with [`crate::Request::follows`] set.
    Follows,
    /// When more of the connection's commands are answered.
    Waits,
}

impl Core {
    /// When `command` may be handed over, behind the unanswered ones of its connection.
    pub fn order<'a>(
        &self,
        command: &Command,
        unanswered: impl Iterator<Item = &'a Unanswered>,
    ) -> Order {
        let shard = self.shard_of(command);
        let mut order = Order::Free;
        let concerns = |earlier: &&Unanswered| {
            shard.is_none() || earlier.shard.is_none() || earlier.shard == shard
        };
        for earlier in unanswered.filter(concerns) {
            // Reads do not go through the log: one that waits could see a later write.
            let overtakes = earlier.access == Access::Read && command.access == Access::Write;
            let spans = shard.is_none() || earlier.shard.is_none();
            if overtakes || spans || earlier.led.is_none() || earlier.led != self.led_term(command)
            {
                return Order::Waits;
            }
            order = Order::Follows;
        }
        order
    }

    /// What to remember of a command until it is answered; asked before it is handed over.
    pub fn unanswered(&self, command: &Command) -> Unanswered {
        let shard = self.shard_of(command);
        Unanswered { shard, access: command.access, led: self.led_term(command) }
    }

    fn shard_of(&self, command: &Command) -> Option<ShardId> {
        (!command.spans_groups()).then(|| self.config.map.shard_of(command.slot))
    }

    /// The term in which this core would take the command as leader.
    fn led_term(&self, command: &Command) -> Option<Term> {
        let group = self.config.map.group_of_slot(command.slot);
        let raft = &self.groups[self.place(group)?].raft;
        (raft.accepts_proposals() && !self.parked.holds(group)).then(|| raft.term())
    }
}
