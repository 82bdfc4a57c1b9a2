//! What a seed decides before a run begins: the shape of the cluster, its load, and which faults
//! it will meet how often.
//!
//! Not every kind of fault in every run: a swarm of differently crippled runs finds more than one
//! run that does everything (Groce et al., "Swarm Testing", ISSTA 2012).

use std::fmt;

use coracle_engine::testing;
use coracle_raft::{GroupId, NodeId};

use crate::queue::Micros;
use crate::rng::Rng;

/// One simulated second.
pub const SECOND: Micros = 1_000_000;
/// One simulated millisecond.
pub const MS: Micros = 1000;

/// Time between ticks.
const TICK: Micros = 25 * MS;
/// The longest election timeout: raft draws from 20 to 39 ticks.
pub(crate) const ELECTION_TIMEOUT_MAX: Micros = 40 * TICK;
/// Election timeouts that a quorum may need to serve every group again. One passes until followers
/// miss a leader that is gone, and up to 2 more until a leader outside the quorum that cannot lead
/// steps down; a vote may be split again and again, with clocks that differ by a fifth; a follower
/// may need a snapshot, of which a lost piece is sent again after one; and the probes of every
/// group follow each other, each up to half a timeout at every host that cannot serve.
const RECOVERY_ELECTIONS: u64 = 12;
/// How long batches gather in the node.
const GATHER: Micros = 300;

/// Which faults a run may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// One of the others, or a mixture without damage to disks, chosen per seed.
    Mix,
    /// No faults: how fast a healthy cluster runs.
    Calm,
    /// Crashes, power losses, pauses.
    Crash,
    /// Partitions, loss, duplicates, reordering, corruption.
    Network,
    /// Slow, stuck, full, failing disks.
    Disk,
    /// Damage at rest on one node, beside everything that passes.
    Rot,
    /// One node's disk is wiped, or replaced by an old copy, beside crashes.
    Amnesia,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            clap::ValueEnum::to_possible_value(self).map(|value| value.get_name().to_owned());
        f.write_str(&name.unwrap_or_default())
    }
}

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident $name:literal $($profile:ident)*, )*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $( $(#[$doc])* $kind, )* }

        impl Fault {
            /// All kinds.
            pub const ALL: &[Self] = &[$( Self::$kind, )*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$kind => $name, )* }
            }

            /// Whether runs of a profile may meet it.
            fn in_profile(self, profile: Profile) -> bool {
                let profiles: &[Profile] = match self {
                    $( Self::$kind => &[$( Profile::$profile, )*], )*
                };
                profiles.contains(&profile)
            }
        }
    };
}

