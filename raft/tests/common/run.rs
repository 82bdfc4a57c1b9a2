//! One random run: a cluster whose seed chooses what the network, the disks and the drivers do,
//! then an end of all faults, after which it must work again.

use coracle_raft::{Drain, Role};

use super::{Cluster, TIMEOUT, change, node, payload, voters};

/// SplitMix64: the same seed gives the same run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick(&mut self, from: &[u32]) -> u32 {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Steps a run may take, with a weight each; a seed chooses some of them (swarm testing).
const STEPS: &[(&str, u64)] = &[
    ("tick", 30),
    ("deliver", 200),
    ("settle one", 60),
    ("drain all", 60),
    ("drain urgent", 20),
    ("persist", 60),
    ("apply", 30),
    ("propose", 25),
    ("read", 10),
    ("reorder", 60),
    ("duplicate", 10),
    ("drop", 10),
    ("crash", 2),
    ("start", 6),
    ("partition", 2),
    ("heal", 3),
    ("membership", 3),
    ("transfer", 2),
    ("campaign", 2),
    ("compact", 4),
    ("load", 20),
    ("loads fail", 1),
    ("loads work", 2),
    ("rush", 3),
    ("silence", 6),
    ("timeout", 6),
];

/// Steps without which nothing happens.
const VITAL: usize = 9;

/// A cluster and the dice that decide what happens to it.
pub struct Run {
    pub cluster: Cluster,
    dice: Dice,
    weights: Vec<(&'static str, u64)>,
    proposed: u64,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let count = [1, 2, 3, 3, 3, 4, 5, 5][dice.below(8) as usize] as u32;
        let spare = dice.below(3) as u32;
        let small = dice.below(2) == 0;
        let tail = [0, 3, usize::MAX][dice.below(3) as usize];
        let mut cluster = Cluster::with(1..=count + spare, &voters(1..=count), |config| {
            config.seed ^= seed << 8;
            if small {
                config.cache_bytes_max = 300;
                config.append_bytes_max = 120;
                config.append_entries_max = 3;
                config.inflight_bytes_max = 500;
                config.inflight_messages_max = 3;
                config.uncommitted_bytes_max = 2000;
                config.reads_max = 4;
            }
        });
        for id in cluster.ids() {
            cluster.node(id).tail_count = tail;
        }
        let mut weights = STEPS.to_vec();
        for (at, (_, weight)) in weights.iter_mut().enumerate() {
            *weight *= match dice.below(6) {
                0 | 1 if at >= VITAL => 0,
                2 => 4,
                _ => 1,
            };
        }
        Self { cluster, dice, weights, proposed: 0 }
    }

    pub fn step(&mut self) {
        let total: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.dice.below(total);
        let found = self.weights.iter().find(|(_, weight)| {
            let hit = at < *weight;
            at = at.wrapping_sub(*weight);
            hit
        });
        let step = found.expect("below the total").0;
        let ids = self.cluster.ids();
        let id = self.dice.pick(&ids);
        match step {
            "start" if !self.cluster.up(id) => self.cluster.start(id),
            "partition" => self.partition(&ids),
            "heal" => self.cluster.heal(),
            "deliver" | "reorder" | "duplicate" | "drop" => self.network(step),
            "rush" => self.cluster.run(1),
            "silence" => {
                let up = ids.into_iter().filter(|&id| self.cluster.up(id)).collect::<Vec<_>>();
                up.into_iter().for_each(|id| self.cluster.tick(id, TIMEOUT));
            }
            _ if self.cluster.up(id) => self.replica(step, id, &ids),
            _ => {}
        }
    }

    fn replica(&mut self, step: &str, id: u32, ids: &[u32]) {
        let cluster = &mut self.cluster;
        match step {
            "tick" => cluster.tick(id, 1),
            "timeout" => cluster.tick(id, TIMEOUT),
            "settle one" => drop(cluster.settle_one(id)),
            "drain all" => cluster.drain(id, Drain::All),
            "drain urgent" => cluster.drain(id, Drain::Urgent),
            "persist" => drop(cluster.persist(id)),
            "apply" => drop(cluster.apply(id)),
            "load" => drop(cluster.load(id)),
            "loads fail" => {
                cluster.node(id).loads_fail = true;
                cluster.node(id).loads_lost = self.proposed.is_multiple_of(2);
            }
            "loads work" => cluster.node(id).loads_fail = false,
            "propose" => {
                self.proposed += 1;
                let text = payload(&format!("p{}", self.proposed));
                drop(cluster.with_raft(id, |raft| raft.propose(text)));
            }
            "read" => drop(cluster.read(id)),
            "crash" => cluster.crash(id),
            "compact" => cluster.compact(id),
            "campaign" => cluster.campaign(id),
            "transfer" => {
                let to = node(self.dice.pick(ids));
                drop(cluster.with_raft(id, |raft| raft.transfer_leadership(to)));
            }
            "membership" => {
                let (mut members, mut learners) = (Vec::new(), Vec::new());
                for &id in ids {
                    match self.dice.below(4) {
                        0 => {}
                        1 => learners.push(id),
                        _ => members.push(id),
                    }
                }
                let change = change(&members, &learners);
                drop(cluster.with_raft(id, |raft| raft.propose_membership(change)));
            }
            _ => {}
        }
    }

    fn network(&mut self, step: &str) {
        let count = self.cluster.network.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.dice.below(count) as usize;
        match step {
            "deliver" => self.cluster.deliver(0),
            "reorder" => self.cluster.deliver(at),
            "duplicate" => {
                let message = self.cluster.network[at].clone();
                self.cluster.network.push(message);
            }
            _ => drop(self.cluster.network.remove(at)),
        }
    }

    fn partition(&mut self, ids: &[u32]) {
        for &from in ids {
            for &to in ids {
                // Also one-way, and not transitive.
                if self.dice.below(3) == 0 {
                    self.cluster.cut.insert((from, to));
                }
            }
        }
    }

    /// All faults end: a leader emerges, and what it proposes is applied by all members.
    pub fn recover(&mut self) {
        let cluster = &mut self.cluster;
        cluster.heal();
        for id in cluster.ids() {
            cluster.node(id).loads_fail = false;
            if !cluster.up(id) {
                cluster.start(id);
            }
        }
        cluster.settle();
        // Longest: a lost snapshot is sent again after ten election timeouts.
        let able = |cluster: &Cluster| {
            let leader = cluster.leader()?;
            let raft = cluster.raft(leader);
            // A removed leader goes on only until its removal is committed.
            let stays = raft.membership().voters.contains(&node(leader));
            (raft.can_read() && !raft.membership().is_joint() && stays).then_some(leader)
        };
        cluster.run_until(20 * TIMEOUT, |cluster| able(cluster).is_some());
        cluster.run(3 * TIMEOUT);
        let leader = able(cluster).expect("a leader without faults stays");
        let term = cluster.raft(leader).term();
        let at = cluster.propose(leader, "last");
        let read = cluster.read(leader);
        cluster.run(1);
        assert!(cluster.raft(leader).applied_index() >= at.index, "{}", cluster.describe());
        assert!(cluster.answer(leader, read) == Some(Some(at.index.prev())), "read refused");
        let members = cluster.raft(leader).membership().members();
        cluster.run_until(12 * TIMEOUT, |cluster| {
            members.iter().all(|id| cluster.raft(id.get()).applied_index() >= at.index)
        });
        let raft = cluster.raft(leader);
        assert!(raft.role() == Role::Leader && raft.term() == term, "{}", cluster.describe());
    }
}
