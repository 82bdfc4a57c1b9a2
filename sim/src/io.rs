//! What the disks of a run do for their cores: operations begin here, and complete as arrivals.

use coracle_engine::{Input, ScanSegment};

use crate::host::Arrival;
use crate::storage::{Job, Storage};
use crate::values::Read;
use crate::world::{Event, World};

impl World {
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
                if let Some(core) = &mut self.hosts[host].core {
                    core.handle(input);
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
        let latency = self.rng.between(shortest, longest) * self.hosts[host].disk_slowness;
        let life = self.hosts[host].life;
        self.queue.push(self.now + latency, Event::DiskDone { host, life, arrival });
    }
}
