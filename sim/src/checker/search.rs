//! Just-in-time linearization of one key.
//!
//! After Wing and Gong ("Testing and verifying concurrent objects", 1993) and Lowe ("Testing for
//! linearizability", 2017): the events are taken in order of time, and a set of *configurations*
//! is kept, each a state together with the open operations that already took effect. Only when
//! an operation returns must it have taken effect; then every configuration in which it has not
//! is replaced by all those that open operations can lead to, one after the other, until this one
//! has. If none is left, no order explains the history. A configuration mentions open operations
//! only, so the cost of a step depends on how many overlap, not on how long the history is.
//!
//! What is left out, because another configuration can do whatever this one can:
//!
//! - **Reads are greedy.** An open operation that only looks takes effect as soon as the state
//!   is what it was told: this changes nothing for the others.
//! - **Unknown operations are in debt.** If an unknown operation is followed by one that does not
//!   look at the state, or by none, the order without it is as good. So it must be followed by an
//!   operation whose answer depends on the state, or by another unknown one that builds on it;
//!   and some open answer must still be reachable.
//! - **Unknown operations that do the same are alike.** It only counts how many took effect, and
//!   of two configurations that differ in nothing else the one that used fewer is enough.
//! - **A value that is still to be read is not overwritten**, if only one operation writes it and
//!   no value is derived from another.
//! - **A value that only grows does not outgrow** what an answer still to come shows.
//! - **A write that nobody reads hides** right before another one, if all answers show values; so
//!   does one together with its reads, if they are all open. A value that was read for the last
//!   time is as good as one that nobody reads.
//!
//! The tests compare every verdict with that of a search without any of this.

use ahash::RandomState;
use hashbrown::HashMap;

use super::Limits;
use super::bits::Bits;
use super::model::{Act, State, Told, number};
use super::plan::{Class, Event, Plan, Step, hasher};

/// Where a history may be after the events so far.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) state: State,
    /// The open operations that took effect, by slot.
    pub(super) done: Bits,
    /// How many of each class of unknown operations took effect; ascending, without zeros.
    used: Used,
    /// The last operation is an unknown one, and nothing shows yet that it took effect.
    debt: bool,
    /// The last operation in [`Search::trail`]; [`NO_TRAIL`] if there is none.
    trail: u32,
}

/// Class and count.
type Used = Vec<(u32, u32)>;

const NO_TRAIL: u32 = u32::MAX;

/// One step of an order of operations.
#[derive(Clone, Copy, Debug)]
struct Placed {
    op: u32,
    before: u32,
    depth: u32,
}

/// What the search knows about the operations of unknown outcome that do the same.
#[derive(Clone, Copy, Debug, Default)]
struct Unknown {
    /// Called, and not known to have taken effect in every configuration.
    open: u32,
    /// Took effect in every configuration, and forgotten there.
    retired: u32,
}

/// How a search ended early.
#[derive(Debug)]
pub(super) enum Stuck {
    /// This operation has no place before its return.
    At(u32),
    /// The limit was reached at the return of this operation.
    Limit(u32),
}

#[derive(Debug)]
pub(super) struct Search<'a> {
    plan: &'a Plan<'a>,
    limits: Limits,
    /// Whether answers still to come are looked at.
    foresight: bool,
    /// Called and not returned, by slot.
    pub(super) open: Vec<Option<u32>>,
    unknown: Vec<Unknown>,
    /// Classes with open operations, ascending.
    live: Vec<u32>,
    /// Answers still to come that show a value, by value.
    readers: Vec<u32>,
    /// The event that is taken.
    at: usize,
    pub(super) configs: Vec<Config>,
    /// Every configuration looked at in the last step; only when traced.
    pub(super) looked_at: Vec<Config>,
    trail: Option<Vec<Placed>>,
    pub(super) states: u64,
    pub(super) widest: usize,
}

impl<'a> Search<'a> {
    /// A search that is as quick as it can be.
    pub(super) fn new(plan: &'a Plan<'a>, limits: Limits) -> Self {
        Self::with(plan, limits, true, false)
    }

    /// A search that remembers the order of operations if it is `traced`, and fails no earlier
    /// than it must if it has no `foresight`.
    pub(super) fn with(plan: &'a Plan<'a>, limits: Limits, foresight: bool, traced: bool) -> Self {
        let start = Config {
            state: State::Absent,
            done: Bits::default(),
            used: Vec::new(),
            debt: false,
            trail: NO_TRAIL,
        };
        Self {
            plan,
            limits,
            foresight,
            open: Vec::new(),
            unknown: vec![Unknown::default(); plan.classes.len()],
            live: Vec::new(),
            readers: plan.values.iter().map(|value| value.readers).collect(),
            at: 0,
            configs: vec![start],
            looked_at: Vec::new(),
            trail: traced.then(Vec::new),
            states: 0,
            widest: 1,
        }
    }

