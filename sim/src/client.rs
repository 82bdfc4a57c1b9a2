//! Clients: they send commands, give up, go elsewhere, and write down what they were told.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_engine::{ReadMode, Reply, Via};
use coracle_net::resp::Protocol;

use crate::history::{Bytes, Op, OpKind, Outcome, Reply as Answer};
use crate::plan::LoadPlan;
use crate::queue::Micros;
use crate::rng::Rng;

/// What a client wants to know of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// An operation for the history.
    Op(OpKind),
    /// A step of a pipeline on a key of its own: for the history, and exactly this answer if all
    /// steps before it were done.
    Exactly(OpKind, Reply),
    /// Any answer but an error: keys with an expiry.
    Anything,
    /// Everything was removed.
    Flushed,
    /// The names of all keys, from `KEYS`.
    Names,
    /// Some names, and a cursor, from `SCAN`.
    Step,
}

/// A command as a client sends it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: Bytes,
    pub(crate) args: Vec<Vec<u8>>,
    pub(crate) expect: Expect,
    pub(crate) writes: bool,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) call: Call,
    pub(crate) call_ns: u64,
    /// What its answer means, once it is there.
    pub(crate) verdict: Option<Verdict>,
}

/// One client.
pub(crate) struct Client {
    pub(crate) id: u64,
    /// Where it is connected.
    pub(crate) host: usize,
    pub(crate) via: Via,
    pub(crate) read_mode: ReadMode,
    pub(crate) protocol: Protocol,
    /// Counts connections and pipelines; answers to earlier ones are not listened to.
    pub(crate) serial: u64,
    pub(crate) open: Vec<Open>,
    /// Does what it is told instead of what it likes.
    pub(crate) probing: bool,
    /// It reads from the replica that it is connected to.
    pub(crate) stays_with_replica: bool,
    pub(crate) scan: Option<Scan>,
    written: u64,
}

/// A scan that has not come to its end, over all keys.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) call_ns: u64,
    pub(crate) cursor: Vec<u8>,
    pub(crate) names: BTreeSet<Vec<u8>>,
}

/// What an answer means.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Done; for the history.
    Done(Outcome),
    /// Certainly not executed; go to this host name and port, if one is named.
    Refused(Option<(String, u16)>),
    /// Nobody knows.
    Unknown,
    /// The names of all keys.
    Named(BTreeSet<Vec<u8>>),
    /// Where the scan goes on, and the names of some keys.
    Stepped(Vec<u8>, BTreeSet<Vec<u8>>),
    /// Done, but not as a pipeline must be that was done from its start.
    Astray(Outcome, String),
    /// Something that must never be answered.
    Wrong(String),
}

impl Client {
    pub(crate) fn new(id: u64, host: usize, rng: &mut Rng) -> Self {
        let mut client = Self {
            id,
            host,
            via: Via::Plain,
            read_mode: ReadMode::Leader,
            protocol: Protocol::Resp2,
            serial: 0,
            open: Vec::new(),
            probing: false,
            stays_with_replica: false,
            scan: None,
            written: 0,
        };
        client.connect(host, rng);
        client
    }

    /// A fresh connection.
    pub(crate) fn connect(&mut self, host: usize, rng: &mut Rng) {
        self.host = host;
        self.serial += 1;
        self.via = if rng.chance(0.3) { Via::Core } else { Via::Plain };
        self.read_mode = if rng.chance(0.4) { ReadMode::AnyReplica } else { ReadMode::Leader };
        if self.stays_with_replica {
            (self.via, self.read_mode) = (Via::Plain, ReadMode::AnyReplica);
        }
        self.protocol = if rng.chance(0.5) { Protocol::Resp2 } else { Protocol::Resp3 };
        // A core shows only a part of the keys.
        if self.via == Via::Core {
            self.scan = None;
        }
    }

    /// What it does next: one command, or several at once on one key.
    pub(crate) fn next(&mut self, plan: &LoadPlan, now: Micros, rng: &mut Rng) -> Vec<Call> {
        self.serial += 1;
        let tag = plan.tag(now);
        if plan.flush > 0.0 && rng.chance(plan.flush) {
            return vec![whole(&["FLUSHALL"], Expect::Flushed)];
        }
        let goes_on = self.scan.is_some() && rng.chance(0.7);
        if plan.whole > 0.0 && (goes_on || rng.chance(plan.whole)) {
            return vec![self.look(rng)];
        }
        match rng.below(10) {
            0 => self.pipeline(plan, &tag, rng),
            1 => vec![self.expiring(&tag, rng)],
            2 => self.burst(plan, &tag, rng),
            _ => vec![self.shared(plan, &tag, rng)],
        }
    }

