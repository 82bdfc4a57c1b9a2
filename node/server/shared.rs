//! What the cores of one node share: configuration, the stop flag, and numbers for `INFO`. Nothing
//! here is on the data path.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_engine::{ClusterMap, Core, CoreId, CoreStats, WallMillis};
use coracle_raft::NodeId;

use tracing_appender::non_blocking::ErrorCounter;

use super::backoff::Backoff;
use super::clients::ClientUse;
use super::info::{NodeStats, ProcessUse};
use super::stop::Stop;
use super::storage::DiskUse;
use super::surveys::Surveys;
use super::wall;
use crate::config::Config;

/// One core's published numbers.
struct Published {
    stats: Mutex<(CoreStats, ClientUse, DiskUse)>,
    clients: AtomicUsize,
}

/// Shared by the cores of a node.
pub(super) struct Shared {
    config: Config,
    map: ClusterMap,
    cluster_id: u128,
    cores: Vec<Published>,
    started: WallMillis,
    log_drops: ErrorCounter,
    client_ids: AtomicU64,
    surveys: Surveys,
    backoff: Backoff,
    stop: Stop,
}

impl Shared {
    pub(super) fn new(config: Config, cluster_id: u128, log_drops: ErrorCounter) -> Self {
        let map = config.map.clone();
        let cores = (0..map.core_count())
            .map(|_| Published { stats: Mutex::default(), clients: AtomicUsize::new(0) });
        Self {
            cores: cores.collect(),
            config,
            stop: Stop::new(map.core_count()),
            backoff: Backoff::default(),
            surveys: Surveys::new(map.core_count()),
            map,
            cluster_id,
            started: wall(),
            log_drops,
            client_ids: AtomicU64::new(1),
        }
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    pub(super) const fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// This node.
    pub(super) const fn node(&self) -> NodeId {
        self.config.id
    }

    pub(super) const fn cluster_id(&self) -> u128 {
        self.cluster_id
    }

    /// A number no other client of this process has.
    pub(super) fn next_client_id(&self) -> u64 {
        self.client_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether one more client fits, given this core's exact count and the others' last ones.
    pub(super) fn admits_client(&self, core: CoreId, open_here: usize) -> bool {
        self.cores[usize::from(core.0)].clients.store(open_here + 1, Ordering::Relaxed);
        self.clients() <= self.config.maxclients as usize
    }

    /// Clients of all cores.
    pub(super) fn clients(&self) -> usize {
        self.cores.iter().map(|core| core.clients.load(Ordering::Relaxed)).sum()
    }

    /// Publishes a core's numbers; called once per tick.
    pub(super) fn publish(
        &self,
        id: CoreId,
        core: &Core,
        open: usize,
        clients: ClientUse,
        disk: DiskUse,
    ) {
        let published = &self.cores[usize::from(id.0)];
        published.clients.store(open, Ordering::Relaxed);
        *lock(&published.stats) = (core.stats(), clients, disk);
    }

    /// Numbers of the node, as its cores published them last.
    pub(super) fn stats(&self) -> NodeStats {
        let published = self.cores.iter().map(|core| *lock(&core.stats));
        let (cores, client_uses, disks) = published.collect();
        NodeStats {
            cores,
            client_uses,
            disks,
            clients: self.clients() as u64,
            dropped_log_lines: self.log_drops.dropped_lines() as u64,
            process: ProcessUse::now(),
        }
    }

    /// When the process started.
    pub(super) const fn started(&self) -> WallMillis {
        self.started
    }

    /// Questions to all cores about their clients.
    pub(super) const fn surveys(&self) -> &Surveys {
        &self.surveys
    }

    /// Failed attempts to give the password.
    pub(super) const fn backoff(&self) -> &Backoff {
        &self.backoff
    }

    /// How far the node is on its way to stop.
    pub(super) const fn stop(&self) -> &Stop {
        &self.stop
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
