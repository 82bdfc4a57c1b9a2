//! What comes in on peer connections: a hello first, which is judged, then messages.
//!
//! A hello of a start that this core has not met before is written down durably before anything
//! else is taken from its link. That happens once per start of a peer, on a thread of its own: the
//! hot loop never waits for it, and the link is not read meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use coracle_engine::Input;
use coracle_net::frame::{self, Decoder, FrameBuf, Incoming, RefusalKind};
use coracle_net::peers::{Lineage, Meeting, PeerBook};
use coracle_raft::NodeId;
use coracle_ring::{Chunk, Waker};

use super::hot_loop::HotLoop;
use super::peers::check_hello;
use crate::data_dir::PeersFile;
use crate::fatal::{Exit, Fatal};

/// Pause until the book is written again after a full disk.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// A version of the book, and whether it is durable now.
type Saved = (u64, Result<(), Fatal>);

/// Who was met by one core, and who refuses whom.
pub(super) struct Handshakes {
    lineage: Arc<Lineage>,
    book: PeerBook,
    file: Arc<PeersFile>,
    waker: Waker,
    /// A version of the book is being written; one at a time.
    saving: bool,
    /// The disk was full: it is tried again then.
    save_again_at: Option<Instant>,
    results: (Sender<Saved>, Receiver<Saved>),
    /// Nodes that were refused last because of their disks.
    refused: BTreeSet<NodeId>,
    /// Nodes that refuse us because of our disk.
    refused_by: BTreeSet<NodeId>,
}

impl Handshakes {
    /// For a core of a node with these starts.
    pub(super) fn new(lineage: Arc<Lineage>, file: PeersFile, waker: Waker) -> Result<Self, Fatal> {
        Ok(Self {
            lineage,
            book: file.read()?,
            file: Arc::new(file),
            waker,
            saving: false,
            save_again_at: None,
            results: channel(),
            refused: BTreeSet::new(),
            refused_by: BTreeSet::new(),
        })
    }

    /// The starts of this node.
    pub(super) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Begins to make the book durable if it is not, and that has not begun.
    fn save(&mut self) -> Result<(), Fatal> {
        let waits = self.save_again_at.is_some_and(|at| Instant::now() < at);
        if self.saving || waits || self.book.is_saved() {
            return Ok(());
        }
        self.save_again_at = None;
        let (version, starts) = (self.book.version(), self.book.starts().collect::<Vec<_>>());
        let (file, waker, done) =
            (Arc::clone(&self.file), self.waker.clone(), self.results.0.clone());
        let write = move || {
            // Nobody is left to hear it once the loop has ended.
            let _ = done.send((version, file.write(&starts)));
            waker.wake();
        };
        let thread = std::thread::Builder::new().name("peer-book".to_owned()).spawn(write);
        thread.map_err(|error| {
            Fatal::failed("cannot start a thread to write down a peer", error.to_string(), "")
        })?;
        self.saving = true;
        Ok(())
    }
}

impl HotLoop {
    /// Bytes on a connection that a peer has dialled.
    pub(super) fn received_peer(&mut self, index: usize, data: &[u8]) -> Result<(), Fatal> {
        let Some(link) = self.in_links[index].as_mut() else { return Ok(()) };
        link.decoder.push(data);
        self.read_peer(index)
    }

    fn read_peer(&mut self, index: usize) -> Result<(), Fatal> {
        while let Some(link) = self.in_links[index].as_mut().filter(|link| link.hello.is_none()) {
            match (link.decoder.next(), link.from) {
                (Ok(None), _) => break,
                (Ok(Some(Incoming::Messages(messages))), Some(from)) => {
                    for message in messages {
                        self.core.handle(Input::Peer { from, message });
                    }
                }
                (Ok(Some(Incoming::Hello(hello))), None) => {
                    let (map, cluster) = (self.shared.map(), self.shared.cluster_id());
                    match check_hello(&hello, self.me, map, cluster) {
                        Ok(()) => {
                            link.hello = Some(hello);
                            self.meet(index)?;
                        }
                        Err(text) => self.refuse_peer(index, &text),
                    }
                }
                (Ok(Some(_)), _) => self.refuse_peer(index, "a hello must come first, once"),
                (Err(error), _) => {
                    tracing::warn!(
                        target: "net", core = self.me.core.0, %error, "peer link refused"
                    );
                    match error.hint_reply() {
                        Some(reply) => self.end_with(index, vec![Chunk::Owned(reply.to_vec())]),
                        None => self.refuse_with(index, RefusalKind::Other, &error.to_string()),
                    }
                }
            }
        }
        Ok(())
    }

