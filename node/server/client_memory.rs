//! What the clients of a core may hold between them: bytes of commands that are not whole, replies
//! that are not read, and replies that are still to come.
//!
//! While memory is *short*, from half of the budget on, a client gets its replies one by one, and
//! of all the long commands that have begun to arrive one goes on. Beyond the budget the client
//! that holds most is closed, and so on: the next ones are those that leave their replies unread.

use std::collections::VecDeque;

use super::connection::Connection;

/// The budget of one core.
#[derive(Debug)]
pub(super) struct ClientMemory {
    used: usize,
    max: usize,
    /// The connection whose long command goes on while memory is short.
    favoured: Option<usize>,
    /// Those that wait, in turn. Some may be gone meanwhile.
    starved: VecDeque<usize>,
}

impl ClientMemory {
    /// Nothing is held; `max` bytes may be.
    pub(super) const fn new(max: usize) -> Self {
        Self { used: 0, max, favoured: None, starved: VecDeque::new() }
    }

    /// Bytes that are held.
    pub(super) const fn used(&self) -> usize {
        self.used
    }

    pub(super) const fn is_short(&self) -> bool {
        self.used >= self.max / 2
    }

    pub(super) const fn is_exceeded(&self) -> bool {
        self.used > self.max
    }

    /// Takes note of what a connection holds now. Returns whether it must wait with its command.
    pub(super) fn count(&mut self, index: usize, connection: &mut Connection) -> bool {
        let bytes = connection.bytes();
        self.used = self.used - connection.counted + bytes;
        connection.counted = bytes;
        if !connection.is_long() {
            self.favoured.take_if(|favoured| *favoured == index);
            return false;
        }
        if connection.starved || !self.is_short() {
            return false;
        }
        if *self.favoured.get_or_insert(index) == index {
            return false;
        }
        self.starve(index, connection);
        true
    }

    fn starve(&mut self, index: usize, connection: &mut Connection) {
        connection.starved = true;
        self.starved.push_back(index);
    }

    /// The favoured one has sent nothing for a while: whoever waits longest is next. Returns
    /// whether it is this one.
    pub(super) fn pass_on(&mut self, index: usize, connection: &mut Connection) -> bool {
        if self.starved.is_empty() || self.favoured.take_if(|at| *at == index).is_none() {
            return false;
        }
        self.starve(index, connection);
        true
    }

    /// One that has waited, if it may go on now.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.is_short() && self.favoured.is_some() {
            return None;
        }
        self.starved.pop_front()
    }

    /// This one goes on.
    pub(super) fn favour(&mut self, index: usize) {
        self.favoured = self.is_short().then_some(index);
    }

    /// A connection is gone.
    pub(super) fn release(&mut self, index: usize, connection: &Connection) {
        self.used -= connection.counted;
        self.favoured.take_if(|favoured| *favoured == index);
    }
}
