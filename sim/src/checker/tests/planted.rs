//! Histories that happened are accepted; with an error planted in them they are not.

use super::{Register, Rng, bytes};
use crate::checker::{Failure, check};
use crate::history::{Op, OpKind, Outcome, Reply};

/// Unique values, so that a planted error cannot be explained otherwise.
fn unique(rng: &mut Rng, number: usize) -> OpKind {
    match rng.below(10) {
        0..5 => OpKind::Get,
        5..9 => OpKind::Set(bytes(format!("v{number}"))),
        _ => OpKind::GetSet(bytes(format!("v{number}"))),
    }
}

fn any_kind(rng: &mut Rng, number: usize) -> OpKind {
    match rng.below(12) {
        0..3 => OpKind::Get,
        3 => OpKind::Set(bytes(number.to_string())),
        4 => OpKind::Set(bytes(rng.below(3).to_string())),
        5 => OpKind::Del,
        6 => OpKind::Append(bytes(rng.below(100).to_string())),
        7..9 => OpKind::Incr(rng.below(5) as i64 - 2),
        9 => OpKind::SetNx(bytes(number.to_string())),
        10 => OpKind::GetSet(bytes(number.to_string())),
        _ => OpKind::GetDel,
    }
}

fn register(seed: u64, clients: u64, unknown_percent: u64) -> Register {
    Register { rng: Rng(seed), clients, unknown_percent }
}

fn rejected(ops: &[Op], what: &str) {
    match check(ops) {
        Err(Failure::NotLinearizable(_)) => {}
        other => {
            let lines: Vec<String> = ops.iter().map(Op::to_line).collect();
            panic!("{what}: {other:?}\n{}", lines.join("\n"));
        }
    }
}

#[test]
fn what_happened_is_accepted() {
    for seed in 0..300 {
        let unknown_percent = [0, 1, 5][seed as usize % 3];
        for (kind, clients) in [(unique as fn(&mut Rng, usize) -> _, 8), (any_kind, 3)] {
            let ops = register(seed, 1 + seed % clients, unknown_percent).run("k", 200, kind);
            let found = check(&ops).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(found.operations, 200);
        }
    }
}

/// A read shows a value that was overwritten before it began, one that is written after it
/// ended, one that nobody wrote, or none.
#[test]
fn a_wrong_value_is_found() {
    let mut planted = [0; 4];
    for seed in 0..400 {
        let mut ops = register(seed, 5, 2).run("k", 60, unique);
        let mut rng = Rng(!seed);
        let reads: Vec<usize> = (0..ops.len()).filter(|&n| is_answered_read(&ops[n])).collect();
        let read = reads[rng.below(reads.len() as u64) as usize];
        let (call_ns, return_ns) = (ops[read].call_ns, ops[read].return_ns.expect("answered"));
        let is_set = |op: &Op| matches!(op.kind, OpKind::Set(_));
        let value = match seed % 4 {
            // Acknowledged before another write was called that was acknowledged before the read.
            0 => {
                let before = |op: &&Op, ns: u64| is_set(op) && op.return_ns.is_some_and(|r| r < ns);
                let Some(newer) = ops.iter().rfind(|op| before(op, call_ns)) else { continue };
                let Some(older) = ops.iter().find(|op| before(op, newer.call_ns)) else { continue };
                Some(written(older))
            }
            1 => {
                let Some(later) = ops.iter().find(|op| is_set(op) && op.call_ns > return_ns) else {
                    continue;
                };
                Some(written(later))
            }
            2 => Some(bytes("nobody")),
            _ => {
                if !ops.iter().any(|op| is_set(op) && op.return_ns.is_some_and(|r| r < call_ns)) {
                    continue;
                }
                None
            }
        };
        ops[read].outcome = Outcome::Reply(Reply::Value(value));
        rejected(&ops, &format!("seed {seed}"));
        planted[seed as usize % 4] += 1;
    }
    assert!(planted.iter().all(|&count| count > 60), "{planted:?}");
}

