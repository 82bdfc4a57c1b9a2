//! One core's brain: slots, decoding, and commands through one core and through three.
//!
//! Disks and links cost nothing here. `one_node` is a group of one replica: propose, log, apply,
//! reply. `three_nodes` adds replication; it is measured as a whole and per role.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use coracle_engine::command::{Command, decode};
use coracle_engine::{
    CheckpointWork, ClusterMap, Core, CoreAddr, CoreConfig, CoreId, Drain, Effects, Input,
    NodeInfo, ReadMode, Recovery, Reply, Request, SlotId, Token, Via, WallMillis,
};
use coracle_raft::{GroupId, NodeId, Place};
use criterion::{BenchmarkId, Criterion, Throughput};

const KEYS: usize = 1024;
/// So many that what a command touches is not in a near cache, as in a real store.
const MANY_KEYS: usize = 1 << 17;
const AT: WallMillis = WallMillis(1_700_000_000_000);

/// What a node asks for at once.
const CHECKPOINT_STEP_BYTES: usize = 16 << 10;

/// Commands given to a core before it is drained.
const TURN: usize = 64;

fn key(number: usize) -> String {
    format!("key:{number:08}")
}

fn set_commands(keys: usize, value_bytes: usize) -> Vec<Command> {
    let value = vec![b'v'; value_bytes];
    let set = |number| decode(&[b"SET", key(number).as_bytes(), &value], AT);
    // In no order that memory has: the factor is odd, the number of keys a power of two.
    let numbers = (0..keys).map(|number| number.wrapping_mul(2_654_435_761) % keys);
    numbers.map(|number| set(number).expect("a well-formed command")).collect()
}

fn get_commands() -> Vec<Command> {
    let get = |number| decode(&[b"GET", key(number).as_bytes()], AT);
    (0..KEYS).map(|number| get(number).expect("a well-formed command")).collect()
}

/// Cores with instant disks and links, one per node.
struct Cluster {
    cores: Vec<Core>,
    inputs: Vec<VecDeque<Input>>,
    effects: Effects,
    replies: Vec<Reply>,
    token: u64,
    /// Records that were given a place.
    placed: u64,
    leader: usize,
    /// Time each core has spent.
    spent: Vec<Duration>,
}

impl Cluster {
    /// One group on `nodes` nodes, with a leader.
    fn new(nodes: u32) -> Self {
        let node = |id| NodeInfo {
            id: NodeId::new(id),
            host: "127.0.0.1".into(),
            plain_port: 1,
            core_port: 2,
            peer_port: 3,
        };
        let map = ClusterMap::new((1..=nodes).map(node).collect(), 1, 16, 1);
        let map = map.expect("a possible layout");
        let core = |addr: CoreAddr| {
            let mut config = CoreConfig::new(addr, map.clone());
            config.seed = u64::from(addr.node.get());
            // No value leaves memory: disks are not what is measured here.
            config.cache_bytes_max = 1 << 30;
            Core::new(config, Recovery::new(map.clone(), addr))
        };
        let cores: Vec<Core> = map.cores().map(core).collect();
        let mut cluster = Self {
            inputs: cores.iter().map(|_| VecDeque::new()).collect(),
            spent: vec![Duration::ZERO; cores.len()],
            cores,
            effects: Effects::default(),
            replies: Vec::new(),
            token: 0,
            placed: 0,
            leader: 0,
        };
        let group = GroupId::new(0);
        for _ in 0..10_000 {
            let leader = cluster.cores[0].leader_of(group);
            if let Some(leader) = leader.filter(|_| cluster.cores[0].stats().applied > 0) {
                cluster.leader = leader.get() as usize - 1;
                return cluster;
            }
            for inputs in &mut cluster.inputs {
                inputs.push_back(Input::Tick { at: AT });
            }
            cluster.settle();
        }
        panic!("no leader after 10,000 ticks");
    }

    /// One core takes its inputs and is drained; time is kept for this alone.
    fn turn(&mut self, at: usize) {
        let start = Instant::now();
        while let Some(input) = self.inputs[at].pop_front() {
            self.cores[at].handle(input);
        }
        self.cores[at].drain(Drain::All, &mut self.effects);
        self.spent[at] += start.elapsed();
        let from = CoreAddr { node: NodeId::new(at as u32 + 1), core: CoreId(0) };
        for (to, message) in self.effects.sends.drain(..) {
            let to = to.node.get() as usize - 1;
            self.inputs[to].push_back(Input::Peer { from, message });
        }
        let loads = self.effects.loads.len() + self.effects.reads.len();
        assert_eq!(loads, 0, "everything is still in memory");
        if !self.effects.records.is_empty() {
            let batch = self.effects.batch;
            let place = |_| {
                self.placed += 1;
                Place::new(self.placed >> 20, (self.placed & 0xF_FFFF) * 8)
            };
            let places = self.effects.records.drain(..).map(place).collect();
            self.inputs[at].push_back(Input::Placed { batch, places });
            self.inputs[at].push_back(Input::Persisted(batch));
        }
        self.replies.extend(self.effects.replies.drain(..).map(|(_, reply)| reply));
    }

    /// Whether a core has something to do.
    fn is_busy(&self, at: usize) -> bool {
        !self.inputs[at].is_empty() || self.cores[at].has_pending(Drain::All)
    }

