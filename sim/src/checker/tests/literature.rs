//! Small histories with known verdicts, and what is said about the wrong ones.

use super::bytes;
use crate::checker::{Failure, Limits, check, check_within};
use crate::history::{Op, OpKind, Outcome, Reply};

/// `call..return op [arg] -> answer`: one operation of key `k` per line. `..?` and `-> ?` mean an
/// unknown outcome, `-> !` a refused operation, `nil` no value. `@key` at the end names a key.
fn parse(text: &str) -> Vec<Op> {
    let op = |(number, line): (usize, &str)| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let key = match words.last().and_then(|word| word.strip_prefix('@')) {
            Some(key) => {
                words.pop();
                key
            }
            None => "k",
        };
        let (call, returned) = words[0].split_once("..").expect(line);
        let (answer, arg) = (*words.last().expect(line), words[2]);
        let kind = match words[1] {
            "set" => OpKind::Set(bytes(arg)),
            "get" => OpKind::Get,
            "del" => OpKind::Del,
            "append" => OpKind::Append(bytes(arg)),
            "incr" => OpKind::Incr(arg.parse().expect(line)),
            "setnx" => OpKind::SetNx(bytes(arg)),
            "getset" => OpKind::GetSet(bytes(arg)),
            "getdel" => OpKind::GetDel,
            other => panic!("{other}"),
        };
        let outcome = match (&kind, answer) {
            (_, "?") => Outcome::Unknown,
            (_, "!") => Outcome::Refused,
            (OpKind::Set(_), "OK") => Outcome::Reply(Reply::Ok),
            (OpKind::Get | OpKind::GetSet(_) | OpKind::GetDel, "nil") => {
                Outcome::Reply(Reply::Value(None))
            }
            (OpKind::Get | OpKind::GetSet(_) | OpKind::GetDel, value) => {
                Outcome::Reply(Reply::Value(Some(bytes(value))))
            }
            (_, number) => Outcome::Reply(Reply::Integer(number.parse().expect(line))),
        };
        let call_ns = call.parse().expect(line);
        let return_ns = returned.parse().ok();
        Op { client: number as u64, key: bytes(key), kind, outcome, call_ns, return_ns }
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.enumerate().map(op).collect()
}

