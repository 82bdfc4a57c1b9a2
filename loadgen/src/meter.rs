//! Counting: latencies, errors by kind, every second, and how late the generator itself was.

use std::collections::BTreeMap;
use std::ops::Range;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::request::Op;

/// Longest latency that is told apart from longer ones.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Different error kinds that are told apart.
const ERROR_KINDS_MAX: usize = 64;

/// Seconds kept for the series: about a day.
const SERIES_MAX: usize = 100_000;

/// A histogram of nanoseconds with three digits and a resolution of 64 ns.
pub(crate) fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, LATENCY_NS_MAX, 3).expect("the bounds are far enough apart")
}

/// One line of the series.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Second {
    /// Seconds since the load started, at the end of this one.
    pub t: f64,
    /// Whether it was (partly) before the measurement.
    pub warmup: bool,
    /// Requests answered.
    pub ops: u64,
    /// Median latency of those, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// 99.9th percentile, ms.
    pub p99_9_ms: f64,
    /// Longest, ms.
    pub max_ms: f64,
    /// Requests failed.
    pub errors: u64,
    /// Redirections followed.
    pub moved: u64,
    /// Scheduled requests dropped because too many waited.
    pub dropped: u64,
    /// Unanswered requests at its end.
    pub in_flight: u64,
    /// Scheduled requests not sent yet at its end.
    pub backlog: u64,
}

/// Failed requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub example: String,
}

/// Everything that is counted. Only requests scheduled inside the measured window count for the
/// totals; the series counts every answer in the second it came.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Measured window in nanoseconds since the load started.
    pub(crate) window: Range<u64>,
    /// From the intended send time to the answer.
    pub(crate) latency: Histogram<u64>,
    /// From the actual send to the answer.
    pub(crate) service: Histogram<u64>,
    /// How late requests were sent though nothing but the generator held them up.
    pub(crate) lag: Histogram<u64>,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// Reads that found no value.
    pub(crate) missing: u64,
    /// Reads that found less than was acknowledged before they were sent.
    pub(crate) stale: u64,
    /// Answers that arrived inside the window.
    pub(crate) answers_in_window: u64,
    pub(crate) errors: BTreeMap<String, ErrorCount>,
    pub(crate) moved: u64,
    /// Refusals after which the request was sent again, by their code.
    pub(crate) retried: BTreeMap<&'static str, u64>,
    pub(crate) dropped: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) connections_lost: u64,
    pub(crate) connects_failed: u64,
    pub(crate) series: Vec<Second>,
    second: Second,
    second_latency: Histogram<u64>,
}

impl Meter {
    pub(crate) fn new(window: Range<u64>) -> Self {
        Self {
            window,
            latency: latency_histogram(),
            service: latency_histogram(),
            lag: latency_histogram(),
            reads: 0,
            writes: 0,
            missing: 0,
            stale: 0,
            answers_in_window: 0,
            errors: BTreeMap::new(),
            moved: 0,
            retried: BTreeMap::new(),
            dropped: 0,
            sent_bytes: 0,
            received_bytes: 0,
            connections_lost: 0,
            connects_failed: 0,
            series: Vec::new(),
            second: Second::default(),
            second_latency: latency_histogram(),
        }
    }

    /// A request was answered with success.
    pub(crate) fn answered(&mut self, op: Op, intended_ns: u64, sent_ns: u64, now_ns: u64) {
        let latency = now_ns.saturating_sub(intended_ns);
        self.second.ops += 1;
        self.second_latency.saturating_record(latency);
        self.answers_in_window += u64::from(self.window.contains(&now_ns));
        if !self.window.contains(&intended_ns) {
            return;
        }
        self.latency.saturating_record(latency);
        self.service.saturating_record(now_ns.saturating_sub(sent_ns));
        match op {
            Op::Read => self.reads += 1,
            Op::Write => self.writes += 1,
        }
    }