kinds! {
    /// The process of a node is killed; what was handed to the disk may still arrive there.
    Kill "kill" Mix Crash Disk Rot Amnesia,
    /// A node loses power: unsynced writes are lost or torn, nobody is told that links are dead.
    PowerLoss "power-loss" Mix Crash Disk Rot Amnesia,
    /// All nodes lose power at once.
    Blackout "blackout" Mix Crash Rot,
    /// A node is killed again and again, soon after each start.
    CrashLoop "crash-loop" Mix Crash Amnesia Rot,
    /// A node dies at the moment at which an operation of its disk has completed.
    DeathAtIo "death-at-io" Mix Crash Disk Rot Amnesia,
    /// A node's threads stand still, its disk and network do not.
    Pause "pause" Mix Crash Network Amnesia Rot,
    /// A node is cut off and stands still, and wakes up still cut off: it has missed everything
    /// and does not know it.
    Nap "nap" Mix Crash Network Rot,
    /// A node is cut off from all others.
    Isolate "isolate" Mix Network Amnesia Rot,
    /// The cluster falls into two parts.
    Split "split" Mix Network Amnesia Rot,
    /// Two nodes cannot reach each other, everyone else can reach both.
    Cut "cut" Mix Network Rot,
    /// Messages pass in one direction only.
    OneWay "one-way" Mix Network Rot,
    /// A link breaks and heals again and again.
    Flap "flap" Mix Network Rot,
    /// Nodes are cut off one after the other and come back in another order.
    Swizzle "swizzle" Mix Network Rot,
    /// Connections are reset.
    Reset "reset" Mix Network Amnesia Rot,
    /// All messages of a node are slow for a while.
    SlowNet "slow-net" Mix Network Amnesia Rot,
    /// Bytes of peer frames are changed on the way.
    Corrupt "corrupt" Mix Network Rot,
    /// Disk operations of a node do not complete for a while.
    StuckDisk "stuck-disk" Mix Disk Amnesia Rot,
    /// Disk operations of a node take far longer for a while.
    SlowDisk "slow-disk" Mix Disk Amnesia Rot,
    /// No new space on a node's disk for a while.
    FullDisk "full-disk" Mix Disk Rot,
    /// One write of a node fails.
    WriteError "write-error" Mix Disk Rot,
    /// Reading back from a node's log fails for a while.
    ReadError "read-error" Mix Disk Rot,
    /// A node's cores are slow for a while.
    SlowCore "slow-core" Mix Crash Rot,
    /// A node's wall clock jumps.
    ClockJump "clock-jump" Mix Crash Rot,
    /// A leader is asked to hand over.
    Transfer "transfer" Mix Crash Network Amnesia Rot,
    /// Leaderships change hands again and again.
    Churn "churn" Mix Crash Network Disk Rot,
    /// Bits of one node's log are changed at rest.
    BitRot "bit-rot" Rot,
    /// A write of one node lands in the wrong place of its segment.
    Misdirect "misdirected-write" Rot,
    /// A part of one node's log silently keeps what it held before.
    StaleBlock "stale-block" Rot,
    /// A few sectors of one node's log cannot be read any more.
    BadSector "bad-sector" Rot,
    /// Values in old segments of any node are damaged, different ones on different nodes.
    OldValue "old-value" Mix Crash Network Disk Rot,
    /// The newest checkpoint of a core goes bad, on any node: everything it held is there still,
    /// in the one before and the log.
    BadCheckpoint "bad-checkpoint" Mix Crash Network Disk,
    /// Entries in the log proper of any node are damaged, different ones on different nodes.
    LostEntry "lost-entry" Mix Crash Network Disk Rot,
    /// A key appears in the memory of one replica that no other one has.
    Stray "stray" Mix Crash Network,
    /// One node's disks are replaced by empty ones.
    Wipe "wipe" Amnesia,
    /// A copy of one node's disks is made; later it takes their place.
    OldCopy "old-copy" Amnesia,
}

/// How messages travel.
#[derive(Clone, Debug)]
pub struct NetPlan {
    /// Shortest and longest way.
    pub delay: (Micros, Micros),
    /// Share of frames that take up to a hundred times as long.
    pub spikes: f64,
    /// Consensus messages travel one by one, as datagrams would.
    pub datagrams: bool,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplicates: f64,
    /// Share of datagrams that others overtake.
    pub reorder: f64,
    /// Share of frames with changed bytes while [`Fault::Corrupt`] is on.
    pub corrupt: f64,
}

/// How disks behave.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// Shortest and longest operation.
    pub latency: (Micros, Micros),
    /// Share of operations that take 10 to 640 times as long, as when a device stops to erase.
    pub hiccups: f64,
    /// Least time between two batches of a core, in which records gather.
    pub gather: Micros,
    /// A segment file.
    pub segment_bytes: u64,
    /// Live segments from which checkpoints are written.
    pub checkpoint_segments: usize,
    /// Live segments from which old ones are emptied.
    pub gc_segments: usize,
    /// Records kept in memory because their values may be read.
    pub value_cache_bytes: usize,
    /// Computed values that are kept in memory only.
    pub computed_bytes: usize,
    /// Bytes appended between two parts of a checkpoint.
    pub checkpoint_every: usize,
    /// Bytes of such a part; at least one piece is written.
    pub checkpoint_step: usize,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Clients, each with one command or one pipeline under way.
    pub clients: u32,
    /// Mean time between an answer and the next command.
    pub think: Micros,
    /// When a client gives up on an answer.
    pub timeout: Micros,
    /// Keys that all clients share, with each tag.
    pub keys: u64,
    /// Hash tags of the keys. With more than one, all clients use the same tag for a while, so
    /// that all but one shard are idle; with one, it is empty and keys are spread evenly.
    pub tags: u64,
    /// Length of the longest value.
    pub value_bytes_max: usize,
    /// Share of values that are longer than a few bytes.
    pub long_values: f64,
    /// Share of commands that look at the whole keyspace.
    pub whole: f64,
    /// Share of commands that remove everything.
    pub flush: f64,
}

