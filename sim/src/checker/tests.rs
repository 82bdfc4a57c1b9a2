//! The checker against small histories, a search without any shortcut, and planted errors.

mod literature;
mod oracle;
mod planted;
mod speed;

use crate::history::{Bytes, Op, OpKind, Outcome, Reply};

/// A source of random numbers that is the same in every run.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }

    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub(super) fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    text.as_ref().into()
}

/// What an operation answers, and the value after it; `None` if it is an error without effect.
/// Written apart from the checker's model, to be compared with it.
pub(super) fn execute(kind: &OpKind, value: &Option<Bytes>) -> Option<(Reply, Option<Bytes>)> {
    let was = || Reply::Value(value.clone());
    let flag = |flag: bool| Reply::Integer(i64::from(flag));
    Some(match kind {
        OpKind::Set(new) => (Reply::Ok, Some(new.clone())),
        OpKind::Get => (was(), value.clone()),
        OpKind::Del => (flag(value.is_some()), None),
        OpKind::GetSet(new) => (was(), Some(new.clone())),
        OpKind::GetDel => (was(), None),
        OpKind::Clear => (Reply::Ok, None),
        OpKind::SetNx(new) => (flag(value.is_none()), value.clone().or(Some(new.clone()))),
        OpKind::Append(suffix) => {
            let mut whole = value.as_deref().unwrap_or_default().to_vec();
            whole.extend_from_slice(suffix);
            (Reply::Integer(whole.len() as i64), Some(whole.into()))
        }
        OpKind::Incr(by) => {
            let text = value.as_deref().unwrap_or(b"0");
            let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
            if number.to_string().as_bytes() != text {
                return None;
            }
            let sum = number.checked_add(*by)?;
            (Reply::Integer(sum), Some(bytes(sum.to_string())))
        }
    })
}

/// Executes random operations of `clients` one at a time on one register, each at some moment
/// between its call and its return.
pub(super) struct Register {
    pub(super) rng: Rng,
    pub(super) clients: u64,
    pub(super) unknown_percent: u64,
}

impl Register {
    /// A history of one key that is linearizable because it happened.
    pub(super) fn run(
        &mut self,
        key: &str,
        count: usize,
        mut kind: impl FnMut(&mut Rng, usize) -> OpKind,
    ) -> Vec<Op> {
        struct Running {
            op: Op,
            applied: bool,
            unknown: bool,
        }
        let rng = &mut self.rng;
        let mut value = None;
        let (mut now_ns, mut called) = (0, 0);
        let mut done = Vec::new();
        let mut lost: Vec<Op> = Vec::new();
        let mut running: Vec<Option<Running>> = (0..self.clients).map(|_| None).collect();
        while done.len() < count {
            now_ns += rng.below(3);
            if !lost.is_empty() && rng.percent(5) {
                let late = lost.swap_remove(rng.below(lost.len() as u64) as usize);
                value = execute(&late.kind, &value).map_or(value, |(_, after)| after);
            }
            let client = rng.below(self.clients);
            match &mut running[client as usize] {
                slot @ None if called < count => {
                    let kind = kind(rng, called);
                    let (key, outcome) = (bytes(key), Outcome::Unknown);
                    let op = Op { client, key, kind, outcome, call_ns: now_ns, return_ns: None };
                    let unknown = rng.percent(self.unknown_percent);
                    *slot = Some(Running { op, applied: false, unknown });
                    called += 1;
                }
                None => {}
                // An unknown operation takes effect now, later, or never.
                slot @ Some(Running { unknown: true, .. }) => {
                    let Running { op, .. } = slot.take().expect("just matched");
                    done.push(op.clone());
                    match rng.below(3) {
                        0 => value = execute(&op.kind, &value).map_or(value, |(_, after)| after),
                        1 => lost.push(op),
                        _ => {}
                    }
                }
                Some(running) if !running.applied => {
                    running.applied = true;
                    match execute(&running.op.kind, &value) {
                        Some((reply, after)) => {
                            running.op.outcome = Outcome::Reply(reply);
                            value = after;
                        }
                        None => running.op.outcome = Outcome::Refused,
                    }
                }
                slot => {
                    let Running { mut op, .. } = slot.take().expect("just matched");
                    op.return_ns = Some(now_ns);
                    done.push(op);
                }
            }
        }
        done
    }
}
