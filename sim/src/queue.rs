//! What is to happen, in the order of its time; what is due at the same time, in the order in
//! which it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Simulated microseconds since the start of the run.
pub type Micros = u64;

/// A queue of events.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    planned: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), planned: 0 }
    }
}

impl<T> Queue<T> {
    /// Plans an event.
    pub(crate) fn push(&mut self, at: Micros, event: T) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.heap.push(Reverse((at, self.planned, slot)));
        self.planned += 1;
    }

    /// The next event, if it is due by `until`.
    pub(crate) fn pop(&mut self, until: Micros) -> Option<(Micros, T)> {
        let &Reverse((at, _, slot)) = self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        self.slots[slot].take().map(|event| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_time_then_by_plan() {
        let mut queue = Queue::default();
        for (at, name) in [(5, "c"), (3, "a"), (5, "d"), (3, "b")] {
            queue.push(at, name);
        }
        let mut seen = Vec::new();
        while let Some((_, name)) = queue.pop(4) {
            seen.push(name);
        }
        queue.push(4, "e");
        while let Some((_, name)) = queue.pop(9) {
            seen.push(name);
        }
        assert_eq!(seen, ["a", "b", "e", "c", "d"]);
    }
}