/// What one seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: u32,
    /// Cores of each.
    pub cores: u16,
    /// Groups.
    pub groups: u32,
    /// Shards.
    pub shards: u16,
    /// Time between ticks.
    pub tick: Micros,
    /// How far tick lengths and clocks of nodes differ, in parts of a million.
    pub drift_ppm: u64,
    /// Bytes of applied entries a core keeps in memory.
    pub cache_bytes: usize,
    /// Length of the first phase, with faults everywhere.
    pub faulty: Micros,
    /// Most time one quorum may need to serve every group again once it is left in peace.
    pub recovery_max: Micros,
    /// Mean time between two faults.
    pub fault_every: Micros,
    /// Kinds of faults of this run.
    pub faults: Vec<Fault>,
    /// Which node permanent damage may hit: one with replicas, and so with a log to damage.
    pub victim: u32,
    /// Messages.
    pub net: NetPlan,
    /// Disks.
    pub disk: DiskPlan,
    /// Clients.
    pub load: LoadPlan,
}

impl Fault {
    /// Whether few runs meet it.
    const fn is_rare(self) -> bool {
        matches!(self, Self::BadCheckpoint | Self::Stray | Self::LostEntry)
    }
}

impl LoadPlan {
    /// How long one tag is in use.
    const TAG_TIME: Micros = 4 * SECOND;

    /// What keys begin with at a time.
    pub fn tag(&self, now: Micros) -> String {
        self.tag_of(now / Self::TAG_TIME % self.tags)
    }

    /// What keys begin with while this tag is in use.
    pub fn tag_of(&self, number: u64) -> String {
        if self.tags == 1 { String::new() } else { format!("{{{number}}}") }
    }
}

