//! Which requests are made, and when.

use crate::fleet::Request;
use crate::keys::KeyChooser;
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::options::{Command, Options};
use crate::request::Op;
use crate::rng::Rng;
use crate::schedule::Schedule;

/// Requests made in one turn at most, so that answers are looked at in between.
const PER_TURN_MAX: usize = 1024;

/// Neighbours tried for a write when the chosen key has one in flight.
const PROBES_MAX: u64 = 64;

/// What decides that a request is due.
#[derive(Debug)]
enum Pace {
    /// The clock.
    Open(Schedule),
    /// An answer: this many are always outstanding.
    Closed { in_flight: usize },
    /// The same, but each key once, in order.
    Sweep { next: u64, end: u64, in_flight: usize },
}

/// Makes requests for a stretch of time.
#[derive(Debug)]
pub(crate) struct Source {
    pace: Pace,
    /// When the schedule begins.
    start_ns: u64,
    /// No request is made at or after this.
    pub(crate) end_ns: u64,
    chooser: KeyChooser,
    key_count: u64,
    read_ratio: f64,
    rng: Rng,
    sequence: u64,
    /// Scheduled times for which every key tried had a write in flight.
    keyless: std::collections::VecDeque<u64>,
    backlog_max: usize,
}

/// What is outstanding when requests are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Sent and not answered.
    pub(crate) in_flight: usize,
    /// Made and not sent.
    pub(crate) backlog: usize,
}

impl Source {
    /// The load that was asked for. `first_sequence` marks its writes when there is no ledger.
    pub(crate) fn load(options: &Options, start_ns: u64, end_ns: u64, first_sequence: u64) -> Self {
        let pace = match options.rate {
            Some(rate) => Pace::Open(Schedule::new(rate, options.arrival, !options.seed)),
            None => Pace::Closed { in_flight: options.connections * options.pipeline },
        };
        Self {
            pace,
            start_ns,
            end_ns,
            chooser: KeyChooser::new(options.dist, options.keys),
            key_count: options.keys,
            read_ratio: if options.command == Command::Get { 1.0 } else { options.read_ratio },
            rng: Rng::new(options.seed),
            sequence: first_sequence,
            keyless: std::collections::VecDeque::new(),
            backlog_max: options.backlog,
        }
    }

    /// One write of every key.
    pub(crate) fn sweep(options: &Options, first_sequence: u64) -> Self {
        let in_flight = options.connections * options.pipeline;
        let mut source = Self::load(options, 0, u64::MAX, first_sequence);
        source.pace = Pace::Sweep { next: 0, end: options.keys, in_flight };
        source.read_ratio = 0.0;
        source
    }

    /// Whether no request will come any more.
    pub(crate) fn is_finished(&self, now_ns: u64) -> bool {
        let finished = match self.pace {
            Pace::Sweep { next, end, .. } => next == end || now_ns >= self.end_ns,
            // Everything scheduled before the end is still made.
            Pace::Open(ref schedule) => {
                now_ns >= self.end_ns && self.start_ns + schedule.next_due_ns() >= self.end_ns
            }
            Pace::Closed { .. } => now_ns >= self.end_ns,
        };
        finished && self.keyless.is_empty()
    }