    /// Takes all events.
    pub(super) fn run(&mut self) -> Result<(), Stuck> {
        for (at, &event) in self.plan.events.iter().enumerate() {
            self.at = at;
            match event {
                Event::Call(op) => match self.open.iter().position(Option::is_none) {
                    Some(slot) => self.open[slot] = Some(op),
                    None => self.open.push(Some(op)),
                },
                Event::Unknown(class) => {
                    self.unknown[class as usize].open += 1;
                    if let Err(at) = self.live.binary_search(&class) {
                        self.live.insert(at, class);
                    }
                }
                Event::Return(op) => self.give_back(op)?,
            }
        }
        Ok(())
    }

    /// An operation returned: it took effect before now.
    fn give_back(&mut self, op: u32) -> Result<(), Stuck> {
        let slot = self.open.iter().position(|open| *open == Some(op)).expect("it was called");
        let mut configs = self.place(op, slot)?;
        for config in &mut configs {
            config.done.remove(slot);
        }
        self.configs = configs;
        self.widest = self.widest.max(self.configs.len());
        self.open[slot] = None;
        while self.open.last() == Some(&None) {
            self.open.pop();
        }
        if let Some(value) = self.plan.steps[op as usize].shows() {
            self.readers[value] -= 1;
        }
        self.retire();
        Ok(())
    }

    /// The configurations in which the operation in this slot took effect.
    fn place(&mut self, op: u32, slot: usize) -> Result<Vec<Config>, Stuck> {
        let mut found = Frontier::default();
        let mut seen = Frontier::default();
        let mut results = Vec::new();
        let mut stack = Vec::new();
        self.looked_at.clear();
        for config in self.configs.clone().into_iter().rev() {
            self.reach(config, slot, (&mut found, &mut results), (&mut seen, &mut stack));
        }
        let mut looked = 0;
        while let Some(config) = stack.pop() {
            looked += 1;
            self.states += 1;
            if looked > self.limits.states_per_step || self.states > self.limits.states {
                return Err(Stuck::Limit(op));
            }
            for next in self.successors(&config) {
                self.reach(next, slot, (&mut found, &mut results), (&mut seen, &mut stack));
            }
            if self.trail.is_some() {
                self.looked_at.push(config);
            }
        }
        results.retain(|config| found.is_least(config));
        if results.is_empty() { Err(Stuck::At(op)) } else { Ok(results) }
    }

    /// Lets reads look, then keeps the configuration as a result or as one to go on from.
    fn reach(
        &mut self,
        mut config: Config,
        slot: usize,
        (found, results): (&mut Frontier, &mut Vec<Config>),
        (seen, stack): (&mut Frontier, &mut Vec<Config>),
    ) {
        self.settle(&mut config);
        if self.plan.growing && self.foresight && self.has_outgrown(&config) {
            return;
        }
        if config.done.contains(slot) && !config.debt {
            if found.insert(&config) {
                results.push(config);
            }
        } else if seen.insert(&config) {
            stack.push(config);
        }
    }

    /// Everything that one more operation leads to.
    fn successors(&mut self, config: &Config) -> Vec<Config> {
        let plan = self.plan;
        let mut next = Vec::new();
        for slot in 0..self.open.len() {
            let Some(op) = self.left(slot, &config.done) else { continue };
            let Step { act, told } = &plan.steps[op as usize];
            if config.debt && !plan.steps[op as usize].observes() {
                continue;
            }
            let Some(state) = act.apply(&config.state, told) else { continue };
            let mut after = config.clone();
            after.done.insert(slot);
            if state != config.state && self.is_awaited(&config.state, &after.done) {
                continue;
            }
            if plan.register && *told == Told::Nothing {
                self.hide(&mut after);
            }
            self.note(&mut after, op);
            after.state = state;
            after.debt = false;
            next.push(after);
        }
        for index in 0..self.live.len() {
            let class = self.live[index];
            let Class { act, ops } = &plan.classes[class as usize];
            let used = config.used_of(class);
            let Unknown { open, retired } = self.unknown[class as usize];
            if used == open || config.debt && act.overwrites() {
                continue;
            }
            let Some(state) = act.apply(&config.state, &Told::Nothing) else { continue };
            if state == config.state
                || self.is_awaited(&config.state, &config.done)
                || !self.is_useful(&state, &config.done)
            {
                continue;
            }
            let mut after = config.clone();
            if plan.register && act.overwrites() {
                self.hide(&mut after);
            }
            after.add_used(class);
            self.note(&mut after, ops[(retired + used) as usize]);
            after.state = state;
            after.debt = true;
            next.push(after);
        }
        next
    }

