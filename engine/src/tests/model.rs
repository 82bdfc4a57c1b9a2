//! Random commands on the store against a plain model.

use std::collections::BTreeMap;

use ahash::RandomState;
use coracle_raft::{GroupId, LogIndex, Payload, Place};
use proptest::prelude::*;

use super::show;
use crate::apply::{self, NotYet, Values, Wanted};
use crate::cache::Cache;
use crate::command::decimal::Decimal;
use crate::command::decode;
use crate::command::encoding::{Header, Op as Code, View};
use crate::scan::Part;
use crate::store::{Graveyard, Store, Totals};
use crate::testing::map_of;
use crate::{Reply, WallMillis};

/// Key → (value, expiry; 0: none).
type Model = BTreeMap<String, (String, u64)>;

#[derive(Clone, Debug)]
struct Op {
    words: Vec<String>,
    /// Milliseconds since the operation before.
    later: u64,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = (0..6u8).prop_map(|k| format!("k{k}"));
    let value = prop_oneof![(-5..5i64).prop_map(|n| n.to_string()), "[a-c]{0,3}", "[xyz]{70,80}"];
    let ms = (1..60u64).prop_map(|ms| ms.to_string());
    let words = (0..22u8, key.clone(), key, value, ms).prop_map(|(op, a, b, v, ms)| match op {
        0 => vec!["SET".into(), a, v],
        1 => vec!["SET".into(), a, v, "PX".into(), ms],
        2 => vec!["SET".into(), a, v, "NX".into(), "GET".into()],
        3 => vec!["SET".into(), a, v, "XX".into(), "KEEPTTL".into()],
        4 => vec!["GET".into(), a],
        5 => vec!["DEL".into(), a, b],
        6 => vec!["APPEND".into(), a, v],
        7 => vec!["INCRBY".into(), a, "3".into()],
        8 => vec!["PEXPIRE".into(), a, ms],
        9 => vec!["PERSIST".into(), a],
        10 => vec!["MSET".into(), a, v.clone(), b, v],
        11 => vec!["GETDEL".into(), a],
        12 => vec!["PTTL".into(), a],
        13 => vec!["GETEX".into(), a, "PX".into(), ms],
        14 => vec!["GETEX".into(), a, "PERSIST".into()],
        15 => vec!["MSETNX".into(), a, v.clone(), b, v],
        16 => vec!["INCRBYFLOAT".into(), a, "0.5".into()],
        17 => vec!["FLUSHALL".into()],
        18 => vec!["DBSIZE".into()],
        19 => vec!["SCAN".into(), "0".into(), "MATCH".into(), format!("*{}", &b[1..])],
        _ => vec!["EXISTS".into(), a, b],
    });
    let op = (words, 0..20u64).prop_map(|(words, later)| Op { words, later });
    prop::collection::vec(op, 1..120)
}

/// What a scan of a group finds: how many keys it looked at, and those that match.
fn scanned(model: &Model, end: &str, seen: usize) -> String {
    let mut found: Vec<_> = model.keys().filter(|key| key.ends_with(end)).collect();
    found.sort_by_key(|key| crate::SlotId::of_key(key.as_bytes()).get());
    let found: Vec<_> = found.iter().map(|key| format!("${key}")).collect();
    format!(":{seen} [{}]", found.join(" "))
}

