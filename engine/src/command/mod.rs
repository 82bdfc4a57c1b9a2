//! Commands: one static table for dispatch, arity, key positions and documentation; the decoder
//! from client arguments; the encoding that goes through the log.

pub(crate) mod decimal;
mod decode;
pub mod docs;
pub(crate) mod encoding;
mod keyspace;
mod table;

use coracle_raft::Payload;

pub use decode::{
    COMMAND_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, decode, decode_spec, parse_integer,
    unknown_command, wrong_arity,
};
pub(crate) use decode::{NOT_A_FLOAT, NOT_AN_INTEGER, TOO_LONG};
pub use table::{CommandId, SPECS, Scope, Spec, lookup};

use crate::SlotId;

/// Whether a command changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Goes through ReadIndex.
    Read,
    /// Goes through the log.
    Write,
}

/// A command on keys of one shard, validated and encoded. The same bytes are forwarded between
/// nodes, stand in the log, and are executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Slot of its first key.
    pub slot: SlotId,
    /// Whether it changes anything.
    pub access: Access,
    /// Operation and arguments in this crate's encoding.
    pub payload: Payload,
}

impl Command {
    /// Whether it concerns all keys of all groups, wherever they are, instead of some.
    pub fn spans_groups(&self) -> bool {
        encoding::op_of(self.payload.bytes()).is_some_and(encoding::Op::spans_group)
    }
}
