//! The invariants on real cores under random faults: they hold; and they are broken as soon as
//! disks lie, so they do look.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coracle_engine::testing::{Cluster, ClusterOptions, Watch, addr};
use coracle_engine::{Core, CoreAddr, CoreConfig, Effects, ReadMode, Via};
use coracle_raft::{NodeId, Record};
use coracle_sim::invariants::{Invariants, Violation};

/// What a run shares with whoever watches it.
struct Shared {
    invariants: RefCell<Invariants>,
    found: RefCell<Option<Violation>>,
    /// Batches of this node are said to be durable and never are.
    liar: Cell<Option<NodeId>>,
    observed: Cell<u64>,
    entries_durable: Cell<u64>,
}

impl Shared {
    fn note(&self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.found.borrow_mut().get_or_insert(violation);
        }
    }
}

struct Watcher(Rc<Shared>);

impl Watch for Watcher {
    fn started(&mut self, at: CoreAddr, core: &Core) {
        self.0.note(self.0.invariants.borrow_mut().started(at, core));
    }

    fn stopped(&mut self, at: CoreAddr) {
        self.0.invariants.borrow_mut().stopped(at);
    }

    fn drained(&mut self, at: CoreAddr, core: &Core, effects: &Effects) {
        self.0.observed.set(self.0.observed.get() + 1);
        let mut invariants = self.0.invariants.borrow_mut();
        self.0
            .note(invariants.observe(at, core).and_then(|()| invariants.sent(at, &effects.sends)));
    }

    fn durable(&mut self, at: CoreAddr, records: &[Record]) {
        if self.0.liar.get() != Some(at.node) {
            self.0.invariants.borrow_mut().durable(at, records);
            let entries = records.iter().filter(|record| matches!(record, Record::Entry { .. }));
            self.0.entries_durable.set(self.0.entries_durable.get() + entries.count() as u64);
        }
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
    shared: Rc<Shared>,
    random: Random,
    down: Option<u32>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let cores = 1 + (seed % 2) as u16;
        let options = ClusterOptions { seed, cores, shards: 8, ..ClusterOptions::default() };
        let configure: fn(&mut CoreConfig) = |config| {
            config.cache_bytes_max = 512 << 10;
            config.forward_timeout_ticks = 60;
            config.memory_budget_bytes = 64 << 20;
        };
        let mut cluster = Cluster::with_config(options, configure);
        let shared = Rc::new(Shared {
            invariants: RefCell::new(Invariants::new(cluster.map())),
            found: RefCell::new(None),
            liar: Cell::new(None),
            observed: Cell::new(0),
            entries_durable: Cell::new(0),
        });
        cluster.watch(Box::new(Watcher(Rc::clone(&shared))));
        Self { cluster, shared, random: Random(seed * 7919), down: None }
    }

    fn send(&mut self) {
        let node = 1 + self.random.below(3) as u32;
        if self.down == Some(node) {
            return;
        }
        let key = format!("k{}", self.random.below(40));
        let value = vec![b'v'; self.random.below(3000) as usize];
        let core = self.random.below(u64::from(self.cluster.map().core_count())) as u16;
        let at = addr(node, core);
        match self.random.below(5) {
            0 => self.cluster.submit(at, &[b"INCR", b"n"]),
            1 => self.cluster.submit(at, &[b"SET", key.as_bytes(), &value, b"PX", b"900"]),
            2 => self.cluster.submit(at, &[b"APPEND", key.as_bytes(), b"more"]),
            3 => {
                let (via, mode) = (Via::Plain, ReadMode::AnyReplica);
                self.cluster.submit_as(at, via, mode, false, &[b"GET", key.as_bytes()])
            }
            _ => self.cluster.submit(at, &[b"SET", key.as_bytes(), &value]),
        };
    }

    fn disturb(&mut self) {
        let node = 1 + self.random.below(3) as u32;
        match self.random.below(11) {
            0 | 1 if self.down.is_none() => {
                self.cluster.kill(node);
                self.down = Some(node);
            }
            0..3 => {
                if let Some(node) = self.down.take() {
                    self.cluster.start(node);
                }
            }
            3 => self.cluster.isolate(node),
            4 => self.cluster.cut(node, node % 3 + 1),
            5 => self.cluster.freeze_disk(node, true),
            6 => self.cluster.freeze_disk(node, false),
            7 => self.cluster.advance_wall(500),
            _ => self.cluster.heal(),
        }
    }

    fn deep(&mut self) {
        let up = self.cluster.map().cores().filter(|at| self.down != Some(at.node.get()));
        let mut cores = up.map(|at| (at, self.cluster.core(at)));
        let result = self.shared.invariants.borrow_mut().observe_deep(&mut cores);
        self.shared.note(result);
    }

