//! Failpoints that are about what a batch holds, and so need a look at its records.

use coracle_engine::PeerMessage;
use coracle_raft::{BatchSeq, Body, Record};

/// What is under way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// The newest batch with a term or vote.
    hard_state: Option<BatchSeq>,
}

impl Named {
    /// These records are about to be handed to the log.
    pub(crate) fn appending(&mut self, batch: BatchSeq, records: &[Record]) {
        for record in records {
            match record {
                Record::HardState { .. } => {
                    failpoint!("hardstate_before_sync");
                    self.hard_state = Some(batch);
                }
                // Of an arriving snapshot, or before the base of a log that is cut.
                Record::State { .. } => {
                    failpoint!("snap_install_before_swap");
                }
                Record::Purge { .. } => {
                    failpoint!("snap_install_before_log_reset");
                }
                _ => {}
            }
        }
    }

    /// Everything up to this batch is durable, and nobody knows.
    pub(crate) fn durable(&mut self, batch: BatchSeq) {
        if self.hard_state.take_if(|written| *written <= batch).is_some() {
            failpoint!("hardstate_after_sync");
        }
    }
}

/// This message is about to be sent.
pub(crate) fn sending(message: &PeerMessage) {
    let PeerMessage::Raft { message, .. } = message else { return };
    match message.body {
        Body::AppendResponse { .. } => {
            failpoint!("ack_before_send");
        }
        Body::Append { .. } => {
            failpoint!("send_before_persist");
        }
        _ => {}
    }
}
