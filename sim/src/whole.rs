//! Commands on the whole keyspace, as the history of each key has them.
//!
//! A flush clears every key at some moment between its call and its answer. A complete list of
//! names has looked at every key at one such moment: it was there, which is what a `SETNX` that did
//! nothing saw, or it was not, which is what a `DEL` that did nothing saw. A scan in steps has,
//! too, between its first call and its last answer: it must return what was there all the time, and
//! may not return what never was. Each of its steps has seen what it returned between its own call
//! and its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::history::{Bytes, Op, OpKind, Outcome, Reply};
use crate::report::Failure;
use crate::world::World;

/// One such command that was, or may have been, executed.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) client: u64,
    pub(crate) call_ns: u64,
    /// `None`: its outcome is unknown.
    pub(crate) return_ns: Option<u64>,
    pub(crate) did: Did,
}

/// What it did.
#[derive(Debug)]
pub(crate) enum Did {
    /// Removed all keys.
    Clear,
    /// Listed all keys.
    List(BTreeSet<Vec<u8>>),
    /// Listed some keys.
    See(BTreeSet<Vec<u8>>),
}

impl Did {
    const fn names(&self) -> Option<&BTreeSet<Vec<u8>>> {
        match self {
            Self::Clear => None,
            Self::List(names) | Self::See(names) => Some(names),
        }
    }
}

impl Whole {
    /// What it did to a key or saw of it, if anything.
    fn op(&self, key: &Bytes) -> Option<Op> {
        let (kind, reply) = match &self.did {
            Did::Clear => (OpKind::Clear, Reply::Ok),
            Did::List(names) | Did::See(names) if names.contains(&key[..]) => {
                (OpKind::SetNx(Arc::from(&b"listed"[..])), Reply::Integer(0))
            }
            Did::List(_) => (OpKind::Del, Reply::Integer(0)),
            Did::See(_) => return None,
        };
        let Self { client, call_ns, return_ns, .. } = *self;
        let outcome = return_ns.map_or(Outcome::Unknown, |_| Outcome::Reply(reply));
        Some(Op { client, key: Arc::clone(key), kind, outcome, call_ns, return_ns })
    }
}

impl World {
    /// Writes what commands on the whole keyspace did into the histories of all keys.
    pub(crate) fn spread_wholes(&mut self) -> Result<(), Failure> {
        let mut first: BTreeMap<Bytes, u64> = BTreeMap::new();
        for op in &self.history {
            let call = first.entry(Arc::clone(&op.key)).or_insert(op.call_ns);
            *call = op.call_ns.min(*call);
        }
        for whole in std::mem::take(&mut self.wholes) {
            if let Some(names) = whole.did.names() {
                let is_known = |name: &&Vec<u8>| {
                    // Keys with an expiry are in no history.
                    first.contains_key(&name[..]) || is_expiring(name)
                };
                if let Some(name) = names.iter().find(|name| !is_known(name)) {
                    let name = String::from_utf8_lossy(name).into_owned();
                    let text = format!("{name} is listed, but was certainly never written");
                    return Err(self.failure("answers", text));
                }
            }
            // Before its first operation a key is not there whatever happens.
            let after = |call: u64| whole.return_ns.is_none_or(|returned| call <= returned);
            for (key, _) in first.iter().filter(|(_, call)| after(**call)) {
                self.history.extend(whole.op(key));
            }
        }
        Ok(())
    }
}

/// Whether a name is one of those that clients let expire.
fn is_expiring(name: &[u8]) -> bool {
    let after_tag = name.iter().position(|&byte| byte == b'}').map_or(0, |end| end + 1);
    name.get(after_tag) == Some(&b'x')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<Vec<u8>> {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    fn saw(did: Did) -> Whole {
        Whole { client: 1, call_ns: 5, return_ns: Some(9), did }
    }

    /// What a complete list leaves out was missing at some moment; a step of a scan that leaves
    /// it out has not looked.
    #[test]
    fn only_complete_lists_show_what_is_not_there() {
        let kind = |whole: &Whole, key: &str| whole.op(&Arc::from(key.as_bytes())).map(|o| o.kind);
        let (list, step) = (saw(Did::List(names(&["a"]))), saw(Did::See(names(&["a"]))));
        for whole in [&list, &step] {
            assert!(matches!(kind(whole, "a"), Some(OpKind::SetNx(_))));
        }
        assert_eq!(kind(&list, "b"), Some(OpKind::Del));
        assert_eq!(kind(&step, "b"), None);
        assert_eq!(kind(&saw(Did::Clear), "b"), Some(OpKind::Clear));
    }

    #[test]
    fn keys_that_expire_are_known_by_their_names() {
        for (name, expires) in [("x1", true), ("{2}x1", true), ("k1", false), ("{2}p1.1", false)] {
            assert_eq!(is_expiring(name.as_bytes()), expires, "{name}");
        }
    }
}