    /// When the next request is due, if the clock decides that.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        match &self.pace {
            Pace::Open(schedule) => {
                Some(self.start_ns + schedule.next_due_ns()).filter(|&due| due < self.end_ns)
            }
            Pace::Closed { .. } | Pace::Sweep { .. } => None,
        }
    }

    /// Scheduled requests that found no key.
    pub(crate) fn keyless_count(&self) -> usize {
        self.keyless.len()
    }

    /// Keys not swept yet.
    pub(crate) fn keys_left(&self) -> u64 {
        match self.pace {
            Pace::Sweep { next, end, .. } => end - next,
            Pace::Open(_) | Pace::Closed { .. } => 0,
        }
    }

    /// Makes what is due and gives it to `take`.
    pub(crate) fn make(
        &mut self,
        now_ns: u64,
        load: Load,
        ledger: &mut Option<Ledger>,
        meter: &mut Meter,
        mut take: impl FnMut(Request),
    ) {
        let mut made = 0;
        while let Some(&intended_ns) = self.keyless.front() {
            let Some(request) = self.request(intended_ns, now_ns, ledger) else { break };
            self.keyless.pop_front();
            take(request);
            made += 1;
        }
        for _ in 0..PER_TURN_MAX {
            let outstanding = load.in_flight + load.backlog + made;
            let Some(intended_ns) = self.take_due(now_ns, outstanding) else { return };
            let open = matches!(self.pace, Pace::Open(_));
            if open && load.backlog + made + self.keyless.len() >= self.backlog_max {
                meter.drop_one(intended_ns);
                continue;
            }
            match self.request(intended_ns, now_ns, ledger) {
                Some(request) => {
                    take(request);
                    made += 1;
                }
                None if open => self.keyless.push_back(intended_ns),
                // The closed loop tries again when something was answered.
                None => return,
            }
        }
    }

    fn take_due(&mut self, now_ns: u64, outstanding: usize) -> Option<u64> {
        match &mut self.pace {
            Pace::Open(schedule) => {
                let last = now_ns.min(self.end_ns - 1).checked_sub(self.start_ns)?;
                Some(self.start_ns + schedule.take_due(last)?)
            }
            Pace::Closed { in_flight } => {
                (outstanding < *in_flight && now_ns < self.end_ns).then_some(now_ns)
            }
            Pace::Sweep { next, end, in_flight } => {
                (outstanding < *in_flight && *next < *end && now_ns < self.end_ns).then_some(now_ns)
            }
        }
    }

    /// Chooses key and operation; `None` if no key is free for a recorded write.
    fn request(
        &mut self,
        intended_ns: u64,
        now_ns: u64,
        ledger: &mut Option<Ledger>,
    ) -> Option<Request> {
        let op = if self.read_ratio > 0.0 && self.rng.unit() < self.read_ratio {
            Op::Read
        } else {
            Op::Write
        };
        let chosen = match self.pace {
            Pace::Sweep { next, .. } => next,
            Pace::Open(_) | Pace::Closed { .. } => self.chooser.choose(&mut self.rng),
        };
        let (key, sequence) = match (op, ledger) {
            (Op::Read, Some(ledger)) => (chosen, ledger.floor(chosen)),
            (Op::Write, Some(ledger)) => (0..PROBES_MAX.min(self.key_count))
                .map(|step| (chosen + step) % self.key_count)
                .find_map(|key| Some((key, ledger.begin(key)?)))?,
            (Op::Read, None) => (chosen, 0),
            (Op::Write, None) => {
                self.sequence += 1;
                (chosen, self.sequence)
            }
        };
        if let Pace::Sweep { next, .. } = &mut self.pace {
            *next += 1;
        }
        Some(Request { key, sequence, intended_ns, sent_ns: now_ns, op, redirects: 0, conn: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(source: &mut Source, now_ns: u64, in_flight: usize, backlog: usize) -> Vec<Request> {
        let mut made = Vec::new();
        let mut meter = Meter::new(0..u64::MAX);
        let load = Load { in_flight, backlog };
        source.make(now_ns, load, &mut None, &mut meter, |request| made.push(request));
        made
    }

    #[test]
    fn a_closed_loop_replaces_what_was_answered() {
        let options = Options { connections: 2, pipeline: 5, ..Options::default() };
        let mut source = Source::load(&options, 100, 1_000, 0);
        assert_eq!(make(&mut source, 100, 0, 0).len(), 10);
        assert_eq!(make(&mut source, 200, 7, 0).len(), 3);
        assert_eq!(make(&mut source, 200, 7, 3).len(), 0, "what waits counts, too");
        assert!(!source.is_finished(999) && source.is_finished(1_000));
        assert_eq!(make(&mut source, 1_000, 0, 0).len(), 0);
    }

    /// A late turn makes all that was due, with the times at which it was due.
    #[test]
    fn an_open_loop_keeps_the_intended_times() {
        let options = Options { rate: Some(1e7), ..Options::default() };
        let mut source = Source::load(&options, 1_000, 2_000, 0);
        assert_eq!(make(&mut source, 999, 0, 0).len(), 0);
        let made = make(&mut source, 1_250, 50, 50);
        let times: Vec<u64> = made.iter().map(|request| request.intended_ns).collect();
        assert_eq!(times, [1_000, 1_100, 1_200]);
        assert_eq!(source.next_due_ns(), Some(1_300));
        assert!(!source.is_finished(5_000), "what was scheduled before the end is still made");
        assert_eq!(make(&mut source, 5_000, 0, 0).len(), 7);
        assert!(source.is_finished(5_000));
        assert_eq!(source.next_due_ns(), None);
    }

    #[test]
    fn an_overlong_backlog_is_dropped_and_counted() {
        let options = Options { rate: Some(1e6), backlog: 20, ..Options::default() };
        let mut source = Source::load(&options, 0, 1_000_000, 0);
        let mut meter = Meter::new(0..u64::MAX);
        let mut made = 0;
        let load = Load { in_flight: 500, backlog: 15 };
        source.make(99_000, load, &mut None, &mut meter, |_| made += 1);
        assert_eq!((made, meter.dropped), (5, 95));
    }

    #[test]
    fn a_sweep_writes_every_key_once() {
        let options = Options { keys: 40, read_ratio: 0.5, ..Options::default() };
        let mut source = Source::sweep(&options, 0);
        let made = make(&mut source, 5, 0, 0);
        let keys: Vec<u64> = made.iter().map(|request| request.key).collect();
        assert_eq!(keys, (0..40).collect::<Vec<_>>());
        assert!(made.iter().all(|request| request.op == Op::Write));
        assert!(source.is_finished(5));
    }

    #[test]
    fn the_mix_has_its_ratio() {
        let options =
            Options { read_ratio: 0.3, rate: Some(1e9), connections: 100, ..Options::default() };
        let mut source = Source::load(&options, 0, u64::MAX, 0);
        let made: Vec<Request> = (1..20).flat_map(|n| make(&mut source, n * 2_000, 0, 0)).collect();
        let reads = made.iter().filter(|request| request.op == Op::Read).count() as f64;
        let share = reads / made.len() as f64;
        assert!(made.len() > 10_000 && (share - 0.3).abs() < 0.02, "{share} of {}", made.len());
    }
}
