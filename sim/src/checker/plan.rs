//! The operations of one key, prepared for the search.

use ahash::RandomState;
use hashbrown::HashMap;

use super::model::{Act, State, Told};
use crate::history::{Bytes, Op, OpKind, Outcome, Reply};

/// What the search must know of one key.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) ops: Vec<&'a Op>,
    /// In order of time.
    pub(super) events: Vec<Event>,
    /// What each operation does and what was told, by the number of the operation.
    pub(super) steps: Vec<Step>,
    /// Operations of unknown outcome: those that do the same are one class.
    pub(super) classes: Vec<Class>,
    /// The values that answers show, by the number in [`State::Known`].
    pub(super) values: Vec<Value>,
    /// No value is derived from another one (no APPEND, no INCR), so that states are
    /// [`State::Known`] or [`State::Unread`].
    pub(super) exact: bool,
    /// Also, no answer tells only whether there is a value.
    pub(super) register: bool,
    /// The value only grows: all operations are GET and INCR by no less than 0, or GET and APPEND.
    pub(super) growing: bool,
    counting: bool,
    /// Of the operations called at or after each event, if the value is growing: the least size
    /// that one of them needs to find.
    future: Vec<Future>,
    /// Whether INCR of unknown outcome add, and whether they subtract.
    pub(super) unknown_adds: bool,
    pub(super) unknown_subtracts: bool,
    pub(super) unknown_appends: bool,
    pub(super) unknown_setnx: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An operation was called that returns later.
    Call(u32),
    /// An operation of this class was called; its outcome is unknown.
    Unknown(u32),
    /// An operation returned.
    Return(u32),
}

/// What operations that are still to be called need to find.
#[derive(Clone, Copy, Debug)]
struct Future {
    size: i64,
    /// The read of the shortest value.
    read: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) act: Act,
    pub(super) told: Told,
}

#[derive(Debug)]
pub(super) struct Class {
    pub(super) act: Act,
    /// Its operations in order of their calls.
    pub(super) ops: Vec<u32>,
}

/// A value that some answer shows.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) bytes: Bytes,
    /// Operations that may have written it.
    pub(super) writers: u32,
    /// Answers that show it.
    pub(super) readers: u32,
}

impl Step {
    /// Whether the answer depends on the value before.
    pub(super) fn observes(&self) -> bool {
        self.told != Told::Nothing
    }

    /// The value that the answer shows.
    pub(super) fn shows(&self) -> Option<usize> {
        match self.told {
            Told::State(State::Known(value)) => Some(value as usize),
            _ => None,
        }
    }
}

impl<'a> Plan<'a> {
    /// Of the operations of one key, those apart that were refused.
    pub(super) fn new(ops: Vec<&'a Op>) -> Self {
        let is_known = |op: &&Op| op.outcome != Outcome::Unknown;
        let derives = |op: &&Op| matches!(op.kind, OpKind::Append(_) | OpKind::Incr(_));
        let tells_presence = |op: &&Op| matches!(op.kind, OpKind::Del | OpKind::SetNx(_));
        let exact = !ops.iter().any(derives);
        let register = exact && !ops.iter().filter(|op| is_known(op)).any(tells_presence);
        let mut plan = Self {
            events: Vec::new(),
            steps: Vec::with_capacity(ops.len()),
            classes: Vec::new(),
            values: Vec::new(),
            exact,
            register,
            growing: is_growing(&ops),
            counting: ops.iter().any(|op| matches!(op.kind, OpKind::Incr(_))),
            future: Vec::new(),
            unknown_adds: false,
            unknown_subtracts: false,
            unknown_appends: false,
            unknown_setnx: false,
            ops,
        };
        let numbers = plan.number_values();
        plan.add_steps(&numbers);
        plan.add_events();
        if plan.growing {
            plan.add_future();
        }
        plan
    }

    /// Whether this value can still become what the operations called from this event on were
    /// told, and what this open one was. Only for values that grow.
    pub(super) fn is_within_future(&self, event: usize, state: &State) -> bool {
        let Future { size, read } = self.future[event];
        self.size(state).is_none_or(|found| found <= size)
            && read.is_none_or(|read| self.is_within_step(read, state))
    }

    /// The same for one operation.
    pub(super) fn is_within_step(&self, op: u32, state: &State) -> bool {
        match &self.steps[op as usize].told {
            Told::State(State::Bytes(bytes)) if !self.counting => bytes.starts_with(state.bytes()),
            _ => match (self.size(state), self.needed(op)) {
                (Some(found), Some(needed)) => found <= needed,
                _ => true,
            },
        }
    }

    /// How far a growing value has come.
    fn size(&self, state: &State) -> Option<i64> {
        if self.counting { state.number() } else { i64::try_from(state.bytes().len()).ok() }
    }

    /// The size of the value that an operation found, given what it was told.
    fn needed(&self, op: u32) -> Option<i64> {
        let Step { act, told } = &self.steps[op as usize];
        match (act, told) {
            (Act::Get, Told::State(state)) => self.size(state),
            (Act::Append(suffix), Told::Integer(len)) => Some(len - suffix.len() as i64),
            (Act::Incr(by), Told::Integer(sum)) => sum.checked_sub(*by),
            _ => None,
        }
    }

