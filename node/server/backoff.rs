//! Slows down guessing of the password: after a few failures from one address, further attempts
//! from there are refused for a growing, bounded time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_engine::WallMillis;

/// Failures that cost nothing: people mistype.
const FREE_FAILURES: u32 = 5;
/// Refusal after the first failure beyond those; each further one doubles it.
const FIRST_MS: u64 = 100;
/// Longest refusal: whoever knows the password shares the address and has to wait as well.
const LONGEST_MS: u64 = 10_000;
/// Failures older than this are forgotten.
const FORGET_MS: u64 = 600_000;
/// Addresses remembered; beyond it the one that failed longest ago is forgotten.
const ADDRESSES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: WallMillis,
}

impl Failures {
    /// How long attempts are refused after the last failure.
    fn pause_ms(self) -> u64 {
        match self.count.checked_sub(FREE_FAILURES + 1) {
            None => 0,
            Some(doublings) => (FIRST_MS << doublings.min(16)).min(LONGEST_MS),
        }
    }

    /// A clock that was set back makes an old failure one of the future: that counts for nothing.
    fn age_ms(self, now: WallMillis) -> u64 {
        now.0.checked_sub(self.last.0).unwrap_or(FORGET_MS)
    }
}

/// Failed attempts of a node, by address.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: Mutex<BTreeMap<IpAddr, Failures>>,
}

impl Backoff {
    /// How long attempts from this address are refused from now on; `None` if they are not.
    pub(crate) fn refused_ms(&self, from: IpAddr, now: WallMillis) -> Option<u64> {
        let failures = *self.lock().get(&network(from))?;
        failures.pause_ms().checked_sub(failures.age_ms(now)).filter(|&left| left > 0)
    }

    /// An attempt has failed.
    pub(crate) fn failed(&self, from: IpAddr, now: WallMillis) {
        let mut all = self.lock();
        let from = network(from);
        if !all.contains_key(&from) && all.len() >= ADDRESSES_MAX {
            let oldest = all.iter().min_by_key(|(_, failures)| failures.last);
            if let Some(oldest) = oldest.map(|(&address, _)| address) {
                all.remove(&oldest);
            }
        }
        let failures = all.entry(from).or_insert(Failures { count: 0, last: now });
        if failures.age_ms(now) >= FORGET_MS {
            failures.count = 0;
        }
        *failures = Failures { count: failures.count.saturating_add(1), last: now };
    }

    /// An attempt has succeeded: who is there knows the password.
    pub(crate) fn succeeded(&self, from: IpAddr) {
        self.lock().remove(&network(from));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one stranger has: an IPv4 address, or 64 bits' worth of IPv6 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    /// A few failures are free, then the refusal doubles up to its bound, and it ends.
    #[test]
    fn refusals_grow_and_end() {
        let (backoff, from) = (Backoff::default(), address(1));
        let mut now = WallMillis(1_000_000);
        for n in 1..=FREE_FAILURES {
            backoff.failed(from, now);
            assert_eq!(backoff.refused_ms(from, now), None, "failure {n}");
        }
        for want in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            backoff.failed(from, now);
            assert_eq!(backoff.refused_ms(from, now), Some(want));
            assert_eq!(backoff.refused_ms(address(2), now), None, "others are not touched");
            assert_eq!(backoff.refused_ms(from, WallMillis(now.0 + want - 1)), Some(1));
            now.0 += want;
            assert_eq!(backoff.refused_ms(from, now), None, "after {want} ms");
        }
        backoff.failed(from, now);
        assert_eq!(backoff.refused_ms(from, WallMillis(0)), None, "a clock that was set back");
        backoff.succeeded(from);
        assert_eq!(backoff.refused_ms(from, now), None);
        for _ in 0..FREE_FAILURES {
            backoff.failed(from, now);
        }
        now.0 += FORGET_MS;
        backoff.failed(from, now);
        assert_eq!(backoff.refused_ms(from, now), None, "old failures are forgotten");
    }

    /// The table is bounded, and a stranger's many IPv6 addresses are one.
    #[test]
    fn the_table_is_bounded() {
        let backoff = Backoff::default();
        for n in 0..=ADDRESSES_MAX as u32 {
            backoff.failed(address(n), WallMillis(u64::from(n)));
            assert!(backoff.lock().len() <= ADDRESSES_MAX, "{n}");
        }
        assert!(!backoff.lock().contains_key(&address(0)), "the oldest goes");
        assert!(backoff.lock().contains_key(&address(1)));
        let v6 = |text: &str| network(text.parse().expect(text));
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:2"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:1.2.3.4"), v6("1.2.3.4"));
    }
}
