//! Links to the other nodes' cores. Each direction has its own connection: the dialer sends
//! frames, the accepter only reads, so simultaneous dialling needs no tie-break.
//!
//! Not here: what messages mean (`engine`) and their bytes (`net::frame`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::Context as _;
use coracle_engine::{ClusterMap, CoreAddr, PeerMessage};
use coracle_net::frame::{self, FrameBuf, Hello, Part};
use coracle_net::peers::Lineage;
use coracle_ring::{Chunk, SocketId};

/// Bytes that may wait for one link; beyond it consensus messages are dropped (they are repeated).
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// Ticks between attempts to dial a node that does not answer: doubled from the first to the last.
const BACKOFF_TICKS: (u32, u32) = (2, 40);

/// Ticks that dialling may take at most, and after which what waits is not kept any longer.
const DIAL_TICKS: u32 = 80;
const DIAL_TICKS_USUAL: u32 = 2;

/// Where a link stands.
enum State {
    /// Not connected; dialled again when the countdown reaches 0, even if nothing is to be sent: a
    /// node can only be told from one that was wiped if its peers have met it before.
    Down { wait_ticks: u32 },
    /// The connection is being made. Given up when the countdown ends: an address from which
    /// nothing comes back would keep the system trying for minutes, also when it is back.
    Dialling { socket: Option<SocketId>, left_ticks: u32 },
    /// Connected; at most one send is with the kernel.
    Up { socket: SocketId, sending: bool },
}

/// The sending side of the connection to one core of another node.
pub(super) struct OutLink {
    to: CoreAddr,
    address: SocketAddr,
    state: State,
    backoff_ticks: u32,
    /// The other end wants none of us.
    refused: bool,
    /// Not encoded yet: of this turn, or since the link went down.
    messages: Vec<PeerMessage>,
    /// Encoded and waiting for the send before it.
    queued: Vec<Chunk>,
    queued_bytes: usize,
    frame: FrameBuf,
}

/// What a link wants the hot loop to do.
pub(super) enum LinkAction {
    /// Dial this address.
    Dial(SocketAddr),
    /// Send these bytes.
    Send(SocketId, Vec<Chunk>),
}

/// All outgoing links of a core.
pub(super) struct OutLinks {
    me: CoreAddr,
    cluster_id: u128,
    links: Vec<OutLink>,
    by_address: BTreeMap<CoreAddr, usize>,
}

impl OutLinks {
    /// One link, not yet dialled, to each core of each other node. Resolves their host names.
    pub(super) fn new(me: CoreAddr, map: &ClusterMap, cluster_id: u128) -> anyhow::Result<Self> {
        let mut links = Vec::new();
        let mut by_address = BTreeMap::new();
        for to in map.cores().filter(|core| core.node != me.node) {
            let node = map.node(to.node).expect("cores() names only nodes of the map");
            let port = node.peer_port + to.core.0;
            let address = (node.host.as_str(), port)
                .to_socket_addrs()
                .with_context(|| format!("cannot resolve the host {:?} of {to}", node.host))?
                .next()
                .with_context(|| format!("the host {:?} of {to} has no address", node.host))?;
            by_address.insert(to, links.len());
            links.push(OutLink {
                to,
                address,
                state: State::Down { wait_ticks: 0 },
                backoff_ticks: BACKOFF_TICKS.0,
                refused: false,
                messages: Vec::new(),
                queued: Vec::new(),
                queued_bytes: 0,
                frame: FrameBuf::default(),
            });
        }
        Ok(Self { me, cluster_id, links, by_address })
    }

    /// Takes a message for a core of another node; it leaves with the next [`Self::flush`].
    pub(super) fn push(&mut self, to: CoreAddr, message: PeerMessage) {
        let Some(&index) = self.by_address.get(&to) else {
            return;
        };
        let link = &mut self.links[index];
        // Sent again by themselves.
        let spare = matches!(
            message,
            PeerMessage::Raft { .. }
                | PeerMessage::ValueWanted(_)
                | PeerMessage::ValueAnswer(_)
                | PeerMessage::EntriesWanted(_)
                | PeerMessage::EntriesAnswer(_)
        );
        if spare && link.queued_bytes > QUEUED_BYTES_MAX {
            return;
        }
        link.messages.push(message);
    }

