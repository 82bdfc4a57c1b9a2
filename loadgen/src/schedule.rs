//! When requests should be sent, independent of how fast they are answered.

use crate::options::Arrival;
use crate::rng::Rng;

/// The intended send times of an open loop, in nanoseconds after its start.
///
/// The time of a request is a function of its number (or, for Poisson arrivals, of the numbers
/// before it), never of an answer: this is what keeps a stalled server from hiding its stall.
#[derive(Debug)]
pub(crate) struct Schedule {
    interval_ns: f64,
    arrival: Arrival,
    /// Number of the next request.
    number: u64,
    /// Time of the next request.
    next_ns: f64,
    rng: Rng,
}

impl Schedule {
    /// `rate` requests per second; it must be positive.
    pub(crate) fn new(rate: f64, arrival: Arrival, seed: u64) -> Self {
        assert!(rate > 0.0, "a schedule needs a positive rate, not {rate}");
        Self { interval_ns: 1e9 / rate, arrival, number: 0, next_ns: 0.0, rng: Rng::new(seed) }
    }

    /// When the next request is due.
    pub(crate) const fn next_due_ns(&self) -> u64 {
        self.next_ns as u64
    }

    /// The next request's time if that is not after `now_ns`; moves on to the one after it.
    pub(crate) fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_due_ns();
        if due > now_ns {
            return None;
        }
        self.number += 1;
        self.next_ns = match self.arrival {
            // From the number, not by adding up: rounding errors do not become a drift.
            Arrival::Constant => self.number as f64 * self.interval_ns,
            Arrival::Poisson => self.next_ns - (1.0 - self.rng.unit()).ln() * self.interval_ns,
        };
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(schedule: &mut Schedule, until_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take_due(until_ns)).collect()
    }

    #[test]
    fn constant_spacing_hits_every_time_exactly_once() {
        let mut schedule = Schedule::new(4.0, Arrival::Constant, 1);
        assert_eq!(times(&mut schedule, 500_000_000), [0, 250_000_000, 500_000_000]);
        assert!(times(&mut schedule, 749_999_999).is_empty());
        assert_eq!(schedule.next_due_ns(), 750_000_000);
        assert_eq!(times(&mut schedule, 1_000_000_000), [750_000_000, 1_000_000_000]);
    }

    /// A rate without a whole number of nanoseconds between requests keeps its count over an hour.
    #[test]
    fn constant_spacing_does_not_drift() {
        let mut schedule = Schedule::new(30.0 / 7.0, Arrival::Constant, 1);
        let hour_ns = 3_600_000_000_000;
        let all = times(&mut schedule, hour_ns - 1);
        assert_eq!(all.len(), 15429, "3600 s * 30/7 per second, the first at 0");
        for (n, &at) in all.iter().enumerate() {
            let exact = n as f64 * 7e9 / 30.0;
            assert!((at as f64 - exact).abs() <= 1.0, "request {n} at {at}, exact {exact}");
        }
    }

    /// Poisson arrivals: the mean rate is kept, gaps have standard deviation = mean.
    #[test]
    fn poisson_gaps_are_exponential() {
        let mut schedule = Schedule::new(10_000.0, Arrival::Poisson, 42);
        let all = times(&mut schedule, 10_000_000_000);
        let n = all.len() as f64;
        assert!((n - 100_000.0).abs() < 1_500.0, "{n} arrivals in 10 s at 10k/s");
        let gaps: Vec<f64> = all.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{} / {mean}", variance.sqrt());
    }

    #[test]
    fn same_seed_same_arrivals() {
        let run = |seed| times(&mut Schedule::new(500.0, Arrival::Poisson, seed), 1_000_000_000);
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