    /// Judges the hello that waits on a link.
    fn meet(&mut self, index: usize) -> Result<(), Fatal> {
        let Some(link) = self.in_links[index].as_mut() else { return Ok(()) };
        let Some(hello) = &link.hello else { return Ok(()) };
        let node = hello.from.node;
        match self.handshakes.book.meet(node, &hello.lineage) {
            Ok(Meeting::Known) => {
                link.from = link.hello.take().map(|hello| hello.from);
                if self.handshakes.refused.remove(&node) {
                    tracing::info!(target: "net", %node, "the node has its disk back");
                }
                self.ring.resume_receive(link.socket);
            }
            Ok(Meeting::News) => {
                self.ring.pause_receive(link.socket);
                self.handshakes.save()?;
            }
            Err(amnesia) => {
                let core = self.me.core.0;
                if self.handshakes.refused.insert(node) {
                    tracing::error!(target: "net", core, "peer link refused: {amnesia}");
                } else {
                    tracing::debug!(target: "net", core, "peer link refused again: {amnesia}");
                }
                self.refuse_with(index, RefusalKind::Amnesia, &amnesia.to_string());
            }
        }
        Ok(())
    }

    /// Goes on with the links whose peers are written down now.
    pub(super) fn book_saved(&mut self) -> Result<(), Fatal> {
        if self.handshakes.save_again_at.is_some() {
            self.handshakes.save()?;
        }
        if !self.handshakes.saving {
            return Ok(());
        }
        let Ok((version, result)) = self.handshakes.results.1.try_recv() else { return Ok(()) };
        self.handshakes.saving = false;
        if let Err(error) = &result
            && error.is_full_disk
        {
            tracing::warn!(target: "node", %error, "a peer has to wait: the disk is full");
            self.handshakes.save_again_at = Some(Instant::now() + SAVE_AGAIN);
            return Ok(());
        }
        result?;
        self.handshakes.book.saved(version);
        self.handshakes.save()?;
        for index in 0..self.in_links.len() {
            if self.in_links[index].as_ref().is_some_and(|link| link.hello.is_some()) {
                self.meet(index)?;
                self.read_peer(index)?;
            }
        }
        Ok(())
    }

    /// Tells a peer what is wrong and closes once that has been sent.
    fn refuse_peer(&mut self, index: usize, text: &str) {
        tracing::warn!(target: "net", core = self.me.core.0, text, "peer link refused");
        self.refuse_with(index, RefusalKind::Other, text);
    }

    fn refuse_with(&mut self, index: usize, kind: RefusalKind, text: &str) {
        let mut frame = FrameBuf::new();
        frame::encode_refusal(kind, text, &mut frame);
        let chunk = |part: frame::Part| Chunk::Owned(part.bytes().to_vec());
        self.end_with(index, frame.take_parts().map(chunk).collect());
    }

    fn end_with(&mut self, index: usize, chunks: Vec<Chunk>) {
        self.lost_in(index);
        let Some(link) = self.in_links[index].take() else { return };
        self.ring.pause_receive(link.socket);
        self.ring.send(link.socket, chunks);
    }

    /// Bytes on a connection that this core has dialled: only refusals come there.
    pub(super) fn received_refusal(&mut self, index: usize, data: &[u8]) -> Result<(), Fatal> {
        let to = self.out_links.target(index);
        let mut decoder = Decoder::new();
        decoder.push(data);
        let refusal = match decoder.next() {
            Ok(Some(Incoming::Refusal(refusal))) => refusal,
            _ => {
                tracing::warn!(target: "net", %to, "unexpected bytes on an outgoing peer link");
                return Ok(());
            }
        };
        self.out_links.refused(index);
        let text = refusal.text;
        if refusal.kind == RefusalKind::Amnesia && !self.handshakes.refused_by.insert(to.node) {
            tracing::debug!(target: "net", %to, text, "the peer refused our link again");
            return Ok(());
        }
        tracing::error!(target: "net", %to, text, "the peer refused our link");
        let peers = self.shared.map().nodes().len() - 1;
        if 2 * self.handshakes.refused_by.len() > peers {
            return Err(Fatal::new(
                Exit::WrongIdentity,
                "most other nodes refuse this one because of its data directory",
                text,
                "start it with its own, newest data directory, or leave it stopped",
            ));
        }
        Ok(())
    }
}
