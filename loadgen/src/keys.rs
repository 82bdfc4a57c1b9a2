//! Which key comes next: uniform, Zipf-distributed, or a hot set.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::rng::Rng;

/// How requests spread over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every key equally often.
    Uniform,
    /// Key `k` (from 0) with weight `1 / (k + 1)^exponent`.
    Zipf {
        /// Above 0; 0.99 is YCSB's default.
        exponent: f64,
    },
    /// A small part of the keys gets most of the requests.
    HotSet {
        /// Part of the keys that is hot, above 0 and below 1.
        keys: f64,
        /// Part of the requests that goes to them, from 0 to 1.
        requests: f64,
    },
}

impl Distribution {
    /// `hotset` without numbers: 90 % of the requests go to 10 % of the keys.
    pub const HOTSET: Self = Self::HotSet { keys: 0.1, requests: 0.9 };
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { exponent } => write!(f, "zipf:{exponent}"),
            Self::HotSet { keys, requests } => write!(f, "hotset:{keys}:{requests}"),
        }
    }
}

impl Serialize for Distribution {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.parse::<f64>().map_err(|_| format!("`{part}` in `{text}` is not a number"))
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            ["uniform"] => Ok(Self::Uniform),
            ["zipf"] => Ok(Self::Zipf { exponent: 0.99 }),
            ["zipf", exponent] => match number(exponent)? {
                exponent if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf { exponent }),
                other => Err(format!("the exponent is {other}, but must be above 0, up to 10")),
            },
            ["hotset"] => Ok(Self::HOTSET),
            ["hotset", keys, requests] => match (number(keys)?, number(requests)?) {
                (keys, requests) if keys > 0.0 && keys < 1.0 && (0.0..=1.0).contains(&requests) => {
                    Ok(Self::HotSet { keys, requests })
                }
                (keys, requests) => Err(format!(
                    "the hot set is {keys} of the keys with {requests} of the requests, but both \
                     are parts of 1"
                )),
            },
            _ => Err(format!(
                "`{text}` is none of uniform, zipf:EXPONENT, hotset, hotset:KEYS:REQUESTS"
            )),
        }
    }
}

/// Draws key numbers in `0..key_count`.
#[derive(Debug)]
pub(crate) struct KeyChooser {
    key_count: u64,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Uniform,
    Zipf(Zipf),
    HotSet { hot_count: u64, requests: f64 },
}

impl KeyChooser {
    pub(crate) fn new(distribution: Distribution, key_count: u64) -> Self {
        assert!(key_count > 0, "there must be a key to choose");
        let shape = match distribution {
            Distribution::Uniform => Shape::Uniform,
            Distribution::Zipf { exponent } => Shape::Zipf(Zipf::new(key_count, exponent)),
            Distribution::HotSet { .. } if key_count == 1 => Shape::Uniform,
            Distribution::HotSet { keys, requests } => Shape::HotSet {
                hot_count: ((key_count as f64 * keys) as u64).clamp(1, key_count - 1),
                requests,
            },
        };
        Self { key_count, shape }
    }

    pub(crate) fn choose(&self, rng: &mut Rng) -> u64 {
        match &self.shape {
            Shape::Uniform => rng.below(self.key_count),
            Shape::Zipf(zipf) => zipf.sample(rng) - 1,
            Shape::HotSet { hot_count, requests } => {
                if rng.unit() < *requests {
                    rng.below(*hot_count)
                } else {
                    hot_count + rng.below(self.key_count - hot_count)
                }
            }
        }
    }
}

/// Zipf's distribution over `1..=n` by rejection-inversion (Hörmann, Derflinger: "Rejection-
/// inversion to generate variates from monotone discrete distributions"): constant time and no
/// table, so a billion keys cost the same as ten.
#[derive(Debug)]
struct Zipf {
    n: f64,
    exponent: f64,
    /// Integral of the density up to 1.5, less the mass of 1.
    low: f64,
    /// Integral of the density up to n + 0.5.
    high: f64,
    /// Points this close below their integer are accepted without evaluating the density.
    squeeze: f64,
}

