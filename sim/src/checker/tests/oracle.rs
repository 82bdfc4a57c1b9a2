//! The checker and a search without shortcuts agree on tiny histories.

use super::{Rng, bytes, execute};
use crate::checker::{Failure, check};
use crate::history::{Bytes, Op, OpKind, Outcome, Reply};

/// Tries every order: an operation may come next if none of the others returned before its call.
fn is_linearizable(ops: &[Op]) -> bool {
    let left: Vec<&Op> = ops.iter().filter(|op| op.outcome != Outcome::Refused).collect();
    some_order_works(&left, &None)
}

fn some_order_works(left: &[&Op], value: &Option<Bytes>) -> bool {
    if left.iter().all(|op| op.outcome == Outcome::Unknown) {
        return true;
    }
    left.iter().enumerate().any(|(index, op)| {
        let precedes = |other: &&Op| other.return_ns.is_some_and(|ns| ns < op.call_ns);
        if left.iter().any(precedes) {
            return false;
        }
        let mut rest = left.to_vec();
        rest.remove(index);
        match execute(&op.kind, value) {
            Some((reply, after)) => {
                let fits = match &op.outcome {
                    Outcome::Reply(told) => *told == reply,
                    Outcome::Unknown | Outcome::Refused => true,
                };
                fits && some_order_works(&rest, &after)
            }
            None => op.outcome == Outcome::Unknown && some_order_works(&rest, value),
        }
    })
}

/// Which operations a history is made of.
const MIXES: &[(&str, &[u8])] = &[
    ("reads and writes", b"ggss"),
    ("writes that show what they replace", b"gsSD"),
    ("deletes", b"gsd"),
    ("everything with exact values", b"gsdnSD"),
    ("counters", b"gi"),
    ("counters that are overwritten", b"giisnd"),
    ("suffixes", b"ga"),
    ("suffixes that are overwritten", b"gaasd"),
    ("everything", b"gsdainSD"),
    ("what a flush meets", b"gsnadc"),
];

fn random_kind(rng: &mut Rng, mix: &[u8], number: u64, unique: bool) -> OpKind {
    let value = |rng: &mut Rng| match unique {
        true => bytes((10 + number).to_string()),
        false => bytes(rng.below(3).to_string()),
    };
    match mix[rng.below(mix.len() as u64) as usize] {
        b'g' => OpKind::Get,
        b's' => OpKind::Set(value(rng)),
        b'd' => OpKind::Del,
        b'a' => OpKind::Append(value(rng)),
        b'i' => OpKind::Incr(*[1, 1, 2, -1].get(rng.below(4) as usize).unwrap_or(&1)),
        b'n' => OpKind::SetNx(value(rng)),
        b'S' => OpKind::GetSet(value(rng)),
        b'c' => OpKind::Clear,
        _ => OpKind::GetDel,
    }
}

/// Operations with random times, executed in the order of a random moment inside each; then a
/// few answers are replaced by those that other operations of this history got.
fn random_history(rng: &mut Rng, mix: &[u8]) -> Vec<Op> {
    let count = 2 + rng.below(6);
    let unique = rng.percent(50);
    let span = 1 + rng.below(60);
    let unknown_percent = [0, 20, 50][rng.below(3) as usize];
    let longest = [1, 3, 10, 30][rng.below(4) as usize];
    let mut ops: Vec<(u64, Op)> = (0..count)
        .map(|number| {
            let call_ns = rng.below(span);
            let took_ns = rng.below(2 + span / longest);
            let op = Op {
                client: number,
                key: bytes("k"),
                kind: random_kind(rng, mix, number, unique),
                outcome: Outcome::Unknown,
                call_ns,
                return_ns: Some(call_ns + took_ns),
            };
            (call_ns + rng.below(1 + took_ns), op)
        })
        .collect();
    ops.sort_by_key(|(at, _)| *at);
    let mut value = None;
    let mut seen = Vec::new();
    for (_, op) in &mut ops {
        let unknown = rng.percent(unknown_percent);
        if unknown && rng.percent(50) {
            op.return_ns = None;
            continue;
        }
        match execute(&op.kind, &value) {
            Some((reply, after)) => {
                seen.push(reply.clone());
                op.outcome = Outcome::Reply(reply);
                value = after;
            }
            None => op.outcome = Outcome::Refused,
        }
        if unknown {
            op.outcome = Outcome::Unknown;
            op.return_ns = None;
        }
    }
    let mut ops: Vec<Op> = ops.into_iter().map(|(_, op)| op).collect();
    seen.push(Reply::Value(None));
    seen.extend(ops.iter().filter_map(|op| match &op.kind {
        OpKind::Set(value) | OpKind::SetNx(value) => Some(Reply::Value(Some(value.clone()))),
        _ => None,
    }));
    let changed_percent = [0, 20, 40, 70][rng.below(4) as usize];
    for op in &mut ops {
        if !rng.percent(changed_percent) {
            continue;
        }
        let other = seen[rng.below(seen.len() as u64) as usize].clone();
        let other = match other {
            Reply::Integer(number) => Reply::Integer(number + rng.below(3) as i64 - 1),
            other => other,
        };
        if op.return_ns.is_some() && op.kind.allows(&other) {
            op.outcome = Outcome::Reply(other);
        }
    }
    ops
}

/// Agreement in both directions; this is the proof that no shortcut of the search is wrong.
#[test]
fn verdicts_are_those_of_an_exhaustive_search() {
    for (seed, (name, mix)) in (1..).zip(MIXES) {
        let mut rng = Rng(seed);
        let mut verdicts = [0; 2];
        for round in 0..10_000 {
            let ops = random_history(&mut rng, mix);
            let want = is_linearizable(&ops);
            let found = check(&ops);
            let undecided = matches!(found, Err(Failure::Undecided(_)));
            let lines: Vec<String> = ops.iter().map(Op::to_line).collect();
            let shown = lines.join("\n");
            assert!(!undecided, "{name}, round {round}:\n{shown}");
            assert_eq!(found.is_ok(), want, "{name}, round {round}: {found:?}\n{shown}");
            verdicts[usize::from(want)] += 1;
        }
        let [wrong, right] = verdicts;
        assert!(wrong > 500 && right > 500, "{name}: {right} linearizable, {wrong} not");
    }
}