    /// Encodes what was pushed and says what to do about link `index`, if anything.
    pub(super) fn flush(&mut self, index: usize) -> Option<LinkAction> {
        let link = &mut self.links[index];
        match link.state {
            State::Down { wait_ticks: 0 } => {
                link.state = State::Dialling { socket: None, left_ticks: DIAL_TICKS };
                Some(LinkAction::Dial(link.address))
            }
            State::Up { socket, ref mut sending } => {
                if !link.messages.is_empty() {
                    if let Err(error) = frame::encode(&link.messages, &mut link.frame) {
                        // The others went; this one's sender or its timeout tries again.
                        tracing::error!(target: "net", to = %link.to, %error, "message dropped");
                    }
                    link.messages.clear();
                    link.queued_bytes += link.frame.total_len();
                    link.queued.extend(link.frame.take_parts().map(chunk));
                }
                if *sending || link.queued.is_empty() {
                    return None;
                }
                *sending = true;
                Some(LinkAction::Send(socket, std::mem::take(&mut link.queued)))
            }
            _ => None,
        }
    }

    /// The socket with which link `index` is being dialled.
    pub(super) fn dialling(&mut self, index: usize, dialled: SocketId) {
        if let State::Dialling { socket, .. } = &mut self.links[index].state {
            *socket = Some(dialled);
        }
    }

    /// Links that have been dialled for too long, with the sockets to close; they are lost.
    pub(super) fn overdue(&self) -> Vec<(usize, SocketId)> {
        let overdue = |(index, link): (usize, &OutLink)| match link.state {
            State::Dialling { socket: Some(socket), left_ticks: 0 } => Some((index, socket)),
            _ => None,
        };
        self.links.iter().enumerate().filter_map(overdue).collect()
    }

    /// Number of links; they are named by index.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// The core at the other end.
    pub(super) fn target(&self, index: usize) -> CoreAddr {
        self.links[index].to
    }

    /// A tick has passed: links that are down come nearer to their next attempt, and what they
    /// cannot send soon is dropped. Returns refusals for forwarded commands that never left.
    pub(super) fn tick(&mut self) -> Vec<(CoreAddr, PeerMessage)> {
        let mut refused = Vec::new();
        for link in &mut self.links {
            let stays_down = match &mut link.state {
                State::Down { wait_ticks } => {
                    *wait_ticks = wait_ticks.saturating_sub(1);
                    *wait_ticks > 0
                }
                State::Dialling { left_ticks, .. } => {
                    *left_ticks = left_ticks.saturating_sub(1);
                    *left_ticks + DIAL_TICKS_USUAL < DIAL_TICKS
                }
                State::Up { .. } => false,
            };
            if stays_down {
                refuse(link, &mut refused);
            }
        }
        refused
    }

    /// Dialling has succeeded: the hello goes out first.
    pub(super) fn connected(&mut self, index: usize, socket: SocketId, lineage: Lineage) {
        let link = &mut self.links[index];
        link.state = State::Up { socket, sending: false };
        let hello = Hello {
            version: frame::VERSION,
            cluster_id: self.cluster_id,
            from: self.me,
            to: link.to,
            lineage,
        };
        link.frame.clear();
        frame::encode_hello(&hello, &mut link.frame);
        link.queued_bytes = link.frame.total_len();
        link.queued = link.frame.take_parts().map(chunk).collect();
    }

    /// The socket of a link that is up.
    pub(super) fn socket(&self, index: usize) -> Option<SocketId> {
        match self.links[index].state {
            State::Up { socket, .. } => Some(socket),
            _ => None,
        }
    }

    /// A send has completed.
    pub(super) fn sent(&mut self, index: usize, bytes: usize, chunks: Vec<Chunk>) {
        let link = &mut self.links[index];
        for chunk in chunks {
            if let Chunk::Owned(buffer) = chunk {
                link.frame.recycle(buffer);
            }
        }
        link.queued_bytes = link.queued_bytes.saturating_sub(bytes);
        link.backoff_ticks = BACKOFF_TICKS.0;
        if let State::Up { sending, .. } = &mut link.state {
            *sending = false;
        }
    }

    /// The other end has refused the link and will close it; it is not asked again soon.
    pub(super) fn refused(&mut self, index: usize) {
        self.links[index].refused = true;
    }