impl Plan {
    /// Draws the plan of a seed. `seconds` is the length of the first phase.
    pub fn draw(seed: u64, profile: Profile, seconds: u64) -> Self {
        let mut rng = Rng::new(seed, "plan");
        let profile = match profile {
            Profile::Mix => *rng.pick(&[
                Profile::Mix,
                Profile::Mix,
                Profile::Mix,
                Profile::Crash,
                Profile::Network,
                Profile::Disk,
                Profile::Rot,
                Profile::Amnesia,
            ]),
            chosen => chosen,
        };
        let calm = profile == Profile::Calm;
        let nodes = if !calm && rng.chance(0.15) { 5 } else { 3 };
        let cores = if !calm && rng.chance(0.3) { 2 } else { 1 };
        let mut faults: Vec<Fault> = Fault::ALL
            .iter()
            .copied()
            .filter(|fault| !fault.is_rare())
            .filter(|fault| fault.in_profile(profile) && rng.chance(0.35))
            .collect();
        if !calm && faults.is_empty() {
            faults.push(if rng.chance(0.5) { Fault::Kill } else { Fault::Isolate });
        }
        let wanted: &[Fault] = match profile {
            Profile::Rot => &[Fault::BitRot, Fault::Misdirect, Fault::StaleBlock, Fault::BadSector],
            Profile::Amnesia => &[Fault::Wipe, Fault::OldCopy],
            _ => &[],
        };
        let mut rare = Rng::new(seed, "rare faults");
        let rarely = |fault: &Fault| {
            fault.is_rare() && *fault != Fault::LostEntry && fault.in_profile(profile)
        };
        faults.extend(Fault::ALL.iter().filter(|fault| rarely(fault) && rare.chance(0.2)));
        if faults.contains(&Fault::BadCheckpoint) && !faults.contains(&Fault::DeathAtIo) {
            faults.push(Fault::DeathAtIo);
        }
        // What both damage, nobody might have any more.
        let loses = Fault::LostEntry.in_profile(profile) && !faults.contains(&Fault::OldValue);
        if loses && Rng::new(seed, "lost entries").chance(0.3) {
            faults.push(Fault::LostEntry);
        }
        // Where much else goes on there is less damage.
        if profile == Profile::Rot && rng.chance(0.3) {
            let few = [Fault::Kill, Fault::PowerLoss, Fault::LostEntry];
            faults.retain(|fault| few.contains(fault) || wanted.contains(fault));
        }
        if !wanted.is_empty() && !faults.iter().any(|fault| wanted.contains(fault)) {
            faults.push(*rng.pick(wanted));
        }
        let datagrams = !calm && rng.chance(0.5);
        let rate = |rng: &mut Rng, max: f64| {
            if datagrams && rng.chance(0.6) { rng.unit() * max } else { 0.0 }
        };
        let net = NetPlan {
            delay: (rng.between(30, 100), rng.between(150, 3000)),
            spikes: if !calm && rng.chance(0.5) { rng.unit() * 0.02 } else { 0.0 },
            datagrams,
            loss: rate(&mut rng, 0.2),
            duplicates: rate(&mut rng, 0.2),
            reorder: rate(&mut rng, 0.5),
            corrupt: 0.002 + rng.unit() * 0.02,
        };
        let mut whole = Rng::new(seed, "whole");
        let has_whole = whole.chance(0.3);
        let load = LoadPlan {
            clients: rng.between(4, 12) as u32,
            think: *rng.pick(&[2, 10, 30, 80]) * MS,
            timeout: rng.between(2, 8) * SECOND,
            keys: rng.between(3, 24),
            tags: *rng.pick(&[1, 1, 3]),
            value_bytes_max: *rng.pick(&[20, 300, 6000, 40_000]),
            // Many: logs outgrow what is kept in memory, and are read back.
            long_values: *rng.pick(&[0.1, 0.1, 0.8]),
            whole: if has_whole { *whole.pick(&[0.01, 0.05]) } else { 0.0 },
            flush: if has_whole { *whole.pick(&[0.001, 0.01]) } else { 0.0 },
        };
        // The largest pieces of snapshots must fit into a segment.
        let segments: &[u64] = match load.value_bytes_max {
            0..100 => &[64 << 10, 128 << 10, 1 << 20],
            100..1000 => &[128 << 10, 256 << 10, 1 << 20],
            1000..10_000 => &[512 << 10, 1 << 20],
            _ => &[2 << 20],
        };
        let disk = DiskPlan {
            latency: (rng.between(50, 200), rng.between(300, 4000)),
            hiccups: *rare.pick(&[0.0, 0.0005, 0.005]),
            gather: *rng.pick(&[0, GATHER]),
            segment_bytes: *rng.pick(segments),
            checkpoint_segments: *rng.pick(&[1, 2, 6, 40]),
            gc_segments: *rng.pick(&[1, 2, 6, 40]),
            value_cache_bytes: *rng.pick(&[0, 4 << 10, 64 << 10, 1 << 20]),
            computed_bytes: *rng.pick(&[0, 1 << 10, 64 << 10]),
            checkpoint_every: *rng.pick(&[4 << 10, 32 << 10, 128 << 10, 512 << 10]),
            checkpoint_step: *rng.pick(&[1, 4096, 32 << 10]),
        };
        let (load, disk) = match faults.contains(&Fault::OldValue) {
            true => with_old_values(load, disk, &mut rng),
            false => (load, disk),
        };
        let (load, disk) = match faults.contains(&Fault::BadCheckpoint) {
            true => with_short_logs(load, disk, &mut rare),
            false => (load, disk),
        };
        let groups = rng.between(1, 4) as u32;
        // Another group on the core would need what comes before a snapshot.
        let alone = faults.contains(&Fault::BadCheckpoint) && rare.chance(0.5);
        let groups = if alone { 1 } else { groups };
        let shards = (rng.between(1, 4) as u16) * groups as u16;
        // Of five nodes some may have no replica: no log to damage.
        let map = testing::map_of(nodes, cores, shards, groups);
        let has_log = |place: u32| {
            let mut groups = (0..groups).map(GroupId::new);
            groups.any(|group| map.replicas(group).any(|id| id == NodeId::new(place + 1)))
        };
        let homes: Vec<u32> = (0..nodes).filter(|&place| has_log(place)).collect();
        Self {
            seed,
            nodes,
            cores,
            groups,
            shards,
            tick: TICK,
            drift_ppm: if calm { 0 } else { *rng.pick(&[0, 1000, 200_000]) },
            cache_bytes: *rng.pick(&[256 << 10, 4 << 20]),
            faulty: seconds * SECOND,
            recovery_max: RECOVERY_ELECTIONS * ELECTION_TIMEOUT_MAX,
            fault_every: rng.between(300, 4000) * MS,
            faults,
            victim: *rng.pick(&homes),
            net,
            disk,
            load,
        }
    }
}

