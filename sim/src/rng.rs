//! Where all randomness of a run comes from.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator of one purpose of one seed: different purposes do not disturb each other.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        let salt = purpose.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let mut rng = Self(seed ^ salt);
        rng.next();
        rng
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`. Panics if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// A number in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// One of these. Panics if there are none.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// A waiting time with this mean, exponentially distributed, at least 1 and at most ten times
    /// the mean.
    pub(crate) fn wait(&mut self, mean: u64) -> u64 {
        let drawn = -(1.0 - self.unit()).ln() * mean as f64;
        (drawn as u64).clamp(1, mean.max(1) * 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_independent_and_repeatable() {
        let draw = |purpose| Rng::new(7, purpose).next();
        assert_eq!(draw("net"), draw("net"));
        assert_ne!(draw("net"), draw("disk"));
    }

    #[test]
    fn ranges_reach_both_ends_and_waits_have_their_mean() {
        let mut rng = Rng::new(1, "test");
        let mut seen = [0u32; 4];
        let mut sum = 0;
        for _ in 0..4000 {
            seen[rng.between(3, 6) as usize - 3] += 1;
            sum += rng.wait(1000);
        }
        assert!(seen.iter().all(|&n| n > 800), "{seen:?}");
        assert!((900..1100).contains(&(sum / 4000)), "{}", sum / 4000);
    }
}
