//! One group of three replicas in memory: propose, replicate, acknowledge, commit, hand out.
//!
//! Disks and links cost nothing here, so the time is the bookkeeping of all three replicas.

use coracle_raft::{
    BatchSeq, Config, Drain, Membership, Message, NodeId, Payload, Raft, Ready, Recovered, Role,
};
use criterion::{BenchmarkId, Criterion, Throughput};

const REPLICAS: u32 = 3;
const VALUE_BYTES: usize = 4096;

/// Committed bytes taken at once, as much as an engine takes in a turn.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// Three replicas whose disks and links are instant.
struct Group {
    replicas: Vec<Raft>,
    batch: BatchSeq,
    ready: Ready,
    messages: Vec<Message>,
    applied: u64,
}

impl Group {
    /// A group whose first replica leads.
    fn new() -> Self {
        let membership = Membership::of_voters((1..=REPLICAS).map(NodeId::new));
        let replica = |id| {
            let recovered = Recovered { membership: membership.clone(), ..Recovered::default() };
            Raft::new(Config::new(NodeId::new(id), u64::from(id)), recovered)
        };
        let mut group = Self {
            replicas: (1..=REPLICAS).map(replica).collect(),
            batch: BatchSeq::new(0),
            ready: Ready::default(),
            messages: Vec::new(),
            applied: 0,
        };
        group.replicas[0].campaign();
        group.settle();
        assert_eq!(group.replicas[0].role(), Role::Leader);
        group
    }

    /// One replica's turn: everything it wants written is written at once.
    fn turn(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        while replica.needs_drain(Drain::All) {
            self.batch = self.batch.next();
            replica.drain(Drain::All, self.batch, &mut self.ready);
            assert!(self.ready.loads.is_empty(), "everything is still in memory");
            self.messages.append(&mut self.ready.messages);
            self.ready.hard_state = None;
            self.ready.entries.clear();
            self.ready.reads.clear();
            replica.persisted(self.batch);
        }
        loop {
            let entries = replica.next_committed(APPLY_BYTES_MAX);
            let Some(last) = entries.last() else { break };
            replica.applied(last.index);
            self.applied += entries.len() as u64;
        }
    }

    /// Runs turns and delivers messages until nothing is left to do.
    fn settle(&mut self) {
        loop {
            for at in 0..self.replicas.len() {
                self.turn(at);
            }
            if self.messages.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.messages) {
                self.replicas[message.to.get() as usize - 1].step(message);
            }
        }
    }

    /// Commits and applies `count` entries on every replica, and lets every replica know.
    fn commit(&mut self, payload: &Payload, count: u64) {
        let before = self.applied;
        for _ in 0..count {
            self.replicas[0].propose(payload.clone()).expect("the leader takes proposals");
        }
        self.settle();
        assert!(self.applied - before >= count, "the leader applied what was proposed");
    }
}

fn replicate(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("raft_commit");
    let payload = Payload::new(vec![b'v'; VALUE_BYTES], 0);
    for count in [1, 32, 128, 1024] {
        bench.throughput(Throughput::Elements(count));
        let mut group = Group::new();
        bench.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| group.commit(&payload, count));
        });
    }
    bench.finish();
}

/// Reads confirmed by one round of echoes (thesis §6.4).
fn read(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("raft_read_index");
    for count in [1u64, 128] {
        bench.throughput(Throughput::Elements(count));
        let mut group = Group::new();
        let mut context = 0;
        bench.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                for _ in 0..count {
                    context += 1;
                    group.replicas[0].read_index(context);
                }
                group.settle();
            });
        });
    }
    bench.finish();
}

/// What an idle group costs per tick; a node may have thousands.
fn idle(criterion: &mut Criterion) {
    let mut group = Group::new();
    criterion.bench_function("raft_idle_tick", |bencher| {
        bencher.iter(|| {
            for replica in &mut group.replicas {
                replica.tick();
            }
            group.settle();
        });
    });
    assert_eq!(group.replicas[0].role(), Role::Leader, "ticks alone do not depose a leader");
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    replicate(&mut criterion);
    read(&mut criterion);
    idle(&mut criterion);
    criterion.final_summary();
}