impl Plan {
    /// Whether some fault may damage the victim for good.
    pub(crate) fn hits_victim(&self) -> bool {
        let permanent = |fault: &Fault| {
            matches!(
                fault,
                Fault::BitRot
                    | Fault::Misdirect
                    | Fault::StaleBlock
                    | Fault::BadSector
                    | Fault::Wipe
                    | Fault::OldCopy
            )
        };
        self.faults.iter().any(permanent)
    }
}

/// Load and disks with which segments follow each other faster than checkpoints: logs are soon cut
/// at what the older checkpoint holds, and followers that were away need snapshots.
fn with_short_logs(load: LoadPlan, disk: DiskPlan, rng: &mut Rng) -> (LoadPlan, DiskPlan) {
    // A snapshot is longer than a segment.
    let keys = *rng.pick(&[24, 150]);
    let load = LoadPlan { value_bytes_max: 6000, long_values: 0.8, think: 2 * MS, keys, ..load };
    let disk = DiskPlan {
        segment_bytes: 512 << 10,
        checkpoint_segments: 1,
        checkpoint_every: *rng.pick(&[64 << 10, 256 << 10, 512 << 10]),
        checkpoint_step: 1,
        ..disk
    };
    (load, disk)
}

/// Load and disks with which there soon are values in segments that recovery does not read, and
/// that are read from there.
fn with_old_values(load: LoadPlan, disk: DiskPlan, rng: &mut Rng) -> (LoadPlan, DiskPlan) {
    let load = LoadPlan { value_bytes_max: *rng.pick(&[300, 6000]), long_values: 0.8, ..load };
    let segment_bytes = if load.value_bytes_max < 1000 { 128 << 10 } else { 512 << 10 };
    let disk = DiskPlan {
        segment_bytes,
        checkpoint_segments: *rng.pick(&[1, 2]),
        gc_segments: *rng.pick(&[2, 6, 40]),
        value_cache_bytes: *rng.pick(&[0, 0, 4 << 10]),
        computed_bytes: *rng.pick(&[0, 1 << 10]),
        checkpoint_every: *rng.pick(&[4 << 10, 16 << 10]),
        checkpoint_step: *rng.pick(&[4096, 32 << 10]),
        ..disk
    };
    (load, disk)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.name()).collect();
        write!(
            f,
            "{} nodes x {} cores, {} groups, {} shards, {} clients, {} keys, segments of {} KiB, \
             batches {} us apart, {}faults every {:.1} s of: {}",
            self.nodes,
            self.cores,
            self.groups,
            self.shards,
            self.load.clients,
            self.load.keys,
            self.disk.segment_bytes >> 10,
            self.disk.gather,
            if self.net.datagrams { "datagrams, " } else { "" },
            self.fault_every as f64 / SECOND as f64,
            if faults.is_empty() { "none".to_owned() } else { faults.join(" ") },
        )
    }
}
