//! Random crashes, partitions, frozen disks, checkpoints and clock jumps under load: every
//! acknowledged increment counts exactly once, in an order that respects real time, and no read
//! is stale.

use std::collections::BTreeMap;

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{ReadMode, Token, Via};

const KEYS: u64 = 4;
/// What one increment of a key with a long value appends: such a counter's number is its length.
const MARK: [u8; 90] = [b'i'; 90];

/// What is known of one command.
struct Call {
    token: Token,
    node: u32,
    key: u64,
    write: bool,
    /// Largest acknowledged number of its key when it was sent.
    floor: i64,
}

/// What the clients know of one key.
#[derive(Default)]
struct Counter {
    acked: Vec<i64>,
    unknown: i64,
    largest_acked: i64,
}

const fn is_long(key: u64) -> bool {
    key % 2 == 1
}

/// The number of a counter in an answer.
fn number(key: u64, shown: &str) -> i64 {
    match shown.as_bytes()[0] {
        b'_' => 0,
        b':' if is_long(key) => shown[1..].parse::<i64>().unwrap() / MARK.len() as i64,
        b'$' if is_long(key) => ((shown.len() - 1) / MARK.len()) as i64,
        _ => shown[1..].parse().unwrap(),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

struct Run {
    cluster: Cluster,
    random: Random,
    calls: Vec<Call>,
    counters: BTreeMap<u64, Counter>,
    down: Option<u32>,
    cut: Option<u32>,
    frozen: Option<u32>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let options = ClusterOptions {
            seed,
            groups: 2,
            shards: 4,
            cores: 1 + (seed % 2) as u16,
            ..ClusterOptions::default()
        };
        let configure: fn(&mut crate::CoreConfig) = |config| {
            config.cache_bytes_max = 512 << 10;
            // Long values are written out at once, and half of all runs keep none in memory.
            config.computed_bytes_max = 200;
            config.value_cache_bytes_max = (config.seed as usize % 2) * 4096;
            config.forward_timeout_ticks = 60;
        };
        Self {
            cluster: Cluster::with_config(options, configure),
            random: Random(seed * 7919),
            calls: Vec::new(),
            counters: BTreeMap::new(),
            down: None,
            cut: None,
            frozen: None,
        }
    }

    fn send(&mut self) {
        let node = 1 + self.random.below(3) as u32;
        if self.down == Some(node) {
            return;
        }
        let key = self.random.below(KEYS);
        let write = self.random.below(3) > 0;
        let floor = self.counters.entry(key).or_default().largest_acked;
        let name = format!("n{key}");
        let args: &[&[u8]] = match (write, is_long(key)) {
            (true, true) => &[b"APPEND", name.as_bytes(), &MARK],
            (true, false) => &[b"INCR", name.as_bytes()],
            (false, _) => &[b"GET", name.as_bytes()],
        };
        let mode = if self.random.below(2) == 0 { ReadMode::Leader } else { ReadMode::AnyReplica };
        let cores = u64::from(self.cluster.map().core_count());
        let at = addr(node, self.random.below(cores) as u16);
        let token = self.cluster.submit_as(at, Via::Plain, mode, false, args);
        self.calls.push(Call { token, node, key, write, floor });
    }

    /// Looks at the answers that have come.
    fn collect(&mut self, seed: u64) {
        let cluster = &self.cluster;
        let counters = &mut self.counters;
        self.calls.retain(|call| {
            let Some(reply) = cluster.answer(call.token) else { return true };
            let shown = show(reply);
            let counter = counters.entry(call.key).or_default();
            match shown.as_bytes()[0] {
                b'-' if shown.starts_with("-UNCERTAIN") => {
                    assert!(call.write, "seed {seed}: a read has no outcome: {shown}");
                    counter.unknown += 1;
                }
                b'-' => assert!(
                    shown.starts_with("-TRYAGAIN") || shown.starts_with("-CLUSTERDOWN"),
                    "seed {seed}: {shown}"
                ),
                _ => {
                    let number = number(call.key, &shown);
                    // Everything acknowledged before this was sent must be in it.
                    assert!(number >= call.floor, "seed {seed}: stale {shown} < {}", call.floor);
                    if call.write {
                        assert!(number > call.floor, "seed {seed}: {shown} was given already");
                        counter.acked.push(number);
                        counter.largest_acked = counter.largest_acked.max(number);
                    }
                }
            }
            false
        });
    }

    fn disturb(&mut self) {
        let node = 1 + self.random.below(3) as u32;
        match self.random.below(8) {
            0 if self.down.is_none() && self.cut.is_none() => {
                self.cluster.kill(node);
                self.down = Some(node);
                // Its clients never hear what became of their commands.
                let counters = &mut self.counters;
                self.calls.retain(|call| {
                    if call.node == node && call.write {
                        counters.entry(call.key).or_default().unknown += 1;
                    }
                    call.node != node
                });
            }
            1 => {
                if let Some(node) = self.down.take() {
                    self.cluster.start(node);
                }
            }
            2 if self.cut.is_none() && self.down.is_none() => {
                self.cluster.isolate(node);
                self.cut = Some(node);
            }
            3 => {
                self.cluster.heal();
                self.cut = None;
            }
            4 if self.frozen.is_none() => {
                self.cluster.freeze_disk(node, true);
                self.frozen = Some(node);
            }
            5 => {
                if let Some(node) = self.frozen.take() {
                    self.cluster.freeze_disk(node, false);
                }
            }
            6 => {
                let other = node % 3 + 1;
                self.cluster.cut(node, other);
                self.cluster.run(5);
                if self.cut.is_none() {
                    self.cluster.heal();
                }
            }
            _ => {
                let ms = self.random.below(2000);
                self.cluster.advance_wall(ms);
            }
        }
    }

    /// Heals everything and checks the outcome; tells what the run has met.
    fn finish(mut self, seed: u64) -> [u64; 4] {
        self.cluster.heal();
        for node in 1..=3 {
            self.cluster.freeze_disk(node, false);
        }
        if let Some(node) = self.down {
            self.cluster.start(node);
        }
        let mut steps = 0;
        while !self.calls.is_empty() {
            self.cluster.run(10);
            self.collect(seed);
            steps += 10;
            assert!(
                steps < 20_000,
                "seed {seed}: {} commands are never answered",
                self.calls.len()
            );
        }
        self.cluster.wait_for_leaders();
        self.cluster.assert_replicas_agree();
        for key in 0..KEYS {
            let counter = self.counters.entry(key).or_default();
            let got = show(&self.cluster.call(addr(1, 0), &format!("GET n{key}")));
            let value = number(key, &got);
            let acked = counter.acked.len() as i64;
            assert!(acked <= value, "seed {seed}: {acked} acknowledged, {value} counted");
            let most = acked + counter.unknown;
            assert!(value <= most, "seed {seed}: {value} counted, at most {most} possible");
            counter.acked.sort_unstable();
            counter.acked.dedup();
            assert_eq!(counter.acked.len() as i64, acked, "seed {seed}: a number was given twice");
            assert!(acked > 30, "seed {seed}: only {acked} acknowledged");
        }
        let stats: Vec<_> =
            self.cluster.map().cores().map(|at| self.cluster.core(at).stats()).collect();
        let mut met = [0; 4];
        for stats in stats {
            let open = (stats.reads_open, stats.proposals_open, stats.uncommitted_bytes);
            assert_eq!(open, (0, 0, 0), "seed {seed}: something is left over");
            assert_eq!((stats.parked, stats.forwards_open), (0, 0), "seed {seed}");
            met[0] += stats.uncertain;
            met[1] += stats.lost_proposals;
            met[2] += stats.snapshots_installed;
            met[3] += stats.forwards_refused;
        }
        met
    }
}

/// The whole run of a seed; tells what it has met.
pub(super) fn run(seed: u64) -> [u64; 4] {
    let mut run = Run::new(seed);
    for round in 0..1500 {
        run.send();
        let steps = run.random.below(4);
        run.cluster.run(steps);
        run.collect(seed);
        if run.random.below(25) == 0 {
            run.disturb();
        }
        if round % 10 == 0 {
            run.cluster.checkpoint(2000);
        }
    }
    run.finish(seed)
}

#[test]
fn counters_stay_exact_under_random_faults() {
    let mut met = [0; 4];
    for seed in 1..=40 {
        for (sum, one) in met.iter_mut().zip(run(seed)) {
            *sum += one;
        }
    }
    // Or the faults were too tame to show anything.
    assert!(met.iter().all(|&count| count > 0), "uncertain, lost, snapshots, refused: {met:?}");
}
