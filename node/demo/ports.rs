//! Free loopback ports for a cluster.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use crate::fatal::Fatal;

/// Ports below the range from which Linux takes the local ports of outgoing connections, so that
/// no client of somebody else takes one meanwhile.
const FIRST: u16 = 18_000;
const END: u16 = 32_000;

/// The ports of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// Plain client port.
    pub(super) plain: u16,
    /// Client port of core 0.
    pub(super) core: u16,
    /// Peer port of core 0.
    pub(super) peer: u16,
}

/// How long another demo may take to start.
const CLAIM_MAX: Duration = Duration::from_secs(60);
/// Pause before the claim is tried again.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// The right to choose ports, which one demo at a time has from choosing them until its nodes
/// listen there. The kernel takes it back from a process that ends.
#[derive(Debug)]
pub(super) struct Claim {
    _name: UnixListener,
}

impl Claim {
    /// Waits for the claim. A name in the abstract namespace is shared by exactly the processes
    /// that share ports.
    pub(super) fn wait() -> Result<Self, Fatal> {
        let failed = |error: io::Error| {
            Fatal::failed("cannot reserve ports for the nodes", error.to_string(), "")
        };
        let name = SocketAddr::from_abstract_name("coracle-demo-ports").map_err(failed)?;
        let deadline = Instant::now() + CLAIM_MAX;
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(name) => return Ok(Self { _name: name }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(failed(error));
                }
                Err(error) if Instant::now() >= deadline => return Err(failed(error)),
                Err(_) => std::thread::sleep(CLAIM_PAUSE),
            }
        }
    }
}

/// A block of free ports for each of `nodes` nodes with `cores` cores. The search starts at a
/// place that differs from process to process. The claim must be held until the ports are in use.
pub(super) fn choose(_claim: &Claim, nodes: u32, cores: u16) -> Result<Vec<Ports>, Fatal> {
    let width = 1 + 2 * cores;
    let blocks = (END - FIRST) / width;
    let start = std::process::id() % u32::from(blocks);
    // Blocks stay taken until all are found.
    let mut taken = Vec::new();
    let mut chosen = Vec::new();
    for step in 0..u32::from(blocks) {
        if chosen.len() == nodes as usize {
            break;
        }
        let block = ((start + step) % u32::from(blocks)) as u16;
        let plain = FIRST + block * width;
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        if let Ok(listeners) = (plain..plain + width).map(bind).collect::<Result<Vec<_>, _>>() {
            taken.extend(listeners);
            chosen.push(Ports { plain, core: plain + 1, peer: plain + 1 + cores });
        }
    }
    if chosen.len() < nodes as usize {
        return Err(Fatal::failed(
            format!("there are not enough free ports for {nodes} nodes"),
            format!("each needs {width} ports in a row between {FIRST} and {END}"),
            "use fewer nodes or cores",
        ));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks do not overlap and are free; a used port is skipped.
    #[test]
    fn blocks_are_free_and_apart() {
        let claim = Claim::wait().expect("free soon");
        let first = choose(&claim, 3, 2).expect("free ports");
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first[0].core)).expect("was free");
        let second = choose(&claim, 3, 2).expect("free ports");
        assert!(!second.contains(&first[0]), "{second:?}");
        for pair in second.windows(2) {
            assert!(pair[0].plain.abs_diff(pair[1].plain) >= 5, "{pair:?}");
            assert_eq!((pair[0].core, pair[0].peer), (pair[0].plain + 1, pair[0].plain + 3));
        }
    }
}