    /// Heals everything and runs until all replicas have applied the same entries.
    fn settle(&mut self) {
        self.cluster.heal();
        for node in 1..=3 {
            self.cluster.freeze_disk(node, false);
        }
        if let Some(node) = self.down.take() {
            self.cluster.start(node);
        }
        self.cluster.wait_for_leaders();
        let settled = |cluster: &Cluster| {
            let cores = cluster.map().cores().map(|at| cluster.core(at));
            let mut rafts = cores.flat_map(Core::rafts).map(|(group, raft)| {
                let same = cluster.leader(group.get()).and_then(|at| cluster.core(at).raft(group));
                (raft.last_index(), same.map(|leader| leader.applied_index()), raft.applied_index())
            });
            rafts.all(|(last, leader, applied)| last == applied && leader == Some(applied))
        };
        assert!(self.cluster.run_until(100_000, settled), "replicas do not catch up");
    }

    fn found(&self) -> Option<Violation> {
        self.shared.found.borrow().clone()
    }

    fn round(&mut self, round: u64) {
        self.send();
        let steps = self.random.below(10);
        self.cluster.run(steps);
        if self.random.below(40) == 0 {
            self.disturb();
        }
        if round.is_multiple_of(10) {
            self.cluster.checkpoint(4000);
        }
        if round.is_multiple_of(50) {
            self.deep();
        }
    }
}

/// Crashes, partitions, frozen disks, checkpoints, snapshots, expiry.
#[test]
fn real_cores_break_nothing_under_random_faults() {
    let mut met = [0; 5];
    for seed in 1..=24 {
        let mut run = Run::new(seed);
        for round in 0..1500 {
            run.round(round);
            assert_eq!(run.found(), None, "seed {seed}, round {round}");
        }
        run.settle();
        run.deep();
        assert_eq!(run.found(), None, "seed {seed}, at the end");
        met[0] += run.shared.observed.get();
        met[1] += run.shared.entries_durable.get();
        for at in run.cluster.map().cores() {
            let core = run.cluster.core(at);
            met[2] += core.stats().elections_won;
            met[3] += core.stats().snapshots_installed;
            met[4] += core.rafts().map(|(_, raft)| raft.base().index.get()).sum::<u64>();
        }
    }
    // Or the faults were too tame to show anything.
    let least = [50_000, 20_000, 80, 50, 20_000];
    let enough = met.iter().zip(least).all(|(&met, least)| met >= least);
    assert!(enough, "drains, durable entries, elections, snapshots, forgotten entries: {met:?}");
}

/// A disk that says a batch is durable, and it is not.
#[test]
fn a_disk_that_lies_is_found() {
    let mut run = Run::new(1);
    run.cluster.wait_for_leaders();
    run.shared.liar.set(Some(NodeId::new(2)));
    for round in 0..300 {
        run.round(round);
    }
    let violation = run.found().expect("node 2 promises what is not durable");
    assert_eq!(violation.at.node, NodeId::new(2), "{violation}");
    assert_eq!(violation.invariant, "promises are durable before they are sent", "{violation}");
}

/// A core that serves other shards than the rest of the cluster thinks.
#[test]
fn a_core_out_of_place_is_found() {
    let other = ClusterOptions { shards: 4, groups: 2, ..ClusterOptions::default() };
    let other = Cluster::new(other);
    let mut invariants = Invariants::new(Run::new(1).cluster.map());
    let at = addr(1, 0);
    let violation = invariants.started(at, other.core(at)).expect_err("it has another layout");
    assert_eq!((violation.invariant, violation.at), ("one owner per shard", at));
}

/// A disk that comes back empty without anybody saying that it was wiped.
#[test]
fn a_wiped_disk_is_found_unless_it_was_on_purpose() {
    let start_wiped = |on_purpose: bool| {
        let mut run = Run::new(2);
        run.cluster.wait_for_leaders();
        for round in 0..50 {
            run.round(round);
        }
        assert_eq!(run.found(), None);
        let fresh = Run::new(2);
        let at = addr(3, 0);
        let mut invariants = run.shared.invariants.borrow_mut();
        if on_purpose {
            let groups: Vec<_> = run.cluster.map().groups_on(at).collect();
            invariants.forgot(at, &groups);
        }
        invariants.started(at, fresh.cluster.core(at))
    };
    assert_eq!(start_wiped(true), Ok(()));
    let violation = start_wiped(false).expect_err("its entries are gone");
    assert_eq!(violation.invariant, "durable entries are recovered", "{violation}");
}