    /// The link broke or could not be made. Returns refusals for forwarded commands that never
    /// left; what was sent has an unknown outcome.
    pub(super) fn lost(&mut self, index: usize) -> Vec<(CoreAddr, PeerMessage)> {
        let link = &mut self.links[index];
        let mut refused = Vec::new();
        refuse(link, &mut refused);
        link.queued.clear();
        link.queued_bytes = 0;
        if std::mem::take(&mut link.refused) {
            link.backoff_ticks = BACKOFF_TICKS.1;
        }
        link.state = State::Down { wait_ticks: link.backoff_ticks };
        link.backoff_ticks = (link.backoff_ticks * 2).min(BACKOFF_TICKS.1);
        refused
    }
}

/// Drops a link's unsent messages. A forwarded command among them was certainly not executed, so
/// its asker may try elsewhere.
fn refuse(link: &mut OutLink, refused: &mut Vec<(CoreAddr, PeerMessage)>) {
    for message in link.messages.drain(..) {
        if let PeerMessage::Forward(forward) = message {
            let reply = coracle_engine::not_sent();
            refused.push((link.to, PeerMessage::ForwardReply { id: forward.id, reply }));
        }
    }
}

fn chunk(part: Part) -> Chunk {
    match part {
        Part::Bytes(bytes) => Chunk::Owned(bytes),
        Part::Shared(payload) => {
            Chunk::Shared { start: 0, end: payload.len(), bytes: payload.shared() }
        }
    }
}

/// The receiving side of a connection that another core dialled.
pub(super) struct InLink {
    /// Its socket.
    pub(super) socket: SocketId,
    /// Reassembles frames.
    pub(super) decoder: frame::Decoder,
    /// Who is at the other end, once it has said hello.
    pub(super) from: Option<CoreAddr>,
    /// What it has said, until its start is in our book for good: nothing is taken before that.
    pub(super) hello: Option<Hello>,
    /// Ticks left to say hello.
    pub(super) deadline_ticks: u32,
}

/// Checks a hello against who we are. The error text goes back to the dialer.
pub(super) fn check_hello(
    hello: &Hello,
    me: CoreAddr,
    map: &ClusterMap,
    cluster_id: u128,
) -> Result<(), String> {
    if hello.cluster_id != cluster_id {
        return Err(format!(
            "this is a node of another cluster: ours is {cluster_id:032x}, yours {:032x}",
            hello.cluster_id
        ));
    }
    if hello.to != me {
        return Err(format!("this is {me}, not {}: check the addresses of the nodes", hello.to));
    }
    let known = map.node(hello.from.node).is_some() && hello.from.core.0 < map.core_count();
    if !known || hello.from.node == me.node {
        return Err(format!("{} is not another core of this cluster", hello.from));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use coracle_engine::command::decode;
    use coracle_engine::testing::{addr, map_of};
    use coracle_engine::{Forward, WallMillis};
    use coracle_ring::{Ring, RingConfig};

    use super::*;

    fn forward(id: u64) -> PeerMessage {
        let at = WallMillis(0);
        let command = decode(&[b"GET", b"k"], at).expect("a command");
        PeerMessage::Forward(Forward { id, at, command })
    }

    /// An address that answers nothing: what waits is given back soon, and the attempt ends.
    #[test]
    fn dialling_ends_and_keeps_nothing_meanwhile() {
        let mut nodes = map_of(2, 1, 1, 1).nodes().to_vec();
        nodes.iter_mut().for_each(|node| node.host = "127.0.0.1".to_owned());
        let map = ClusterMap::new(nodes, 1, 1, 1).expect("the same layout");
        let mut ring = Ring::new(RingConfig::default()).expect("a ring");
        let mut links = OutLinks::new(addr(1, 0), &map, 7).expect("addresses");
        links.push(addr(2, 0), forward(1));
        let Some(LinkAction::Dial(address)) = links.flush(0) else { panic!("it is dialled") };
        let socket = ring.connect(0, address);
        links.dialling(0, socket);
        assert!(links.tick().is_empty(), "it may still be answered");
        let mut refused = Vec::new();
        for id in 2..u64::from(DIAL_TICKS) + 1 {
            assert!(links.overdue().is_empty(), "{id}");
            refused.extend(links.tick());
            links.push(addr(2, 0), forward(id));
        }
        let waiting = u64::from(DIAL_TICKS) - refused.len() as u64;
        assert!(waiting < 3, "{waiting} commands wait");
        assert_eq!(links.overdue(), [(0, socket)]);
        assert!(!links.lost(0).is_empty());
        assert!(links.overdue().is_empty() && links.flush(0).is_none(), "not again at once");
    }
}