impl Zipf {
    fn new(n: u64, exponent: f64) -> Self {
        let mut zipf = Self { n: n as f64, exponent, low: 0.0, high: 0.0, squeeze: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(zipf.n + 0.5);
        zipf.squeeze = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    fn sample(&self, rng: &mut Rng) -> u64 {
        loop {
            let area = self.high + rng.unit() * (self.low - self.high);
            let x = self.inverse(area);
            let k = (x + 0.5).floor().clamp(1.0, self.n);
            if k - x <= self.squeeze || area >= self.integral(k + 0.5) - self.density(k) {
                return k as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// `(x^(1-e) - 1) / (1-e)`, continued by `ln x` at exponent 1 and stable around it.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let t = (1.0 - self.exponent) * log;
        log * if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 }
    }

    fn inverse(&self, area: f64) -> f64 {
        // Rounding may put the product below -1, where the logarithm does not exist.
        let t = (area * (1.0 - self.exponent)).max(-1.0);
        (area * if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 }).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution, key_count: u64, draws: u32) -> Vec<f64> {
        let chooser = KeyChooser::new(distribution, key_count);
        let mut rng = Rng::new(11);
        let mut counts = vec![0.0; key_count as usize];
        for _ in 0..draws {
            counts[chooser.choose(&mut rng) as usize] += 1.0;
        }
        counts
    }

    /// Every key's frequency against the definition, below, at and above exponent 1.
    #[test]
    fn zipf_has_the_defined_shape() {
        let draws = 400_000;
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let counts = counts(Distribution::Zipf { exponent }, 50, draws);
            let weights: Vec<f64> = (1..=50).map(|k| f64::from(k).powf(-exponent)).collect();
            let total: f64 = weights.iter().sum();
            for (key, (count, weight)) in counts.iter().zip(&weights).enumerate() {
                let expected = f64::from(draws) * weight / total;
                let off = (count - expected).abs();
                assert!(
                    off < 5.0 * expected.sqrt(),
                    "{exponent}: key {key}: {count}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn zipf_works_at_the_edges() {
        assert_eq!(counts(Distribution::Zipf { exponent: 0.99 }, 1, 100), [100.0]);
        let chooser = KeyChooser::new(Distribution::Zipf { exponent: 0.99 }, 1 << 40);
        let mut rng = Rng::new(3);
        let largest = (0..10_000).map(|_| chooser.choose(&mut rng)).max();
        assert!(largest > Some(1 << 35), "the far tail is reached: {largest:?}");
        assert!(largest < Some(1 << 40));
    }

    #[test]
    fn uniform_and_hot_set_have_their_shares() {
        let uniform = counts(Distribution::Uniform, 10, 100_000);
        assert!(uniform.iter().all(|&n| (9_500.0..10_500.0).contains(&n)), "{uniform:?}");

        let hot = counts(Distribution::HotSet { keys: 0.2, requests: 0.8 }, 10, 100_000);
        let share = (hot[0] + hot[1]) / 100_000.0;
        assert!((share - 0.8).abs() < 0.01, "{share} of the requests to the 2 hot keys of 10");
        assert_eq!(counts(Distribution::HOTSET, 1, 10), [10.0], "one key is hot and cold at once");
    }

    #[test]
    fn names_are_read_and_written() {
        for text in ["uniform", "zipf:0.99", "hotset:0.1:0.9"] {
            let parsed: Distribution = text.parse().expect(text);
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!("hotset".parse(), Ok(Distribution::HOTSET));
        assert_eq!("zipf".parse(), Ok(Distribution::Zipf { exponent: 0.99 }));
        for text in ["", "zipf:0", "zipf:x", "zipf:NaN", "hotset:1:1", "hotset:0.1", "normal"] {
            assert!(text.parse::<Distribution>().is_err(), "{text}");
        }
    }
}