/// Verdicts from the literature and from the definition.
#[test]
fn known_histories_have_their_known_verdicts() {
    let cases: &[(&str, bool, &str)] = &[
        ("nothing happened", true, ""),
        ("keys start absent", true, "0..1 get -> nil"),
        ("a value from nowhere", false, "0..1 get -> x"),
        (
            "Herlihy and Wing 1990, H1 as a register: overlapping writes in either order",
            true,
            "0..9 set 0 -> OK \n 1..3 set 1 -> OK \n 4..5 get -> 1 \n 6..8 get -> 0",
        ),
        (
            "the same, but the first write had returned",
            false,
            "0..1 set 0 -> OK \n 2..3 set 1 -> OK \n 4..5 get -> 1 \n 6..8 get -> 0",
        ),
        ("stale read", false, "0..1 set a -> OK \n 2..3 set b -> OK \n 4..5 get -> a"),
        (
            "a read that overlaps may see either",
            true,
            "0..1 set a -> OK \n 2..9 set b -> OK
            3..4 get -> a \n 5..6 get -> b",
        ),
        (
            "but not go back (new-old inversion)",
            false,
            "0..1 set a -> OK \n 2..9 set b -> OK
            3..4 get -> b \n 5..6 get -> a",
        ),
        ("touching operations are concurrent", true, "0..1 set a -> OK \n 1..2 get -> nil"),
        ("lost update", false, "0..1 incr 1 -> 1 \n 2..3 incr 1 -> 2 \n 4..5 get -> 1"),
        ("lost update of two at once", false, "0..5 incr 1 -> 1 \n 1..6 incr 1 -> 1"),
        ("two at once", true, "0..5 incr 1 -> 2 \n 1..6 incr 1 -> 1 \n 7..8 get -> 2"),
        ("an increment applied twice", false, "0..1 incr 1 -> 1 \n 2..3 get -> 2"),
        ("a retried increment applied twice", false, "0..1 incr 1 -> 1 \n 2..3 incr 1 -> 3"),
        (
            "unless one was lost in between",
            true,
            "0..1 incr 1 -> 1 \n 2..? incr 1 -> ?
            3..4 incr 1 -> 3",
        ),
        ("but not two", false, "0..1 incr 1 -> 1 \n 2..? incr 1 -> ? \n 3..4 incr 1 -> 4"),
        ("a write before its call", false, "0..1 get -> a \n 2..3 set a -> OK"),
        ("an unknown write before its call", false, "0..1 get -> a \n 2..? set a -> ?"),
        (
            "a write after its return",
            false,
            "0..1 set a -> OK \n 2..3 get -> nil
            4..5 get -> a",
        ),
        ("a lost acknowledged write", false, "0..1 set a -> OK \n 2..3 get -> nil"),
        ("an unknown write that happened", true, "0..? set a -> ? \n 2..3 get -> a"),
        ("that never happened", true, "0..? set a -> ? \n 2..3 get -> nil"),
        (
            "that happens late",
            true,
            "0..? set a -> ? \n 2..3 set b -> OK \n 4..5 get -> b
            6..7 get -> a \n 8..9 get -> a",
        ),
        (
            "that happens twice",
            false,
            "0..? set a -> ? \n 2..3 get -> a \n 4..5 set b -> OK
            6..7 get -> a",
        ),
        ("that was undone", false, "0..? set a -> ? \n 2..3 get -> a \n 4..5 get -> nil"),
        (
            "two unknown writes, both late",
            true,
            "0..? set a -> ? \n 0..? set b -> ?
            1..2 get -> b \n 3..4 get -> a",
        ),
        (
            "an unknown write that only a delete notices",
            true,
            "0..? set a -> ?
            1..2 del -> 1 \n 3..4 get -> nil",
        ),
        ("a delete that found what was not there", false, "1..2 del -> 1"),
        ("an unknown delete", true, "0..1 set a -> OK \n 2..? del -> ? \n 3..4 get -> nil"),
        ("setnx twice", false, "0..1 setnx a -> 1 \n 2..3 setnx b -> 1"),
        ("setnx that saw an unknown write", true, "0..? set a -> ? \n 1..2 setnx b -> 0"),
        (
            "setnx that overwrote",
            false,
            "0..1 set a -> OK \n 2..3 setnx b -> 0
            4..5 get -> b",
        ),
        (
            "getset is one step",
            false,
            "0..1 set a -> OK \n 2..5 getset b -> a
            2..5 getset c -> a",
        ),
        (
            "getset in a row",
            true,
            "0..1 set a -> OK \n 2..5 getset b -> c
            2..5 getset c -> a \n 6..7 get -> b",
        ),
        (
            "getdel takes it away",
            false,
            "0..1 set a -> OK \n 2..3 getdel -> a
            4..5 getdel -> a",
        ),
        (
            "appends in the order of their lengths",
            true,
            "0..9 append bb -> 3
            0..9 append a -> 1 \n 10..11 get -> abb",
        ),
        (
            "appends against their lengths",
            false,
            "0..9 append bb -> 3
            0..9 append a -> 1 \n 10..11 get -> bba",
        ),
        (
            "an unknown append in between",
            true,
            "0..1 append a -> 1 \n 2..? append b -> ?
            3..4 append c -> 3 \n 5..6 get -> abc",
        ),
        ("a refused write does not count", false, "0..1 set a -> ! \n 2..3 get -> a"),
        ("nor does it disturb", true, "0..1 set a -> ! \n 2..3 get -> nil"),
        (
            "no number, no increment",
            true,
            "0..1 set a -> OK \n 2..? incr 1 -> ?
            3..4 get -> a",
        ),
        ("an increment of no number", false, "0..1 set a -> OK \n 2..3 incr 1 -> 1"),
        (
            "an overflow",
            false,
            "0..1 set 9223372036854775807 -> OK
            2..3 incr 1 -> -9223372036854775808",
        ),
        ("keys are apart", true, "0..1 set a -> OK @x \n 2..3 get -> nil @y"),
        ("and each must be right", false, "0..1 set a -> OK @x \n 2..3 get -> a @y"),
        (
            "two clients disagree on the order (Lamport's sequential consistency allows it)",
            false,
            "0..1 set a -> OK \n 2..3 set b -> OK \n 4..5 get -> b \n 4..5 get -> a",
        ),
    ];
    for &(name, want, text) in cases {
        let found = check(&parse(text));
        assert!(!matches!(found, Err(Failure::Undecided(_))), "{name}");
        assert_eq!(found.is_ok(), want, "{name}: {found:?}");
    }
}