    fn settle(&mut self) {
        while (0..self.cores.len()).any(|at| self.is_busy(at)) {
            for at in 0..self.cores.len() {
                if self.is_busy(at) {
                    self.turn(at);
                }
            }
        }
    }

    /// Has the leader execute the commands and checks that all were answered without error.
    fn execute(&mut self, commands: &[Command]) {
        self.replies.clear();
        for command in commands {
            self.token += 1;
            self.inputs[self.leader].push_back(Input::Request(Request {
                token: Token(self.token),
                via: Via::Core,
                read_mode: ReadMode::Leader,
                follows: false,
                at: AT,
                command: command.clone(),
            }));
        }
        self.settle();
        assert_eq!(self.replies.len(), commands.len());
        let refused = self.replies.iter().find(|reply| matches!(reply, Reply::Error(_)));
        assert!(refused.is_none(), "{refused:?}");
    }

    /// Makes a whole checkpoint; the time that its steps take.
    fn checkpoint(&mut self) -> Duration {
        let (mut spent, mut sections) = (Duration::ZERO, 0);
        loop {
            let start = Instant::now();
            self.cores[0].checkpoint_step(CHECKPOINT_STEP_BYTES);
            spent += start.elapsed();
            self.cores[0].drain(Drain::All, &mut self.effects);
            let mut finished = None;
            for work in self.effects.checkpoint.drain(..) {
                match work {
                    CheckpointWork::Begin { .. } => {}
                    CheckpointWork::Section { bytes, .. } => sections += black_box(bytes).len(),
                    CheckpointWork::Finish { number } => finished = Some(number),
                }
            }
            if let Some(number) = finished {
                assert!(sections > MANY_KEYS * 40, "{sections} bytes");
                self.inputs[0].push_back(Input::Checkpointed { number, result: Ok(()) });
                self.settle();
                return spent;
            }
        }
    }
}

/// Whose time counts.
#[derive(Clone, Copy)]
enum Who {
    All,
    Leader,
    OneFollower,
}

impl Who {
    fn spent(self, cluster: &Cluster) -> Duration {
        let follower = (cluster.leader + 1) % cluster.cores.len();
        match self {
            Self::All => cluster.spent.iter().sum(),
            Self::Leader => cluster.spent[cluster.leader],
            Self::OneFollower => cluster.spent[follower],
        }
    }
}

fn through(criterion: &mut Criterion, name: &str, nodes: u32, cases: &[(&str, Who)]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(TURN as u64));
    let small = set_commands(KEYS, 16);
    let large = set_commands(KEYS, 4096);
    let many = set_commands(MANY_KEYS, 100);
    let get = get_commands();
    let loads = [
        ("set_16b", &small, &large),
        ("set_4k", &large, &large),
        ("set_100b_many_keys", &many, &many),
        ("get_4k", &get, &large),
    ];
    for &(role, who) in cases {
        for (what, commands, filling) in loads {
            // Made once: criterion calls the closure for every sample.
            let mut state = None;
            let mut turns = commands.chunks(TURN).cycle();
            group.bench_function(BenchmarkId::new(what, role), |bencher| {
                let cluster = state.get_or_insert_with(|| {
                    let mut cluster = Cluster::new(nodes);
                    filling.chunks(TURN).for_each(|commands| cluster.execute(commands));
                    cluster
                });
                bencher.iter_custom(|count| {
                    let before = who.spent(cluster);
                    for _ in 0..count {
                        cluster.execute(turns.next().expect("a cycle does not end"));
                    }
                    who.spent(cluster) - before
                });
            });
        }
    }
    group.finish();
}

fn slots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slot_of_key");
    let cases = [("plain_12", "key:00000042"), ("tag_5", "{user1}:profile:00000042")];
    for (name, key) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter(|| SlotId::of_key(black_box(key.as_bytes())));
        });
    }
    group.finish();
}

/// From arguments to the encoded command, with one copy of the value and its checksum.
fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let value = vec![b'v'; 4096];
    let cases: [(&str, Vec<&[u8]>); 3] = [
        ("get", vec![b"GET", b"key:00000042"]),
        ("set_16b", vec![b"SET", b"key:00000042", &value[..16]]),
        ("set_4k", vec![b"SET", b"key:00000042", &value]),
    ];
    for (name, args) in &cases {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| decode(black_box(args), AT).expect("a well-formed command"));
        });
    }
    group.finish();
}

/// The sections of a checkpoint, per key: the core does nothing else meanwhile.
fn checkpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoint");
    group.throughput(Throughput::Elements(MANY_KEYS as u64));
    group.sample_size(20);
    let mut cluster = None;
    group.bench_function("many_keys", |bencher| {
        let cluster = cluster.get_or_insert_with(|| {
            let mut cluster = Cluster::new(1);
            let many = set_commands(MANY_KEYS, 100);
            many.chunks(TURN).for_each(|commands| cluster.execute(commands));
            cluster
        });
        bencher.iter_custom(|count| (0..count).map(|_| cluster.checkpoint()).sum());
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    slots(&mut criterion);
    decoding(&mut criterion);
    through(&mut criterion, "one_node", 1, &[("all", Who::All)]);
    let roles = [("all", Who::All), ("leader", Who::Leader), ("follower", Who::OneFollower)];
    through(&mut criterion, "three_nodes", 3, &roles);
    checkpoint(&mut criterion);
    criterion.final_summary();
}