    /// A request failed. `kind` is a short name, `text` what is known about this case.
    pub(crate) fn failed(&mut self, kind: &str, text: &str, intended_ns: u64) {
        self.second.errors += 1;
        if !self.window.contains(&intended_ns) {
            return;
        }
        // Looked up by reference first: the common case allocates nothing.
        if let Some(known) = self.errors.get_mut(kind) {
            known.count += 1;
            return;
        }
        let kind = if self.errors.len() < ERROR_KINDS_MAX { kind } else { "other" };
        let entry = self.errors.entry(kind.to_owned()).or_default();
        entry.count += 1;
        if entry.example.is_empty() {
            entry.example = text.chars().take(200).collect();
        }
    }

    /// A read found no value.
    pub(crate) fn found_nothing(&mut self, intended_ns: u64) {
        self.missing += u64::from(self.window.contains(&intended_ns));
    }

    /// Bytes went out.
    pub(crate) fn sent(&mut self, bytes: usize, now_ns: u64) {
        if self.window.contains(&now_ns) {
            self.sent_bytes += bytes as u64;
        }
    }

    /// Bytes came in.
    pub(crate) fn received(&mut self, bytes: usize, now_ns: u64) {
        if self.window.contains(&now_ns) {
            self.received_bytes += bytes as u64;
        }
    }

    /// A redirection was followed.
    pub(crate) fn redirected(&mut self, intended_ns: u64) {
        self.second.moved += 1;
        self.moved += u64::from(self.window.contains(&intended_ns));
    }

    /// A request was refused for the moment and will be sent again.
    pub(crate) fn retried(&mut self, code: &'static str, intended_ns: u64) {
        if self.window.contains(&intended_ns) {
            *self.retried.entry(code).or_default() += 1;
        }
    }

    /// A scheduled request could not even wait.
    pub(crate) fn drop_one(&mut self, intended_ns: u64) {
        self.second.dropped += 1;
        self.dropped += u64::from(self.window.contains(&intended_ns));
    }

    /// A request found room at once but left this long after its intended time.
    pub(crate) fn lagged(&mut self, intended_ns: u64, now_ns: u64) {
        if self.window.contains(&intended_ns) {
            self.lag.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    /// Ends the current second of the series.
    pub(crate) fn end_second(
        &mut self,
        start_ns: u64,
        now_ns: u64,
        in_flight: u64,
        backlog: u64,
    ) -> Second {
        let quantile = |q| millis(self.second_latency.value_at_quantile(q));
        let second = Second {
            t: now_ns.saturating_sub(start_ns) as f64 / 1e9,
            warmup: now_ns <= self.window.start,
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            p99_9_ms: quantile(0.999),
            max_ms: millis(self.second_latency.max()),
            in_flight,
            backlog,
            ..std::mem::take(&mut self.second)
        };
        self.second_latency.reset();
        if self.series.len() < SERIES_MAX {
            self.series.push(second.clone());
        }
        second
    }

    /// All failed requests of the window.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().map(|error| error.count).sum()
    }
}

/// Nanoseconds as milliseconds.
pub(crate) fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts_for_the_totals() {
        let mut meter = Meter::new(1_000..2_000);
        meter.answered(Op::Read, 999, 999, 1_500);
        meter.answered(Op::Write, 1_000, 1_200, 1_700);
        meter.answered(Op::Write, 1_999, 1_999, 9_000);
        meter.answered(Op::Read, 2_000, 2_000, 2_100);
        assert_eq!((meter.reads, meter.writes, meter.answers_in_window), (0, 2, 2));
        assert_eq!((meter.latency.len(), meter.service.len()), (2, 2));
        assert!(meter.latency.max() >= 7_001, "counted from the intended time");
        let second = meter.end_second(0, 1_000_000_000, 3, 4);
        assert_eq!((second.ops, second.in_flight, second.backlog), (4, 3, 4));
        assert_eq!(meter.end_second(0, 2_000_000_000, 0, 0).ops, 0, "the next second starts empty");
    }

    #[test]
    fn error_kinds_are_bounded() {
        let mut meter = Meter::new(0..u64::MAX);
        for n in 0..1_000 {
            meter.failed(&format!("KIND{n}"), "first", 5);
            meter.failed("KIND0", "second", 5);
        }
        assert_eq!(meter.errors.len(), ERROR_KINDS_MAX + 1);
        assert_eq!(meter.errors["KIND0"], ErrorCount { count: 1001, example: "first".to_owned() });
        assert_eq!(meter.error_count(), 2_000);
    }
}