    /// Lets every open operation that only looks take effect if it was told this state.
    fn settle(&mut self, config: &mut Config) {
        for slot in 0..self.open.len() {
            let Some(op) = self.left(slot, &config.done) else { continue };
            let Step { act, told } = &self.plan.steps[op as usize];
            if act.only_reads(told) && act.apply(&config.state, told).is_some() {
                config.done.insert(slot);
                config.debt = false;
                self.note(config, op);
            }
        }
        if let State::Known(value) = config.state
            && self.foresight
            && self.awaited(value, &config.done) == 0
        {
            config.state = State::Unread;
        }
        if self.plan.register && config.state == State::Unread {
            self.hide(config);
        }
    }

    /// Lets every open write take effect, with all its reads, that leaves no trace because another
    /// write follows.
    fn hide(&mut self, config: &mut Config) {
        for slot in 0..self.open.len() {
            let Some(op) = self.left(slot, &config.done) else { continue };
            let reads = match self.plan.steps[op as usize].act {
                Act::Set(State::Unread) => Vec::new(),
                Act::Set(State::Known(value)) if self.foresight => {
                    let Some(reads) = self.all_reads(value, config) else { continue };
                    reads
                }
                _ => continue,
            };
            config.done.insert(slot);
            self.note(config, op);
            for (slot, op) in reads {
                config.done.insert(slot);
                self.note(config, op);
            }
        }
    }

    /// The open reads of a value, by slot, if they are all operations that will ever see it and
    /// only one operation writes it.
    fn all_reads(&self, value: u32, config: &Config) -> Option<Vec<(usize, u32)>> {
        let awaited = self.awaited(value, &config.done);
        if self.plan.values[value as usize].writers > 1 || awaited > self.open.len() {
            return None;
        }
        let left =
            (0..self.open.len()).filter_map(|slot| Some((slot, self.left(slot, &config.done)?)));
        let reads: Vec<_> = left
            .filter(|(_, op)| {
                let Step { act, told } = &self.plan.steps[*op as usize];
                act.only_reads(told) && *told == Told::State(State::Known(value))
            })
            .collect();
        (reads.len() == awaited).then_some(reads)
    }

    /// The operation in a slot, unless it took effect.
    fn left(&self, slot: usize, done: &Bits) -> Option<u32> {
        self.open[slot].filter(|_| !done.contains(slot))
    }

    /// How many answers still to come show a value.
    fn awaited(&self, value: u32, done: &Bits) -> usize {
        let shows = |op: u32| self.plan.steps[op as usize].shows() == Some(value as usize);
        let open = self.open.iter().enumerate();
        let looked = open.filter(|(slot, op)| done.contains(*slot) && op.is_some_and(shows));
        self.readers[value as usize] as usize - looked.count()
    }

    /// Whether answers still to come show this value, which cannot be written again.
    fn is_awaited(&self, state: &State, done: &Bits) -> bool {
        let State::Known(value) = *state else { return false };
        let again = self.plan.values[value as usize].writers > 1;
        self.foresight && !again && self.awaited(value, done) > 0
    }

    /// Whether an answer still to come shows less than a value that only grows.
    fn has_outgrown(&self, config: &Config) -> bool {
        let open = self.open.iter().enumerate().filter(|(slot, _)| !config.done.contains(*slot));
        let mut open = open.filter_map(|(_, op)| *op);
        !self.plan.is_within_future(self.at, &config.state)
            || open.any(|op| !self.plan.is_within_step(op, &config.state))
    }

    /// Whether some open answer may show that an unknown operation led to this state, at once or
    /// after more unknown operations that build on it.
    fn is_useful(&self, state: &State, done: &Bits) -> bool {
        let open = self.open.iter().enumerate().filter(|(slot, _)| !done.contains(*slot));
        let mut steps = open.filter_map(|(_, op)| Some(&self.plan.steps[(*op)? as usize]));
        steps.any(|step| step.observes() && self.may_lead_to(state, step))
    }

