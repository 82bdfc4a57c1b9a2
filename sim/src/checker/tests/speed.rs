//! Long and crowded histories.
//!
//! These assert how many states are looked at, not how long it takes, so they say the same on
//! every machine. `cargo test --release -p coracle-sim checker::tests::speed -- --nocapture`
//! shows the times.

use std::time::Instant;

use super::{Register, Rng, bytes};
use crate::checker::{Summary, check};
use crate::history::{Op, OpKind};

#[expect(clippy::print_stderr, reason = "the time is what a person looks for")]
fn timed(name: &str, ops: &[Op]) -> Summary {
    let start = Instant::now();
    let summary = check(ops).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    eprintln!("{name}: {:?}, {summary}", start.elapsed());
    summary
}

fn kind(mix: &'static [u8]) -> impl FnMut(&mut Rng, usize) -> OpKind {
    move |rng, number| match mix[rng.below(mix.len() as u64) as usize] {
        b'g' => OpKind::Get,
        b's' => OpKind::Set(bytes(format!("value-{number}"))),
        b'd' => OpKind::Del,
        b'a' => OpKind::Append(bytes(format!("suffix-{number:06}"))),
        _ => OpKind::Incr(1),
    }
}

/// 100,000 operations of 50 clients over 100 keys, 1 % of unknown outcome.
#[test]
fn a_hundred_thousand_operations_are_checked_in_seconds() {
    let mut ops = Vec::new();
    for key in 0..100 {
        let mut register = Register { rng: Rng(key), clients: 50, unknown_percent: 1 };
        let mix = [&b"gs"[..], b"gi", b"gs", b"ga"][key as usize % 4];
        ops.extend(register.run(&format!("key{key}"), 1000, kind(mix)));
    }
    let summary = timed("100 keys", &ops);
    assert_eq!(summary.operations, 100_000);
    assert!((500..2000).contains(&summary.unknown), "{summary}");
    assert!(summary.states < summary.operations, "{summary}");
}

/// The cost per operation does not grow with the history.
#[test]
fn one_long_key_costs_no_more_per_operation_than_a_short_one() {
    let mut states = Vec::new();
    for count in [2_000, 20_000] {
        let mut register = Register { rng: Rng(7), clients: 10, unknown_percent: 1 };
        let ops = register.run("k", count, kind(b"gs"));
        let summary = timed(&format!("one key, {count} operations"), &ops);
        states.push(summary.states as f64 / count as f64);
    }
    assert!(states[1] < 2.0 * states[0], "{states:?}");
}

/// 50 clients at once on one key.
#[test]
fn a_crowded_key_is_decided() {
    for (name, mix) in [("reads and writes", &b"gs"[..]), ("counters", b"gi"), ("suffixes", b"ga")]
    {
        let mut register = Register { rng: Rng(3), clients: 50, unknown_percent: 2 };
        let ops = register.run("k", 3_000, kind(mix));
        let summary = timed(&format!("50 clients, one key, {name}"), &ops);
        assert!(summary.states < summary.operations, "{name}: {summary}");
    }
}
