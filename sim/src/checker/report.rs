//! What a check found, for people.

use std::fmt;

use super::Limits;
use super::model::State;
use super::plan::Plan;
use super::search::{Config, Search, Stuck};
use crate::history::{Bytes, Op, OpKind, Outcome, Reply, escape};

/// Operations of the order that a report shows.
const ORDER_MAX: usize = 8;
/// Open operations that a report shows.
const OPEN_MAX: usize = 32;
/// States that a report shows.
const TRIED_MAX: usize = 8;
/// Configurations in which a report looks for different states.
const SCANNED_MAX: usize = 100;
/// Characters of a value that a report shows.
const VALUE_CHARS_MAX: usize = 48;
/// A search that looked at more than this is not repeated to learn the order.
const TRACED_STATES_MAX: u64 = 1_000_000;

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All operations.
    pub operations: u64,
    /// Those of unknown outcome.
    pub unknown: u64,
    /// Those that were refused, which do not count.
    pub refused: u64,
    /// Keys.
    pub keys: u64,
    /// Configurations looked at.
    pub states: u64,
    /// Most configurations that were possible at one moment for one key.
    pub configurations_max: u64,
}

/// Why a history did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No order of the operations explains the answers.
    NotLinearizable(Box<NotLinearizable>),
    /// A limit was reached before that was known.
    Undecided(Box<Undecided>),
}

/// The proof, in parts: an operation that has no place in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLinearizable {
    /// The key.
    pub key: Bytes,
    /// The operation that returned without a place. The history before its return is linearizable.
    pub op: Op,
    /// Whether answers after that return were needed for the proof, because it would have cost
    /// too much without them.
    pub foresight: bool,
    /// The end of a longest order of operations that explains all answers so far.
    pub order: Vec<Op>,
    /// How many operations precede `order`.
    pub before_order: u64,
    /// What was called and had not returned when `op` returned, `op` apart; the oldest first.
    pub open: Vec<Open>,
    /// What the value may have been, and still `op` had no place.
    pub tried: Vec<Tried>,
    /// How many configurations were looked at for `op`. One may stand for several values, if no
    /// answer tells them apart.
    pub tried_count: u64,
}

/// An operation that overlaps the one without a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The operation.
    pub op: Op,
    /// Whether `NotLinearizable::order` has it.
    pub placed: bool,
}

/// A value that the key may have had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The value; `?` stands for all that no answer shows, if `after` is not known.
    pub value: Option<Bytes>,
    /// The operation that led there.
    pub after: Option<Op>,
}

/// Where a check gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecided {
    /// The key.
    pub key: Bytes,
    /// The operation whose return was reached.
    pub op: Op,
    /// Configurations looked at for this key.
    pub states: u64,
}

/// Repeats a search that failed, to learn why.
pub(super) fn explain(plan: &Plan<'_>, limits: Limits, states: u64) -> Failure {
    // Without foresight the operation is the first one that is wrong, and not a write that later
    // answers rule out; but that may cost too much.
    let plain = Limits { states: TRACED_STATES_MAX, ..limits };
    let mut search = Search::with(plan, plain, false, true);
    let mut result = search.run();
    let foresight = !matches!(result, Err(Stuck::At(_)));
    if foresight {
        search = Search::with(plan, limits, true, states <= TRACED_STATES_MAX);
        result = search.run();
    }
    let Err(Stuck::At(number)) = result else {
        unreachable!("the same search has the same result");
    };
    let op_of = |number: u32| Op::clone(plan.ops[number as usize]);
    let looked_at = search.looked_at.iter().chain(&search.configs);
    let longest = looked_at.max_by_key(|config| search.depth(config));
    let (before_order, order) = longest.map_or((0, Vec::new()), |c| search.order(c, ORDER_MAX));

    let mut open: Vec<Open> = Vec::new();
    for (slot, other) in search.open.iter().enumerate() {
        if let Some(other) = other.filter(|other| *other != number) {
            let placed = longest.is_some_and(|config| config.done.contains(slot));
            open.push(Open { op: op_of(other), placed });
        }
    }
    open.sort_by_key(|open| open.op.call_ns);
    open.truncate(OPEN_MAX);

    let mut tried: Vec<Tried> = Vec::new();
    for config in search.configs.iter().chain(&search.looked_at).take(SCANNED_MAX) {
        let found = attempt(plan, &search, config);
        if tried.len() < TRIED_MAX && tried.iter().all(|other| other.value != found.value) {
            tried.push(found);
        }
    }
    Failure::NotLinearizable(Box::new(NotLinearizable {
        key: Bytes::clone(&plan.ops[number as usize].key),
        op: op_of(number),
        foresight,
        order: order.into_iter().map(op_of).collect(),
        before_order: before_order.into(),
        open,
        tried,
        tried_count: search.looked_at.len().max(search.configs.len()) as u64,
    }))
}

pub(super) fn give_up(plan: &Plan<'_>, op: u32, states: u64) -> Failure {
    let op = Op::clone(plan.ops[op as usize]);
    Failure::Undecided(Box::new(Undecided { key: Bytes::clone(&op.key), op, states }))
}