    /// A look at the whole keyspace, or the next step of a scan.
    fn look(&self, rng: &mut Rng) -> Call {
        if let Some(Scan { cursor, .. }) = &self.scan {
            return scan(&String::from_utf8_lossy(cursor), rng);
        }
        match rng.below(10) {
            0 => whole(&["DBSIZE"], Expect::Anything),
            1 => whole(&["RANDOMKEY"], Expect::Anything),
            2..6 if self.via == Via::Plain => whole(&["KEYS", "*"], Expect::Names),
            _ => scan("0", rng),
        }
    }

    /// A value that nobody else writes.
    fn value(&mut self, plan: &LoadPlan, rng: &mut Rng) -> Vec<u8> {
        self.written += 1;
        let mut value = format!("{}.{};", self.id, self.written).into_bytes();
        let longest = plan.value_bytes_max as u64;
        let len = if rng.chance(plan.long_values) { rng.between(1, longest) } else { 0 };
        value.resize(value.len().max(len as usize), b'.');
        value
    }

    fn shared(&mut self, plan: &LoadPlan, tag: &str, rng: &mut Rng) -> Call {
        let number = rng.below(plan.keys);
        if rng.chance(0.25) {
            let key = format!("{tag}n{number}").into_bytes();
            return match rng.below(10) {
                0..4 => op(&key, OpKind::Get),
                4..9 => op(&key, OpKind::Incr(rng.between(1, 3) as i64)),
                _ => op(&key, OpKind::Del),
            };
        }
        let key = format!("{tag}k{number}").into_bytes();
        let kind = match rng.below(20) {
            0..9 => OpKind::Get,
            9..14 => OpKind::Set(self.value(plan, rng).into()),
            14 => OpKind::Append(self.value(plan, rng).into()),
            15 => OpKind::SetNx(self.value(plan, rng).into()),
            16 => OpKind::GetSet(self.value(plan, rng).into()),
            17 => OpKind::GetDel,
            _ => OpKind::Del,
        };
        op(&key, kind)
    }

    /// Commands on one shared key, sent at once: many that overlap in the history.
    fn burst(&mut self, plan: &LoadPlan, tag: &str, rng: &mut Rng) -> Vec<Call> {
        let first = self.shared(plan, tag, rng);
        let mut calls = vec![first];
        for _ in 0..rng.between(1, 4) {
            let mut call = self.shared(plan, tag, rng);
            while call.key != calls[0].key {
                call = self.shared(plan, tag, rng);
            }
            calls.push(call);
        }
        calls
    }

    /// Keys that expire: their fate depends on clocks, but all replicas must agree on it.
    fn expiring(&mut self, tag: &str, rng: &mut Rng) -> Call {
        let key = format!("{tag}x{}", rng.below(20)).into_bytes();
        let ms = rng.between(50, 20_000).to_string().into_bytes();
        let args = match rng.below(4) {
            0 | 1 => vec![b"SET".to_vec(), key.clone(), b"v".to_vec(), b"PX".to_vec(), ms],
            2 => vec![b"PEXPIRE".to_vec(), key.clone(), ms],
            _ => vec![b"GET".to_vec(), key.clone()],
        };
        let writes = args[0] != b"GET";
        Call { key: key.into(), args, expect: Expect::Anything, writes }
    }

    /// Commands on a key of its own, sent at once: each must see those before it.
    fn pipeline(&mut self, plan: &LoadPlan, tag: &str, rng: &mut Rng) -> Vec<Call> {
        let first = self.value(plan, rng);
        let second = self.value(plan, rng);
        let key = format!("{tag}p{}.{}", self.id, self.written).into_bytes();
        let both: Vec<u8> = [first.clone(), second.clone()].concat();
        let len = Reply::Integer(both.len() as i64);
        let step = |kind: OpKind, answer: Reply| {
            let call = op(&key, kind.clone());
            // Where everything may be removed at any time no answer is certain.
            let certain = plan.flush == 0.0;
            let expect = if certain { Expect::Exactly(kind, answer) } else { Expect::Op(kind) };
            Call { expect, ..call }
        };
        let (set, append) = (OpKind::Set(first.clone().into()), OpKind::Append(second.into()));
        let mut steps = match rng.below(3) {
            0 => vec![step(set, Reply::OK), step(OpKind::Get, Reply::Bulk(first))],
            1 => {
                vec![step(set, Reply::OK), step(append, len), step(OpKind::Get, Reply::Bulk(both))]
            }
            _ => vec![
                step(OpKind::Incr(1), Reply::Integer(1)),
                step(OpKind::Incr(1), Reply::Integer(2)),
            ],
        };
        // Some keys stay, so that the end of the run has something to miss.
        if rng.chance(0.8) {
            steps.push(step(OpKind::Del, Reply::Integer(1)));
            steps.push(step(OpKind::Get, Reply::Null));
        }
        steps
    }
}