/// Nobody wrote a value that was read: its write was dropped.
#[test]
fn a_lost_write_is_found() {
    let mut planted = 0;
    for seed in 0..100 {
        let mut ops = register(seed, 5, 2).run("k", 60, unique);
        let read = |op: &Op, value: &[u8]| match &op.outcome {
            Outcome::Reply(Reply::Value(Some(shown))) => shown[..] == *value,
            _ => false,
        };
        let lost = ops.iter().position(|op| {
            matches!(op.kind, OpKind::Set(_)) && ops.iter().any(|other| read(other, &written(op)))
        });
        let Some(lost) = lost else { continue };
        ops.remove(lost);
        rejected(&ops, &format!("seed {seed}"));
        planted += 1;
    }
    assert!(planted > 90, "{planted}");
}

/// The answers of two reads, one after the other with a write in between, are exchanged.
#[test]
fn exchanged_answers_are_found() {
    let mut planted = 0;
    for seed in 0..100 {
        let mut ops = register(seed, 3, 0).run("k", 60, unique);
        let reads: Vec<usize> = (0..ops.len()).filter(|&n| is_answered_read(&ops[n])).collect();
        // Nothing writes either value twice, and the second read must not be able to see the
        // first one's value: a write was called after the first read and returned before it.
        let pair = reads.iter().zip(&reads[1..]).find(|&(&first, &second)| {
            let end_ns = ops[first].return_ns.expect("answered");
            ops[first].outcome != ops[second].outcome
                && ops.iter().any(|op| {
                    matches!(op.kind, OpKind::Set(_))
                        && op.call_ns > end_ns
                        && op.return_ns.is_some_and(|ns| ns < ops[second].call_ns)
                })
        });
        let Some((&first, &second)) = pair else { continue };
        let outcome = ops[first].outcome.clone();
        ops[first].outcome = std::mem::replace(&mut ops[second].outcome, outcome);
        rejected(&ops, &format!("seed {seed}"));
        planted += 1;
    }
    assert!(planted > 50, "{planted}");
}

/// One increment took effect twice: all later numbers are one higher.
#[test]
fn a_doubled_increment_is_found() {
    let count = |rng: &mut Rng, _| if rng.percent(20) { OpKind::Get } else { OpKind::Incr(1) };
    for seed in 0..100 {
        let mut ops = register(seed, 6, 0).run("k", 80, count);
        let highest = ops.iter().filter_map(|op| match op.outcome {
            Outcome::Reply(Reply::Integer(number)) => Some(number),
            _ => None,
        });
        let doubled = 1 + Rng(!seed).below(highest.max().expect("increments") as u64) as i64;
        for op in &mut ops {
            match &mut op.outcome {
                Outcome::Reply(Reply::Integer(number)) if *number >= doubled => *number += 1,
                Outcome::Reply(Reply::Value(Some(text))) => {
                    let text_now = String::from_utf8_lossy(text);
                    let number: i64 = text_now.parse().expect("a counter");
                    let number = number + i64::from(number >= doubled);
                    *text = bytes(number.to_string());
                }
                _ => {}
            }
        }
        rejected(&ops, &format!("seed {seed}"));
    }
}

/// Unknown increments explain gaps, but not more gaps than there are.
#[test]
fn unknown_increments_explain_only_as_much_as_there_are() {
    for seed in 0..50 {
        let count = |rng: &mut Rng, _| if rng.percent(20) { OpKind::Get } else { OpKind::Incr(1) };
        let mut ops = register(seed, 4, 10).run("k", 200, count);
        check(&ops).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let sent = ops.iter().filter(|op| op.kind != OpKind::Get).count() as i64;
        let end_ns = ops.iter().map(|op| op.return_ns.unwrap_or(op.call_ns)).max().expect("ops");
        let (client, key, kind) = (99, bytes("k"), OpKind::Incr(1));
        let outcome = Outcome::Reply(Reply::Integer(sent + 2));
        let (call_ns, return_ns) = (end_ns + 1, Some(end_ns + 2));
        ops.push(Op { client, key, kind, outcome, call_ns, return_ns });
        rejected(&ops, &format!("seed {seed}"));
    }
}

fn is_answered_read(op: &Op) -> bool {
    op.kind == OpKind::Get && op.return_ns.is_some()
}

fn written(op: &Op) -> crate::history::Bytes {
    match &op.kind {
        OpKind::Set(value) => value.clone(),
        other => panic!("{other:?} writes nothing"),
    }
}