/// What the command answers and does, in the simplest words.
fn expected(model: &mut Model, words: &[String], now: u64) -> String {
    model.retain(|_, (_, expiry)| *expiry == 0 || *expiry > now);
    let word = |i: usize| words.get(i).map_or("", String::as_str);
    let key = word(1).to_owned();
    let old = model.get(&key).cloned();
    let shown = |old: &Option<(String, u64)>| {
        old.as_ref().map_or("_".to_owned(), |(value, _)| format!("${value}"))
    };
    let expiry = old.as_ref().map_or(0, |(_, expiry)| *expiry);
    match (word(0), word(3)) {
        ("SET", "") => {
            model.insert(key, (word(2).into(), 0));
            "+OK".into()
        }
        ("SET", "PX") => {
            model.insert(key, (word(2).into(), now + word(4).parse::<u64>().unwrap()));
            "+OK".into()
        }
        ("SET", "NX") => {
            model.entry(key).or_insert((word(2).into(), 0));
            shown(&old)
        }
        ("SET", _) if old.is_none() => "_".into(),
        ("SET", _) => {
            model.insert(key, (word(2).into(), expiry));
            "+OK".into()
        }
        ("GET", _) => shown(&old),
        ("DEL", _) => {
            let gone = [word(1), word(2)].iter().filter(|k| model.remove(**k).is_some()).count();
            format!(":{gone}")
        }
        ("APPEND", _) => {
            let value = format!("{}{}", old.map_or(String::new(), |(v, _)| v), word(2));
            let len = value.len();
            model.insert(key, (value, expiry));
            format!(":{len}")
        }
        ("INCRBY", _) => {
            let number =
                old.map_or(Some(0), |(v, _)| v.parse::<i64>().ok().filter(|n| n.to_string() == v));
            let Some(number) = number else {
                return "-ERR value is not an integer or out of range".into();
            };
            model.insert(key, ((number + 3).to_string(), expiry));
            format!(":{}", number + 3)
        }
        ("PEXPIRE", _) => match model.get_mut(&key) {
            Some((_, expiry)) => {
                *expiry = now + word(2).parse::<u64>().unwrap();
                ":1".into()
            }
            None => ":0".into(),
        },
        ("PERSIST", _) => {
            if let Some((_, expiry)) = model.get_mut(&key) {
                *expiry = 0;
            }
            format!(":{}", u8::from(expiry != 0))
        }
        ("MSET", _) => {
            model.insert(key, (word(2).into(), 0));
            model.insert(word(3).into(), (word(4).into(), 0));
            "+OK".into()
        }
        ("GETDEL", _) => {
            model.remove(&key);
            shown(&old)
        }
        ("PTTL", _) => match old {
            None => ":-2".into(),
            Some((_, 0)) => ":-1".into(),
            Some((_, expiry)) => format!(":{}", expiry - now),
        },
        ("GETEX", "PX") => {
            if let Some((_, expiry)) = model.get_mut(&key) {
                *expiry = now + word(4).parse::<u64>().unwrap();
            }
            shown(&old)
        }
        ("GETEX", _) if word(2) == "PX" => {
            if let Some((_, expiry)) = model.get_mut(&key) {
                *expiry = now + word(3).parse::<u64>().unwrap();
            }
            shown(&old)
        }
        ("GETEX", _) => {
            if let Some((_, expiry)) = model.get_mut(&key) {
                *expiry = 0;
            }
            shown(&old)
        }
        ("MSETNX", _) => {
            if model.contains_key(&key) || model.contains_key(word(3)) {
                return ":0".into();
            }
            model.insert(key, (word(2).into(), 0));
            model.insert(word(3).into(), (word(4).into(), 0));
            ":1".into()
        }
        ("INCRBYFLOAT", _) => {
            let number = |text: &str| Decimal::parse(text.as_bytes());
            let Some(number) = old.map_or(Some(Decimal::ZERO), |(v, _)| number(&v)) else {
                return "-ERR value is not a valid float".into();
            };
            let half = Decimal::parse(b"0.5").unwrap();
            let text = number.add(half).unwrap().to_text();
            model.insert(key, (text.clone(), expiry));
            format!("${text}")
        }
        ("FLUSHALL", _) => {
            model.clear();
            "+OK".into()
        }
        ("EXISTS", _) => {
            let found = [word(1), word(2)].iter().filter(|k| model.contains_key(**k)).count();
            format!(":{found}")
        }
        other => panic!("{other:?}"),
    }
}

/// A store with its log, of which only so much is in memory.
struct Replica {
    store: Store,
    cache: Cache,
    log: BTreeMap<Place, Payload>,
    index: LogIndex,
    graveyard: Graveyard,
}

