//! Whoever wants to know what happens in a cluster.

use coracle_raft::Record;

use crate::{Core, CoreAddr, Effects};

/// Is told what happens to the cores and disks of a [`super::Cluster`], as it happens.
pub trait Watch {
    /// A core was made from what is on its disk.
    fn started(&mut self, at: CoreAddr, core: &Core);
    /// A core was stopped; what is not durable is lost.
    fn stopped(&mut self, at: CoreAddr);
    /// A core has taken some inputs and was drained; `effects` are not executed yet.
    fn drained(&mut self, at: CoreAddr, core: &Core, effects: &Effects);
    /// A batch is durable; its core will be told.
    fn durable(&mut self, at: CoreAddr, records: &[Record]);
}