fn attempt(plan: &Plan<'_>, search: &Search<'_>, config: &Config) -> Tried {
    let (_, mut order) = search.order(config, usize::MAX);
    let changes = |op: &u32| writes(plan.ops[*op as usize]);
    order.retain(changes);
    let after = order.last().map(|op| plan.ops[*op as usize]);
    let value = match &config.state {
        State::Absent => None,
        State::Known(value) => Some(Bytes::clone(&plan.values[*value as usize].bytes)),
        State::Bytes(bytes) => Some(Bytes::clone(bytes)),
        State::Unread => after.and_then(written).or_else(|| Some(Bytes::from(&b"?"[..]))),
    };
    Tried { value, after: after.cloned() }
}

/// The value that an operation writes whatever was there before.
fn written(op: &Op) -> Option<Bytes> {
    match &op.kind {
        OpKind::Set(value) | OpKind::SetNx(value) | OpKind::GetSet(value) => {
            Some(Bytes::clone(value))
        }
        OpKind::Get
        | OpKind::Del
        | OpKind::Append(_)
        | OpKind::Incr(_)
        | OpKind::GetDel
        | OpKind::Clear => None,
    }
}

fn writes(op: &Op) -> bool {
    let refused_by_value = matches!(
        (&op.kind, &op.outcome),
        (OpKind::SetNx(_) | OpKind::Del, Outcome::Reply(Reply::Integer(0)))
    );
    op.kind != OpKind::Get && !refused_by_value
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "linearizable: {} operations on {} keys, {} of unknown outcome, {} refused; \
             {} states, at most {} at once",
            self.operations,
            self.keys,
            self.unknown,
            self.refused,
            self.states,
            self.configurations_max
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLinearizable(found) => found.fmt(f),
            Self::Undecided(found) => found.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for NotLinearizable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "not linearizable: key \"{}\"", short(&self.key))?;
        let given = if self.foresight { ", given the answers that come later" } else { "" };
        writeln!(f, "  this operation has no place{given}:")?;
        writeln!(f, "    {}", Line(&self.op))?;
        writeln!(f, "  an order that explains the answers before it ends with:")?;
        if self.before_order > 0 {
            writeln!(f, "    … {} operations before", self.before_order)?;
        }
        for op in &self.order {
            writeln!(f, "    {}", Line(op))?;
        }
        if self.order.is_empty() {
            writeln!(f, "    (none, or the search was too long to be repeated for it)")?;
        }
        if !self.open.is_empty() {
            writeln!(f, "  meanwhile open:")?;
        }
        for Open { op, placed } in &self.open {
            let end = if *placed { "  in that order" } else { "  not placed" };
            writeln!(f, "    {}{end}", Line(op))?;
        }
        write!(f, "  the value may have been:")?;
        for Tried { value, after } in &self.tried {
            write!(f, "\n    {}", ShortValue(value.as_deref()))?;
            if let Some(after) = after {
                write!(f, "  after {}", Line(after))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "undecided: key \"{}\" needs more than {} states; the check reached {}. Fewer clients \
             per key, or unique values, make it cheaper",
            short(&self.key),
            self.states,
            Line(&self.op)
        )
    }
}

/// `client 3  get -> "v2"  40..51 ns`
struct Line<'a>(&'a Op);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = self.0;
        write!(f, "client {}  ", op.client)?;
        match &op.kind {
            OpKind::Set(value) => write!(f, "set \"{}\"", short(value)),
            OpKind::Get => f.write_str("get"),
            OpKind::Del => f.write_str("del"),
            OpKind::Append(value) => write!(f, "append \"{}\"", short(value)),
            OpKind::Incr(by) => write!(f, "incr {by}"),
            OpKind::SetNx(value) => write!(f, "setnx \"{}\"", short(value)),
            OpKind::GetSet(value) => write!(f, "getset \"{}\"", short(value)),
            OpKind::GetDel => f.write_str("getdel"),
            OpKind::Clear => f.write_str("clear"),
        }?;
        match &op.outcome {
            Outcome::Reply(Reply::Ok) => f.write_str(" -> OK"),
            Outcome::Reply(Reply::Value(value)) => {
                write!(f, " -> {}", ShortValue(value.as_deref()))
            }
            Outcome::Reply(Reply::Integer(number)) => write!(f, " -> {number}"),
            Outcome::Unknown => f.write_str(" -> unknown"),
            Outcome::Refused => f.write_str(" -> refused"),
        }?;
        match op.return_ns {
            Some(return_ns) => write!(f, "  {}..{return_ns} ns", op.call_ns),
            None => write!(f, "  {}.. ns", op.call_ns),
        }
    }
}

struct ShortValue<'a>(Option<&'a [u8]>);

impl fmt::Display for ShortValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nothing"),
            Some(bytes) => write!(f, "\"{}\"", short(bytes)),
        }
    }
}

/// Readable, and not longer than a line. Long values mostly differ at their start or their end.
fn short(bytes: &[u8]) -> String {
    let half = VALUE_CHARS_MAX / 2;
    if bytes.len() <= VALUE_CHARS_MAX {
        return escape(bytes);
    }
    let (start, end) = (&bytes[..half], &bytes[bytes.len() - half..]);
    format!("{}…{} ({} bytes)", escape(start), escape(end), bytes.len())
}
