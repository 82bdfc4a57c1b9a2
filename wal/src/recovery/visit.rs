//! Who takes what recovery finds.

use coracle_raft::{GroupId, LogPosition, Place, Record};

/// A command or a value whose content passed its checks and was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief {
    /// Where it stands.
    pub place: Place,
    /// Whose it is.
    pub group: GroupId,
    /// The entry that the command is; `None`: it is a value.
    pub position: Option<LogPosition>,
    /// Bytes of its payload.
    pub payload_len: usize,
    /// Bytes of the log from its start to the end: how recent it is.
    pub bytes_behind: u64,
}

/// Takes what [`recover_into`](super::recover_into) finds, in the order of
/// [`recover`](super::recover).
pub trait Visitor {
    /// A record of the log proper.
    fn record(&mut self, place: Place, record: Record);

    /// A command or value without its content. Returns whether that is enough; if not, it comes
    /// once more as a record, which mostly costs a second read of its segment.
    fn brief(&mut self, _: &Brief) -> bool {
        false
    }

    /// An entry of the log proper whose content is lost. It replaces whatever the group's log held
    /// at this index and after it, as any entry does. `place` is close to where it stood.
    fn lost(&mut self, place: Place, group: GroupId, position: LogPosition);
}

impl<F: FnMut(Place, Record)> Visitor for F {
    fn record(&mut self, place: Place, record: Record) {
        self(place, record);
    }

    fn lost(&mut self, _: Place, _: GroupId, _: LogPosition) {}
}
