//! The frames of the handshake.

use coracle_engine::{CoreAddr, CoreId};
use coracle_raft::NodeId;

use super::encode::to_rkyv;
use super::fixed::{Kind, push_headers};
use super::wire::{ArchivedHelloV1, BlobV1, HelloV1, RefusalV1, refusal_kind};
use super::{FrameBuf, FrameError, REFUSAL_BYTES_MAX};
use crate::peers::{Lineage, STARTS_MAX};

/// The first frame on a link, from both sides: who I am and whom I mean to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Newest frame version the sender reads; the other side must not send a newer one.
    pub version: u16,
    /// The cluster the sender belongs to.
    pub cluster_id: u128,
    /// The sender.
    pub from: CoreAddr,
    /// The core the sender believes to be at this address.
    pub to: CoreAddr,
    /// What the sender's disk remembers of its starts, this one last.
    pub lineage: Lineage,
}

/// Why a link is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the one who is refused can do about it.
    pub kind: RefusalKind,
    /// For people.
    pub text: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// Something else: it may help to try again later.
    Other,
    /// The refused node's disk is not the one it had ([`crate::peers::Amnesia`]): it is refused for
    /// good.
    Amnesia,
}

/// Appends a frame with `hello`.
pub fn encode_hello(hello: &Hello, frame: &mut FrameBuf) {
    let wire = HelloV1 {
        cluster_id: [hello.cluster_id as u64, (hello.cluster_id >> 64) as u64],
        disk: hello.lineage.disk(),
        starts: hello.lineage.count(),
        nonces: hello.lineage.nonces().to_vec(),
        from_node: hello.from.node.get(),
        from_core: u32::from(hello.from.core.0),
        to_node: hello.to.node.get(),
        to_core: u32::from(hello.to.core.0),
        version: u32::from(hello.version),
        reserved: 0,
    };
    let header = to_rkyv(&wire, rkyv::util::AlignedVec::new());
    frame.append(|out| push_headers(Kind::Hello, &header, 0, out));
}

/// Appends a frame that says why the link is about to be closed. A text longer than
/// [`REFUSAL_BYTES_MAX`] is cut.
pub fn encode_refusal(kind: RefusalKind, text: &str, frame: &mut FrameBuf) {
    let text = text.get(..text.floor_char_boundary(REFUSAL_BYTES_MAX)).unwrap_or_default();
    let wire = RefusalV1 {
        kind: match kind {
            RefusalKind::Other => refusal_kind::OTHER,
            RefusalKind::Amnesia => refusal_kind::AMNESIA,
        },
        text: BlobV1 { len_bytes: text.len() as u32, checksum: crc32c::crc32c(text.as_bytes()) },
    };
    let header = to_rkyv(&wire, rkyv::util::AlignedVec::new());
    frame.append(|out| {
        push_headers(Kind::Refusal, &header, text.len(), out);
        out.extend_from_slice(text.as_bytes());
    });
}

/// Reads a `hello` whose header has passed rkyv's checks.
pub(super) fn read_hello(wire: &ArchivedHelloV1) -> Result<Hello, FrameError> {
    if wire.reserved != 0 {
        return Err(FrameError::BadHeader("reserved field of a hello is not zero"));
    }
    let version = u16::try_from(wire.version.to_native())
        .map_err(|_| FrameError::BadHeader("version of a hello above 65535"))?;
    let (disk, starts) = (wire.disk.to_native(), wire.starts.to_native());
    if wire.nonces.len() > STARTS_MAX {
        return Err(FrameError::BadHeader("too many starts in a hello"));
    }
    let nonces = wire.nonces.iter().map(|nonce| nonce.to_native()).collect();
    let lineage = Lineage::from_parts(disk, starts, nonces)
        .ok_or(FrameError::BadHeader("starts in a hello that contradict each other"))?;
    let [low, high] = wire.cluster_id;
    Ok(Hello {
        version,
        cluster_id: u128::from(high.to_native()) << 64 | u128::from(low.to_native()),
        from: core_addr(wire.from_node.to_native(), wire.from_core.to_native())?,
        to: core_addr(wire.to_node.to_native(), wire.to_core.to_native())?,
        lineage,
    })
}

/// The kind of a refusal; one that this build does not know is like any other.
pub(super) const fn read_refusal_kind(kind: u32) -> RefusalKind {
    match kind {
        refusal_kind::AMNESIA => RefusalKind::Amnesia,
        _ => RefusalKind::Other,
    }
}

fn core_addr(node: u32, core: u32) -> Result<CoreAddr, FrameError> {
    let core = u16::try_from(core).map_err(|_| FrameError::BadHeader("core above 65535"))?;
    Ok(CoreAddr { node: NodeId::new(node), core: CoreId(core) })
}