    fn add_future(&mut self) {
        let mut future = Future { size: i64::MAX, read: None };
        self.future = vec![future; self.events.len()];
        for (at, event) in self.events.iter().enumerate().rev() {
            if let Event::Call(op) = *event {
                let size = self.needed(op).unwrap_or(i64::MAX);
                future.size = future.size.min(size);
                let least = future.read.map(|read| self.needed(read).unwrap_or(i64::MAX));
                if self.steps[op as usize].act == Act::Get && least.is_none_or(|least| size < least)
                {
                    future.read = Some(op);
                }
            }
            self.future[at] = future;
        }
    }

    /// Gives each value that an answer shows a number.
    fn number_values(&mut self) -> HashMap<Bytes, u32, RandomState> {
        let mut numbers = HashMap::with_hasher(hasher());
        if !self.exact {
            return numbers;
        }
        for op in &self.ops {
            if let Outcome::Reply(Reply::Value(Some(bytes))) = &op.outcome {
                let next = self.values.len() as u32;
                let number = *numbers.entry(Bytes::clone(bytes)).or_insert(next);
                if number == next {
                    let bytes = Bytes::clone(bytes);
                    self.values.push(Value { bytes, writers: 0, readers: 0 });
                }
                self.values[number as usize].readers += 1;
            }
        }
        for op in &self.ops {
            if let OpKind::Set(bytes) | OpKind::SetNx(bytes) | OpKind::GetSet(bytes) = &op.kind
                && let Some(&number) = numbers.get(bytes)
            {
                self.values[number as usize].writers += 1;
            }
        }
        numbers
    }

    fn add_steps(&mut self, numbers: &HashMap<Bytes, u32, RandomState>) {
        let exact = self.exact;
        let state = |bytes: &Bytes| match numbers.get(bytes) {
            Some(&number) => State::Known(number),
            None if exact => State::Unread,
            None => State::Bytes(Bytes::clone(bytes)),
        };
        for op in &self.ops {
            let act = match &op.kind {
                OpKind::Set(value) => Act::Set(state(value)),
                OpKind::Get => Act::Get,
                // Who clears is told nothing, see `Told`.
                OpKind::Del | OpKind::Clear => Act::Del,
                OpKind::Append(value) => Act::Append(Bytes::clone(value)),
                OpKind::Incr(by) => Act::Incr(*by),
                OpKind::SetNx(value) => Act::SetNx(state(value)),
                OpKind::GetSet(value) => Act::GetSet(state(value)),
                OpKind::GetDel => Act::GetDel,
            };
            let told = match &op.outcome {
                Outcome::Reply(Reply::Value(None)) => Told::State(State::Absent),
                Outcome::Reply(Reply::Value(Some(value))) => Told::State(state(value)),
                Outcome::Reply(Reply::Integer(number)) => Told::Integer(*number),
                Outcome::Reply(Reply::Ok) | Outcome::Unknown | Outcome::Refused => Told::Nothing,
            };
            self.steps.push(Step { act, told });
        }
    }

    fn add_events(&mut self) {
        // At one instant calls come first: operations that touch each other are concurrent.
        let mut times: Vec<(u64, bool, u32)> = Vec::with_capacity(2 * self.ops.len());
        for (number, op) in (0..).zip(&self.ops) {
            times.push((op.call_ns, false, number));
            times.extend(op.return_ns.map(|return_ns| (return_ns, true, number)));
        }
        times.sort_unstable();
        let mut classes: HashMap<Act, u32, RandomState> = HashMap::with_hasher(hasher());
        for (_, is_return, number) in times {
            if is_return {
                self.events.push(Event::Return(number));
            } else if self.ops[number as usize].return_ns.is_some() {
                self.events.push(Event::Call(number));
            } else if let Some(act) = self.unknown_act(number) {
                let next = self.classes.len() as u32;
                let class = *classes.entry(act.clone()).or_insert(next);
                if class == next {
                    self.note_unknown(&act);
                    self.classes.push(Class { act, ops: Vec::new() });
                }
                self.classes[class as usize].ops.push(number);
                self.events.push(Event::Unknown(class));
            }
        }
    }

    /// What an operation of unknown outcome does, if anybody could ever notice.
    fn unknown_act(&self, number: u32) -> Option<Act> {
        match &self.steps[number as usize].act {
            Act::Get => None,
            // Nobody reads this value, and every answer shows a value: it leaves no trace.
            Act::Set(State::Unread) | Act::SetNx(State::Unread) | Act::GetSet(State::Unread)
                if self.register =>
            {
                None
            }
            Act::GetSet(value) => Some(Act::Set(value.clone())),
            Act::GetDel => Some(Act::Del),
            act => Some(act.clone()),
        }
    }

    fn note_unknown(&mut self, act: &Act) {
        match act {
            Act::Append(_) => self.unknown_appends = true,
            Act::SetNx(_) => self.unknown_setnx = true,
            Act::Incr(by) if *by >= 0 => self.unknown_adds = true,
            Act::Incr(_) => self.unknown_subtracts = true,
            _ => {}
        }
    }
}

/// See [`Plan::growing`].
fn is_growing(ops: &[&Op]) -> bool {
    let counts = |op: &&Op| match op.kind {
        OpKind::Get => true,
        OpKind::Incr(by) => by >= 0,
        _ => false,
    };
    let appends = |op: &&Op| matches!(op.kind, OpKind::Get | OpKind::Append(_));
    ops.iter().all(counts) || ops.iter().all(appends)
}

/// Always the same, so that runs are alike.
pub(super) fn hasher() -> RandomState {
    RandomState::with_seeds(1, 2, 3, 4)
}