    fn may_lead_to(&self, state: &State, step: &Step) -> bool {
        let plan = self.plan;
        let appends = plan.unknown_appends;
        let counts = plan.unknown_adds || plan.unknown_subtracts;
        if step.act.apply(state, &step.told).is_some() {
            return true;
        }
        if !state.is_present() && plan.unknown_setnx || appends && counts {
            return true;
        }
        if appends {
            return match (&step.act, &step.told) {
                (Act::Append(suffix), Told::Integer(len)) => {
                    (state.bytes().len() + suffix.len()) as i64 <= *len
                }
                (_, Told::State(State::Bytes(bytes))) => bytes.starts_with(state.bytes()),
                (_, Told::State(_)) => false,
                _ => true,
            };
        }
        if counts {
            let Some(from) = state.number() else { return false };
            let to = match (&step.act, &step.told) {
                (Act::Incr(by), Told::Integer(sum)) => sum.checked_sub(*by),
                (_, Told::State(State::Bytes(bytes))) => number(bytes),
                (_, Told::State(_)) => None,
                _ => return true,
            };
            return to.is_some_and(|to| {
                to >= from && plan.unknown_adds || to <= from && plan.unknown_subtracts
            });
        }
        false
    }

    /// Forgets unknown operations that took effect in every configuration.
    fn retire(&mut self) {
        let Some((first, others)) = self.configs.split_first() else { return };
        let mut common = first.used.clone();
        for (class, count) in &mut common {
            for other in others {
                *count = (*count).min(other.used_of(*class));
            }
        }
        common.retain(|(_, count)| *count > 0);
        for (class, count) in common {
            for config in &mut self.configs {
                config.forget_used(class, count);
            }
            let unknown = &mut self.unknown[class as usize];
            unknown.open -= count;
            unknown.retired += count;
            if unknown.open == 0 {
                self.live.retain(|other| *other != class);
            }
        }
    }

    fn note(&mut self, config: &mut Config, op: u32) {
        let Some(trail) = &mut self.trail else { return };
        let depth = trail.get(config.trail as usize).map_or(1, |placed| placed.depth + 1);
        trail.push(Placed { op, before: config.trail, depth });
        config.trail = trail.len() as u32 - 1;
    }

    /// The last operations of the order that led to a configuration, at most `count`, and how
    /// many precede them.
    pub(super) fn order(&self, config: &Config, count: usize) -> (u32, Vec<u32>) {
        let trail = self.trail.as_deref().unwrap_or_default();
        let mut at = config.trail;
        let mut order = Vec::new();
        while let Some(placed) = trail.get(at as usize) {
            if order.len() == count {
                order.reverse();
                return (placed.depth, order);
            }
            order.push(placed.op);
            at = placed.before;
        }
        order.reverse();
        (0, order)
    }

    /// How many operations led to a configuration.
    pub(super) fn depth(&self, config: &Config) -> u32 {
        let trail = self.trail.as_deref().unwrap_or_default();
        trail.get(config.trail as usize).map_or(0, |placed| placed.depth)
    }
}

impl Config {
    fn used_of(&self, class: u32) -> u32 {
        self.used.binary_search_by_key(&class, |used| used.0).map_or(0, |at| self.used[at].1)
    }

    fn add_used(&mut self, class: u32) {
        match self.used.binary_search_by_key(&class, |used| used.0) {
            Ok(at) => self.used[at].1 += 1,
            Err(at) => self.used.insert(at, (class, 1)),
        }
    }

    fn forget_used(&mut self, class: u32, count: u32) {
        let at = self.used.binary_search_by_key(&class, |used| used.0).expect("it was used");
        self.used[at].1 -= count;
        if self.used[at].1 == 0 {
            self.used.remove(at);
        }
    }
}

/// Configurations seen; of those that differ only in the unknown operations that they used, the
/// ones that used least.
#[derive(Debug)]
struct Frontier {
    least: HashMap<(State, Bits, bool), Vec<Used>, RandomState>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self { least: HashMap::with_hasher(hasher()) }
    }
}

impl Frontier {
    /// Whether it is new: nothing that used as little or less was seen.
    fn insert(&mut self, config: &Config) -> bool {
        let key = (config.state.clone(), config.done.clone(), config.debt);
        let least = self.least.entry(key).or_default();
        if least.iter().any(|used| is_within(used, &config.used)) {
            return false;
        }
        least.retain(|used| !is_within(&config.used, used));
        least.push(config.used.clone());
        true
    }

    /// Whether nothing that used less was seen.
    fn is_least(&self, config: &Config) -> bool {
        let key = (config.state.clone(), config.done.clone(), config.debt);
        self.least.get(&key).is_some_and(|least| least.contains(&config.used))
    }
}

/// Whether every count of `few` is at most that of `many`.
fn is_within(few: &[(u32, u32)], many: &[(u32, u32)]) -> bool {
    few.iter().all(|&(class, count)| {
        let at = many.binary_search_by_key(&class, |used| used.0);
        at.is_ok_and(|at| count <= many[at].1)
    })
}