/// A command on the whole keyspace.
fn whole(words: &[&str], expect: Expect) -> Call {
    let args = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let writes = matches!(expect, Expect::Flushed);
    Call { key: Arc::from(&b""[..]), args, expect, writes }
}

/// A step of a scan: of a few keys, of some, or of all at once.
fn scan(cursor: &str, rng: &mut Rng) -> Call {
    let count = *rng.pick(&["1", "3", "10", "10000"]);
    whole(&["SCAN", cursor, "COUNT", count], Expect::Step)
}

/// The command of an operation.
pub(crate) fn op(key: &[u8], kind: OpKind) -> Call {
    let key: Bytes = Arc::from(key);
    let word = |word: &str| word.as_bytes().to_vec();
    let mut args = vec![Vec::new(), key.to_vec()];
    let (name, value) = match &kind {
        OpKind::Set(value) => ("SET", Some(value.to_vec())),
        OpKind::Get => ("GET", None),
        OpKind::Del => ("DEL", None),
        OpKind::Append(value) => ("APPEND", Some(value.to_vec())),
        OpKind::Incr(by) => ("INCRBY", Some(by.to_string().into_bytes())),
        OpKind::SetNx(value) => ("SETNX", Some(value.to_vec())),
        OpKind::GetSet(value) => ("GETSET", Some(value.to_vec())),
        OpKind::GetDel => ("GETDEL", None),
        OpKind::Clear => ("FLUSHALL", None),
    };
    args[0] = word(name);
    args.extend(value);
    let writes = kind != OpKind::Get;
    Call { key, args, expect: Expect::Op(kind), writes }
}

/// What an answer to a call means.
pub(crate) fn judge(call: &Call, reply: &Reply) -> Verdict {
    if let Reply::Error(text) = reply {
        return judge_error(text);
    }
    match &call.expect {
        Expect::Anything => Verdict::Done(Outcome::Reply(Answer::Ok)),
        Expect::Flushed if *reply == Reply::OK => Verdict::Done(Outcome::Reply(Answer::Ok)),
        Expect::Flushed => Verdict::Wrong(format!("a flush is answered {reply:?}")),
        Expect::Names => names(reply).map_or_else(|| wrong_list(reply), Verdict::Named),
        Expect::Step => judge_step(reply).unwrap_or_else(|| wrong_list(reply)),
        Expect::Op(kind) => judge_answer(kind, reply),
        Expect::Exactly(kind, wanted) => match judge_answer(kind, reply) {
            Verdict::Done(outcome) if wanted != reply => {
                let text = format!("a pipeline expects {wanted:?}, but is answered {reply:?}");
                Verdict::Astray(outcome, text)
            }
            verdict => verdict,
        },
    }
}

/// What an answer to a step of a scan means.
fn judge_step(reply: &Reply) -> Option<Verdict> {
    let Reply::Array(fields) = reply else { return None };
    let [Reply::Bulk(cursor), list] = &fields[..] else { return None };
    Some(Verdict::Stepped(cursor.clone(), names(list)?))
}

/// A list of names, none of them twice.
fn names(reply: &Reply) -> Option<BTreeSet<Vec<u8>>> {
    let Reply::Array(fields) = reply else { return None };
    let mut set = BTreeSet::new();
    for field in fields {
        let Reply::Bulk(name) = field else { return None };
        if !set.insert(name.clone()) {
            return None;
        }
    }
    Some(set)
}

fn wrong_list(reply: &Reply) -> Verdict {
    Verdict::Wrong(format!("a list of keys is answered {reply:?}"))
}

