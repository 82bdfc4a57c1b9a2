//! What a run has met, and what was wrong with it.

use std::collections::BTreeMap;
use std::fmt;

use coracle_engine::CoreStats;

use crate::plan::{Fault, SECOND};
use crate::queue::Micros;

/// Why a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which rule was broken.
    pub kind: &'static str,
    /// How.
    pub text: String,
    /// When.
    pub at: Micros,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.6} s: {}", self.kind, self.at as f64 / SECOND as f64, self.text)
    }
}

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        /// What happened in one run or in many.
        #[derive(Clone, Debug, Default)]
        pub struct Counters {
            $( $(#[$doc])* pub $name: u64, )*
            /// Faults by kind.
            pub faults: BTreeMap<Fault, u64>,
        }

        impl Counters {
            /// Adds those of another run.
            pub fn merge(&mut self, other: &Self) {
                $( self.$name += other.$name; )*
                for (fault, count) in &other.faults {
                    *self.faults.entry(*fault).or_default() += count;
                }
            }

            /// Names and numbers, in a fixed order.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$( (stringify!($name), self.$name), )*]
            }
        }
    };
}

counters! {
    /// Events of the run's queue.
    events,
    /// Commands and pipelines that clients sent.
    calls,
    /// Writes answered.
    writes,
    /// Reads answered.
    reads,
    /// Commands that were certainly not executed.
    refused,
    /// Commands whose outcome stayed unknown to their client.
    unknown,
    /// Clients that gave up waiting.
    timeouts,
    /// Entries seen committed, over all replicas.
    commits,
    /// Elections won.
    elections,
    /// Processes started.
    starts,
    /// Processes ended from outside.
    crashes,
    /// Power losses of machines on which no process ran.
    idle_power_losses,
    /// Processes that ended themselves because of their disk.
    exits,
    /// Batches written.
    batches,
    /// Times entries were read back.
    loads,
    /// Values that were read from a disk.
    value_reads,
    /// Parts of old segments that were read.
    scans,
    /// Values found damaged, for which other replicas were asked.
    values_damaged,
    /// Damaged values that stood in the log again.
    values_repaired,
    /// Times that all other replicas were asked for a value in vain.
    repairs_failed,
    /// Shard snapshots made durable.
    checkpoints,
    /// Snapshots taken over from leaders.
    snapshots,
    /// Commands sent on to other cores.
    forwards,
    /// Writes whose place in the log another leader took.
    lost_proposals,
    /// Replicas that stayed out because their log is damaged.
    groups_damaged,
    /// Entries that recovery knew to have stood in damaged places.
    entries_lost,
    /// Damaged batches of which the next one told what stood there.
    batches_restored,
    /// Entries that came from other replicas because the own disk does not give them.
    entries_fetched,
    /// Nodes that ended for good because the others refused their disk.
    refusals,
    /// Times a disk became fuller or emptier.
    space_changes,
    /// Commands refused because disks were full.
    refused_disk,
    /// Messages of leaders dropped because a disk was full.
    dropped_disk,
    /// Frames sent between nodes.
    frames,
    /// Frames lost on the way.
    frames_lost,
}

impl Counters {
    /// Takes over what a core has counted.
    pub(crate) fn add(&mut self, stats: &CoreStats) {
        self.commits += stats.committed;
        self.elections += stats.elections_won;
        self.checkpoints += stats.checkpoints;
        self.snapshots += stats.snapshots_installed;
        self.forwards += stats.forwarded;
        self.refused_disk += stats.refused_disk;
        self.dropped_disk += stats.dropped_disk;
        self.lost_proposals += stats.lost_proposals;
        self.values_damaged += stats.values_damaged;
        self.values_repaired += stats.values_repaired;
        self.entries_fetched += stats.entries_fetched;
        self.repairs_failed += stats.repairs_failed;
    }

    pub(crate) const fn count_answer(&mut self, write: bool) {
        if write {
            self.writes += 1;
        } else {
            self.reads += 1;
        }
    }

    pub(crate) fn count_fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }
}
