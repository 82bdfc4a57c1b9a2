//! What happens in a cluster when its time has come.

use coracle_raft::Record;

use super::{Cluster, Event};
use crate::{CoreAddr, Input, ReadValue};

impl Cluster {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Message { from, to, link, message } => {
                if self.link(from, to) == link {
                    self.give(to, Input::Peer { from, message });
                }
            }
            Event::Written { addr, life, batch, records } => {
                let machine = self.machines.get_mut(&addr).expect("an address of this cluster");
                if machine.life == life && machine.core.is_some() {
                    machine.stalled.push_back((batch, records));
                    self.complete_writes(addr);
                }
            }
            Event::Loaded { addr, life, load } => {
                let machine = &self.machines[&addr];
                if machine.life == life {
                    let (group, first) = (load.group, load.first);
                    let entries = machine.read(load);
                    self.give(addr, Input::EntriesLoaded { group, first, entries });
                }
            }
            Event::Read { addr, life, read } => {
                if self.machines[&addr].life == life {
                    self.value_read(addr, life, read);
                }
            }
            Event::Scanned { addr, life, scan } => {
                let machine = &self.machines[&addr];
                if machine.life == life {
                    let (records, next) = machine.scan(scan);
                    self.give(addr, Input::Scanned { scan, records, next });
                }
            }
            Event::Checkpoint { addr, life, work } => {
                let machine = self.machines.get_mut(&addr).expect("an address of this cluster");
                if machine.life == life
                    && machine.core.is_some()
                    && let Some(number) = machine.checkpoint(work)
                {
                    self.give(addr, Input::Checkpointed { number, result: Ok(()) });
                }
            }
        }
    }

    /// A value has been read, or is not on the disk yet.
    fn value_read(&mut self, at: CoreAddr, life: u64, read: ReadValue) {
        match self.machines[&at].value(read.place) {
            Some(record) => self.give(at, Input::ValueRead { id: read.id, record }),
            None => {
                let event = Event::Read { addr: at, life, read };
                self.schedule((at, at), 1..=1, event);
            }
        }
    }

    pub(super) fn complete_writes(&mut self, at: CoreAddr) {
        loop {
            let machine = self.machines.get_mut(&at).expect("an address of this cluster");
            if machine.frozen_disk {
                return;
            }
            let Some((batch, records)) = machine.stalled.pop_front() else { return };
            machine.writing -= 1;
            if let Some(watch) = &mut self.watch {
                let records: Vec<Record> = records.iter().map(|w| w.record.clone()).collect();
                watch.durable(at, &records);
            }
            if self.options.keep_disk {
                machine.write(records);
            }
            self.give(at, Input::Persisted(batch));
        }
    }
}