/// What an answer to an operation means, whatever was before it.
fn judge_answer(kind: &OpKind, reply: &Reply) -> Verdict {
    let answer = match reply {
        Reply::Status("OK") => Some(Answer::Ok),
        Reply::Integer(number) => Some(Answer::Integer(*number)),
        Reply::Bulk(bytes) => Some(Answer::Value(Some(bytes.as_slice().into()))),
        Reply::Null => Some(Answer::Value(None)),
        _ => None,
    };
    let fits = match kind {
        OpKind::Set(_) | OpKind::Clear => answer == Some(Answer::Ok),
        OpKind::Get | OpKind::GetSet(_) | OpKind::GetDel => {
            matches!(answer, Some(Answer::Value(_)))
        }
        _ => matches!(answer, Some(Answer::Integer(_))),
    };
    match answer {
        Some(answer) if fits => Verdict::Done(Outcome::Reply(answer)),
        _ => Verdict::Wrong(format!("{kind:?} is answered {reply:?}")),
    }
}

fn judge_error(text: &str) -> Verdict {
    let mut words = text.split(' ');
    match words.next() {
        Some("MOVED") => {
            let target = words.nth(1).and_then(|address| {
                let (host, port) = address.rsplit_once(':')?;
                Some((host.to_owned(), port.parse().ok()?))
            });
            match target {
                Some(target) => Verdict::Refused(Some(target)),
                None => Verdict::Wrong(format!("a redirection to nowhere: {text}")),
            }
        }
        Some("TRYAGAIN" | "CLUSTERDOWN" | "OOM") => Verdict::Refused(None),
        Some("UNCERTAIN") => Verdict::Unknown,
        _ => Verdict::Wrong(format!("an unexpected error: {text}")),
    }
}

/// The line of an operation for the history, if it belongs there.
pub(crate) fn history(client: u64, open: &Open, outcome: Outcome, now_ns: u64) -> Option<Op> {
    let (Expect::Op(kind) | Expect::Exactly(kind, _)) = &open.call.expect else { return None };
    let return_ns = (outcome != Outcome::Unknown).then_some(now_ns);
    Some(Op {
        client,
        key: Arc::clone(&open.call.key),
        kind: kind.clone(),
        outcome,
        call_ns: open.call_ns,
        return_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_was_asked() {
        let get = op(b"k", OpKind::Get);
        let incr = op(b"n", OpKind::Incr(2));
        let done = |answer| Verdict::Done(Outcome::Reply(answer));
        assert_eq!(judge(&get, &Reply::Null), done(Answer::Value(None)));
        assert_eq!(judge(&incr, &Reply::Integer(2)), done(Answer::Integer(2)));
        assert!(matches!(judge(&get, &Reply::Integer(2)), Verdict::Wrong(_)));
        assert!(matches!(judge(&get, &Reply::error("ERR what")), Verdict::Wrong(_)));
        let kind = OpKind::Incr(1);
        let step =
            Call { expect: Expect::Exactly(kind.clone(), Reply::Integer(1)), ..op(b"p", kind) };
        assert_eq!(judge(&step, &Reply::Integer(1)), done(Answer::Integer(1)));
        let astray = judge(&step, &Reply::Integer(2));
        let outcome = Outcome::Reply(Answer::Integer(2));
        assert!(matches!(astray, Verdict::Astray(seen, _) if seen == outcome));
        assert!(matches!(judge(&step, &Reply::OK), Verdict::Wrong(_)));
        let moved = judge(&get, &Reply::error("MOVED 77 h2:7101"));
        assert_eq!(moved, Verdict::Refused(Some(("h2".to_owned(), 7101))));
        assert_eq!(judge(&get, &Reply::error("UNCERTAIN outcome unknown: x")), Verdict::Unknown);
        let bulk = |text: &str| Reply::Bulk(text.into());
        let step = |list| Reply::Array(vec![bulk("7"), Reply::Array(list)]);
        let (a, b) = (bulk("a"), bulk("b"));
        let call = whole(&["SCAN", "0"], Expect::Step);
        let names = BTreeSet::from([b"a".to_vec(), b"b".to_vec()]);
        let stepped = Verdict::Stepped(b"7".to_vec(), names);
        assert_eq!(judge(&call, &step(vec![b, a.clone()])), stepped);
        assert!(matches!(judge(&call, &step(vec![a.clone(), a])), Verdict::Wrong(_)), "twice");
        assert!(matches!(judge(&call, &Reply::Null), Verdict::Wrong(_)));
    }
}
