//! What the disks of a run do for their cores: operations begin here, and complete as arrivals.

use coracle_engine::{Input, ScanSegment};

use crate::host::Arrival;
use crate::lifecycle::Crash;
use crate::plan::Fault;
use crate::storage::{Job, Storage};
use crate::values::{self, Read};
use crate::world::{Event, World};

/// An operation of a disk, as the process sees it complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoStep {
    Write,
    Read,
    Checkpoint,
    CheckpointEnd,
    Segment,
}

impl IoStep {
    pub(crate) const ALL: &[Self] =
        &[Self::Write, Self::Read, Self::Checkpoint, Self::CheckpointEnd, Self::Segment];

    /// What an arrival at a log completes.
    pub(crate) fn of(arrival: &Arrival, storage: &Storage) -> Option<Self> {
        match arrival {
            Arrival::WriteDone(_) => Some(Self::Write),
            Arrival::LoadDone(_) | Arrival::ReadDone(_) | Arrival::ScanDone => Some(Self::Read),
            Arrival::CheckpointDone if storage.ends_checkpoint() => Some(Self::CheckpointEnd),
            Arrival::CheckpointDone => Some(Self::Checkpoint),
            Arrival::TaskDone => Some(Self::Segment),
            _ => None,
        }
    }
}

/// A death that was planned: after so many more completions of this kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) step: IoStep,
    pub(crate) after: u32,
}

/// A planned death waits for up to so many completions.
const STEPS_MAX: u64 = 12;

impl World {
    /// Plans the death of a node by its disk.
    pub(crate) fn plan_death(&mut self, node: usize) {
        let (step, after) = (*self.rng.pick(IoStep::ALL), self.rng.below(STEPS_MAX) as u32);
        self.nodes[node].death = Some(Death { step, after });
    }

    /// A core has finished a checkpoint, and its node rather dies soon than at other times: with
    /// the write to the log that is under way, which the checkpoint must not need; some writes
    /// later, if it still needs what came by a snapshot, because one checkpoint is not enough or
    /// this one was begun before. Then the checkpoint rather goes bad, too.
    pub(crate) fn harm_checkpointer(&mut self, host: usize) {
        let (core, storage) = (&self.hosts[host].core, &self.hosts[host].storage);
        let (Some(core), Some(storage), true) = (core, storage, self.faulty) else { return };
        let (needs_received, is_writing) = (core.needs_received(), storage.is_writing());
        let has = |fault: Fault| self.plan.faults.contains(&fault);
        let (death, damage) = (has(Fault::DeathAtIo), has(Fault::BadCheckpoint));
        if damage && needs_received && self.rng.chance(0.5) && self.damage_newest_checkpoint(host) {
            self.counters.count_fault(Fault::BadCheckpoint);
        }
        let after = if death && is_writing && self.rng.chance(0.02) {
            0
        } else if death && needs_received && self.rng.chance(0.3) {
            self.rng.below(100) as u32
        } else {
            return;
        };
        let node = self.node_of(host);
        self.nodes[node].death = Some(Death { step: IoStep::Write, after });
    }

    /// Whether the node has died because this completed.
    pub(crate) fn dies_at(&mut self, node: usize, step: IoStep) -> bool {
        let Some(death) = self.nodes[node].death.as_mut().filter(|death| death.step == step) else {
            return false;
        };
        if death.after > 0 {
            death.after -= 1;
            return false;
        }
        if !self.faulty || !self.may_crash(node) {
            return false;
        }
        self.nodes[node].death = None;
        self.counters.count_fault(Fault::DeathAtIo);
        let addr = self.hosts[self.hosts_of(node).start].addr;
        self.trace.node(self.now, addr, "Fault", format!("dies at {step:?}"));
        let power = self.rng.chance(0.5);
        self.crash(node, if power { Crash::Power } else { Crash::Process });
        self.plan_restart(node);
        true
    }

    pub(crate) fn write_done(&mut self, host: usize, job: Job) -> Result<(), String> {
        let amnesiac = self.is_amnesiac(self.hosts[host].addr);
        let state = &mut self.hosts[host];
        let (Some(core), Some(storage)) = (&mut state.core, &mut state.storage) else {
            return Ok(());
        };
        // A node that dies with an open lie is damaged beyond what it can tell.
        let fails = state.write_fails && !storage.is_lie_open();
        state.write_fails &= !fails;
        let done = storage.write_done(job, fails, &mut self.rng);
        let told = storage.take_told();
        if let Ok(Some(durable)) = &done {
            if !amnesiac {
                self.invariants.durable(state.addr, &durable.records);
            }
            core.handle(Input::Persisted(durable.batch));
            for read in storage.retry_reads() {
                self.go_on_reading(host, read);
            }
        }
        if let Some(lie) = told {
            self.lied(host, lie);
        }
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    /// A read of a value has begun, or was answered at once.
    pub(crate) fn go_on_reading(&mut self, host: usize, read: Read) {
        match read {
            Read::Started(job) => self.plan_disk(host, Arrival::ReadDone(job)),
            Read::Waits => {}
            Read::Answer(input) => {
                let came = matches!(input, Input::ValueRead { record: Ok(_), .. });
                let state = &mut self.hosts[host];
                let Some(core) = &mut state.core else { return };
                let refused = core.stats().failed_reads;
                core.handle(input);
                let taken = !came || core.stats().failed_reads == refused;
                let made = state.damaged || state.values_damaged;
                assert!(taken || made, "{} read another value", state.addr);
            }
            Read::Lost(id, why) => {
                let state = &mut self.hosts[host];
                let made = state.damaged || state.values_damaged;
                assert!(made, "{} lost a value that nobody damaged: {why}", state.addr);
                if let Some(core) = &mut state.core {
                    core.handle(values::answer(id, Err(why)));
                }
            }
        }
    }

    pub(crate) fn start_scan(&mut self, host: usize, scan: ScanSegment) {
        let Some(storage) = &mut self.hosts[host].storage else { return };
        let (values, wal) = storage.values();
        match values.start_scan(wal, scan) {
            Some(input) => self.go_on_reading(host, Read::Answer(input)),
            None => self.plan_disk(host, Arrival::ScanDone),
        }
    }

    pub(crate) fn start_checkpoint(&mut self, host: usize) {
        if self.hosts[host].storage.as_mut().is_some_and(Storage::start_checkpoint) {
            self.plan_disk(host, Arrival::CheckpointDone);
        }
    }

    pub(crate) fn start_writes(&mut self, host: usize) {
        while let Some(job) =
            self.hosts[host].storage.as_mut().and_then(|s| s.start_write(self.now))
        {
            self.counters.batches += 1;
            self.plan_disk(host, Arrival::WriteDone(job));
        }
    }

    pub(crate) fn start_task(&mut self, host: usize) {
        if self.hosts[host].storage.as_mut().is_some_and(Storage::start_task) {
            self.plan_disk(host, Arrival::TaskDone);
        }
    }

    /// When a disk operation that starts now completes.
    pub(crate) fn plan_disk(&mut self, host: usize, arrival: Arrival) {
        let (shortest, longest) = self.plan.disk.latency;
        // A slow disk is not equally slow with everything: what was asked for later may be done
        // long before.
        let mut slowness = self.rng.between(1, self.hosts[host].disk_slowness);
        if self.rng.chance(self.plan.disk.hiccups) {
            slowness = slowness.max(10 << self.rng.below(7));
        }
        let latency = self.rng.between(shortest, longest) * slowness;
        let life = self.hosts[host].life;
        self.queue.push(self.now + latency, Event::DiskDone { host, life, arrival });
    }
}