impl Replica {
    fn new(seed: u64, cache_bytes: usize) -> Self {
        let hasher = RandomState::with_seeds(seed, 2, 3, 4);
        let store = Store::new(GroupId::new(0), &map_of(1, 1, 1, 1), &hasher);
        let cache = Cache::new(cache_bytes, hasher);
        let graveyard = Graveyard::default();
        Self { store, cache, log: BTreeMap::new(), index: LogIndex::ZERO, graveyard }
    }

    /// What a group does with a flush.
    fn flush(&mut self, view: &View<'_>) -> Reply {
        self.index = self.index.next();
        self.store.advance_clock(view.at.0);
        self.store.flush(self.index, &mut self.graveyard);
        let cache = &mut self.cache;
        self.graveyard.drop_some(usize::MAX, |item| {
            if let Some(located) = item.value.located() {
                cache.remove(located.place);
            }
        });
        assert_eq!((self.graveyard.bytes(), self.graveyard.is_empty()), (0, true));
        assert_eq!(self.store.next_expiry(), None);
        Reply::OK
    }

    /// What the disk has at the places wanted.
    fn fetch(&self, wanted: &[Wanted]) -> Vec<(Place, Payload)> {
        let places = wanted.iter().map(|wanted| wanted.located.place);
        places.map(|place| (place, self.log[&place].clone())).collect()
    }

    fn write(&mut self, command: &crate::command::Command) -> Reply {
        self.index = self.index.next();
        let (index, payload) = (self.index, &command.payload);
        let place = Place::new(1, index.get() * 8);
        self.log.insert(place, payload.clone());
        let view = View::parse(payload.bytes()).unwrap();
        self.store.advance_clock(view.at.0);
        let clock = self.store.clock();
        let command =
            apply::Command { view, payload, place: Some(place), index, clock, asked: true };
        let mut fetched = Vec::new();
        loop {
            let mut dirty = Vec::new();
            let mut values =
                Values { cache: &mut self.cache, raft: None, fetched: &fetched, dirty: &mut dirty };
            match apply::write(&mut self.store, 0, &mut values, command) {
                Ok(reply) => return reply,
                Err(wanted) => {
                    assert!(fetched.is_empty(), "one value is all that a command needs");
                    fetched = self.fetch(&[wanted]);
                }
            }
        }
    }

    /// A whole scan, two keys at a time.
    fn scan(&mut self, pattern: &[u8], now: u64) -> String {
        let (mut cursor, mut seen, mut keys) = (crate::scan::Cursor::at_slot(0), 0, Vec::new());
        while let Some(from) = cursor {
            let header = Header::new(Code::Scan, from.slot, WallMillis(now));
            let (position, count) = (from.position.to_le_bytes(), 2u64.to_le_bytes());
            let command = header.encode(&[&position, &count, pattern]);
            let view = View::parse(command.payload.bytes()).unwrap();
            let part = Part::parse(self.read(&view, now)).unwrap();
            assert!(part.seen <= 2, "{part:?}");
            (cursor, seen) = (part.next, seen + part.seen);
            keys.extend(part.keys);
        }
        format!(":{seen} {}", show(&Reply::Array(keys)))
    }

    fn read(&mut self, view: &View<'_>, now: u64) -> Reply {
        let mut fetched = Vec::new();
        loop {
            let mut dirty = Vec::new();
            let mut values =
                Values { cache: &mut self.cache, raft: None, fetched: &fetched, dirty: &mut dirty };
            let read = if view.op.spans_group() {
                crate::scan::read(&self.store, |_| false, view, WallMillis(now))
            } else {
                apply::read(&self.store, &mut values, view, WallMillis(now))
            };
            match read {
                Ok(reply) => return reply,
                Err(NotYet::ClockBehind(at)) => {
                    assert_eq!(at, WallMillis(now));
                    self.store.advance_clock(now);
                }
                Err(NotYet::Cold(wanted)) => {
                    assert!(fetched.is_empty(), "all is asked for at once");
                    fetched = self.fetch(&wanted);
                }
                Err(NotYet::Lost) => unreachable!("every value can be read here"),
            }
        }
    }
}