/// The report names the key, the operation, a longest order, what was open and the values.
#[test]
fn the_report_says_what_is_wrong() {
    let ops = parse(
        "0..1 set a -> OK
         2..3 set b -> OK
         4..20 set c -> OK
         5..? set d -> ?
         8..9 get -> a
         30..31 get -> zzz",
    );
    let text = check(&ops).expect_err("a stale read").to_string();
    let want = "\
not linearizable: key \"k\"
  this operation has no place:
    client 4  get -> \"a\"  8..9 ns
  an order that explains the answers before it ends with:
    client 0  set \"a\" -> OK  0..1 ns
    client 1  set \"b\" -> OK  2..3 ns
    client 2  set \"c\" -> OK  4..20 ns
  meanwhile open:
    client 2  set \"c\" -> OK  4..20 ns  in that order
  the value may have been:
    \"b\"  after client 1  set \"b\" -> OK  2..3 ns
    \"c\"  after client 2  set \"c\" -> OK  4..20 ns";
    assert_eq!(text, want);
}

/// Only the end of a long order is shown, and only the ends of long values.
#[test]
fn the_report_is_short() {
    let mut text = String::new();
    for n in 0..1000 {
        let value = format!("{n:0>100}");
        text += &format!("{}..{} set {value} -> OK\n", 10 * n, 10 * n + 1);
        text += &format!("{}..{} get -> {value}\n", 10 * n + 2, 10 * n + 3);
    }
    text += "20000..20001 get -> nil";
    let report = check(&parse(&text)).expect_err("a lost write").to_string();
    assert!(report.contains("… 1992 operations before"), "{report}");
    assert!(report.contains("000999 (100 bytes)"), "{report}");
    assert!(report.lines().count() < 20, "{report}");
}

/// A limit is a failure of its own, not a success, and gives way to a proof.
#[test]
fn a_limit_is_no_verdict() {
    // Deletes tell only whether there was a value, so that every set of these writes is possible.
    let mut text = String::new();
    for n in 0..24 {
        text += &format!("{n}..100 set x{n} -> OK \n {n}..100 del -> 1 \n");
    }
    let limits = Limits { states_per_step: 50, ..Limits::default() };
    let found = check_within(&parse(&text), limits).expect_err("too hard");
    assert!(matches!(found, Failure::Undecided(_)), "{found:?}");
    assert!(found.to_string().starts_with("undecided: key \"k\" needs more than"), "{found}");

    let limits = Limits { states: 50, ..Limits::default() };
    let found = check_within(&parse(&text), limits).expect_err("too long");
    assert!(matches!(found, Failure::Undecided(_)), "{found:?}");

    text += "0..1 get -> x @other";
    let found = check_within(&parse(&text), limits).expect_err("another key is wrong");
    assert!(matches!(found, Failure::NotLinearizable(_)), "{found:?}");
}

/// Contradictions in one operation are bugs of whoever made it.
#[test]
#[should_panic(expected = "returned at 1 ns, called at 2 ns")]
fn an_operation_that_returns_before_its_call_is_a_bug() {
    let _ = check(&parse("2..1 get -> nil"));
}