proptest! {
    /// The store and the model give the same answers and hold the same keys; a second store fed
    /// with the same log, of which it keeps nothing in memory, gives the same answers and has the
    /// same digest; and all accounting returns to zero.
    #[test]
    fn the_store_agrees_with_the_model(ops in ops()) {
        let (mut store, mut twin) = (Replica::new(1, 1 << 20), Replica::new(99, 0));
        let (mut model, mut now) = (Model::new(), 1000);
        for Op { words, later } in &ops {
            now += later;
            let args: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            let command = decode(&args, WallMillis(now)).unwrap();
            let view = View::parse(command.payload.bytes()).unwrap();
            // Keys that are past their time and not removed yet are counted, as in Redis.
            let kept = store.store.keys() as usize;
            model.retain(|_, (_, expiry)| *expiry == 0 || *expiry > now);
            let want = match words[0].as_str() {
                "DBSIZE" => format!(":{kept}"),
                "SCAN" => scanned(&model, &words[3][1..], kept),
                _ => expected(&mut model, words, now),
            };
            if words[0] == "SCAN" {
                let pattern = words[3].as_bytes();
                prop_assert_eq!(store.scan(pattern, now), want.clone(), "{:?}", words);
                prop_assert_eq!(twin.scan(pattern, now), want, "{:?}", words);
                continue;
            }
            let (got, same) = match view.op.access() {
                _ if words[0] == "FLUSHALL" => (store.flush(&view), twin.flush(&view)),
                crate::command::Access::Write => (store.write(&command), twin.write(&command)),
                crate::command::Access::Read => (store.read(&view, now), twin.read(&view, now)),
            };
            prop_assert_eq!(show(&got), want.clone(), "{:?}", words);
            prop_assert_eq!(show(&same), want, "{:?} from disk", words);
        }
        // A read may have moved one clock and not the other: the log did not.
        prop_assert_eq!(store.store.digest(), twin.store.digest());
        prop_assert_eq!(store.store.totals(), twin.store.totals());
        for (key, (value, _)) in &model {
            let item = store.store.shards()[0].get(key.as_bytes(), now);
            prop_assert_eq!(item.map(|item| item.value.len()), Some(value.len()));
        }
        for key in (0..6).map(|k| format!("k{k}")) {
            let del = decode(&[b"DEL", key.as_bytes()], WallMillis(now)).unwrap();
            store.write(&del);
        }
        let totals = store.store.totals();
        prop_assert_eq!(totals, Totals { expired: totals.expired, ..Totals::default() });
        prop_assert_eq!((store.store.digest(), store.store.oldest_live()), (0, None));
        prop_assert_eq!(store.store.keys_with_expiry(), 0);
    }
}

/// A deposed leader may get a snapshot that holds what a client of its own waits for: it knows that
/// the command was executed, not what it answered.
#[test]
fn the_answer_to_what_a_snapshot_holds_is_not_known() {
    let mut replica = Replica::new(1, 0);
    let command = |words: &[&[u8]]| decode(words, WallMillis(1)).unwrap();
    assert_eq!(replica.write(&command(&[b"SET", b"k", b"old"])), Reply::OK);
    replica.store.change(0, |shard| shard.base.index = LogIndex::new(9));
    let changes: [&[&[u8]]; 3] =
        [&[b"GETSET", b"k", b"new"], &[b"INCR", b"n"], &[b"APPEND", b"k", b"x"]];
    for words in changes {
        let reply = show(&replica.write(&command(words)));
        assert!(reply.starts_with("-UNCERTAIN"), "{reply}");
    }
    replica.index = LogIndex::new(9);
    assert_eq!(show(&replica.write(&command(&[b"GETSET", b"k", b"new"]))), "$old");
}
