//! One client connection: bytes in, commands in order, replies in the same order, bytes out.
//!
//! Not here: what commands do (`engine`, `node_commands`) and the socket itself (`ring`).

use std::collections::VecDeque;
use std::ops::Range;

use coracle_engine::command::Command;
use coracle_engine::{Core, Order, Reply, Token, Unanswered, WallMillis};
use coracle_net::resp::{self, Limits, Parsed, Protocol, ProtocolError, RequestParser};
use coracle_ring::SocketId;

use super::session::Session;
use super::watch::{Overdue, Seen, Watch};

/// Commands of one connection that may be unanswered; beyond it nothing more is read from it.
const PENDING_MAX: usize = 1024;
/// Reading goes on once this few are left.
const PENDING_RESUME: usize = PENDING_MAX / 2;
/// Reply bytes that may wait, those that commands are expected to give among them; beyond it
/// nothing more is read from the connection, which is closed if the client does not read for long.
pub(super) const OUTPUT_SOFT_MAX: usize = 8 << 20;
/// Reply bytes that may wait; beyond it the connection is closed.
const OUTPUT_HARD_MAX: usize = 32 << 20;
/// Buffers larger than this are given back to the allocator once they are empty.
pub(super) const BUFFER_KEEP: usize = 256 << 10;
/// Input of a command that is not whole yet; beyond it the connection waits when memory is short.
const LONG_INPUT: usize = 64 << 10;
/// Bits of a token that number the commands of a connection slot; the rest name the slot.
const SEQUENCE_BITS: u32 = 40;

/// The slot of the connection table that a token belongs to.
pub(super) const fn slot_of(token: Token) -> usize {
    (token.0 >> SEQUENCE_BITS) as usize
}

/// A command that was taken and not answered yet.
struct Pending {
    reply: Option<Reply>,
    protocol: Protocol,
    /// `None` for commands that the node answers itself.
    open: Option<Unanswered>,
    /// About how many the reply takes, or will.
    bytes: usize,
}

/// A client connection.
pub(super) struct Connection {
    /// Its socket.
    pub(super) socket: SocketId,
    /// Protocol version, authentication, names.
    pub(super) session: Session,
    /// Bytes received and not yet taken, when a command has not arrived whole.
    pub(super) input: Vec<u8>,
    /// Bytes that the command at the start of `input` lacks, at least.
    pub(super) lacking: usize,
    /// Whether no further commands are taken for now.
    pub(super) paused: bool,
    /// Whether it waits for memory before more of a long command is received.
    pub(super) starved: bool,
    /// What it was last known to hold, see [`Self::bytes`].
    pub(super) counted: usize,
    /// Whether the ring receives for this socket.
    pub(super) receiving: bool,
    /// Whether it is on this turn's list of connections to look at.
    pub(super) touched: bool,
    /// The client closed its sending side, or is to be closed once everything is answered.
    pub(super) closing: bool,
    /// A send is with the kernel.
    pub(super) sending: bool,
    /// How long the client takes for what.
    pub(super) watch: Watch,
    parser: RequestParser,
    pending: VecDeque<Pending>,
    /// Bytes of the replies of `pending`.
    awaited_bytes: usize,
    /// Sequence number of the first pending command.
    first: u64,
    slot: u64,
    /// All cores are asked for the reply to the last command; nothing is taken after it.
    surveying: bool,
    /// A command that must not overtake those before it; nothing is taken after it.
    held: Option<Command>,
    output: Vec<u8>,
    /// Bytes that are with the kernel.
    sent_bytes: usize,
    spare: Vec<u8>,
}

impl Connection {
    /// A connection in table slot `slot`. `first` continues the numbers of the slot's earlier
    /// connections, so that a late reply to one of those is told apart.
    pub(super) fn new(socket: SocketId, session: Session, slot: usize, first: u64) -> Self {
        Self {
            socket,
            input: Vec::new(),
            lacking: 0,
            paused: false,
            starved: false,
            counted: 0,
            receiving: true,
            touched: false,
            closing: false,
            sending: false,
            watch: Watch::default(),
            parser: RequestParser::new(limits(&session)),
            session,
            pending: VecDeque::new(),
            awaited_bytes: 0,
            first,
            slot: slot as u64,
            surveying: false,
            held: None,
            output: Vec::new(),
            sent_bytes: 0,
            spare: Vec::new(),
        }
    }

    /// The number the next connection of this slot starts with.
    pub(super) fn next_sequence(&self) -> u64 {
        self.first + self.pending.len() as u64
    }

    /// Tokens whose replies are still awaited.
    pub(super) fn awaited(&self) -> impl Iterator<Item = Token> {
        let open = self.pending.iter().enumerate().filter(|(_, pending)| pending.reply.is_none());
        open.map(|(offset, _)| self.token(self.first + offset as u64))
    }

    /// Finds the next command at the start of `input`.
    pub(super) fn parse(
        &mut self,
        input: &[u8],
        args: &mut Vec<Range<usize>>,
    ) -> Result<Parsed, ProtocolError> {
        self.parser.parse(input, args)
    }

    /// The limits that hold for what the client sends from now on.
    pub(super) fn update_limits(&mut self) {
        self.parser.set_limits(limits(&self.session));
    }

    /// Takes a command that is answered later, by about so many bytes; the token names it.
    pub(super) fn expect(&mut self, command: Unanswered, bytes: usize) -> Token {
        let token = self.token(self.next_sequence());
        self.push(None, Some(command), bytes);
        token
    }

    fn push(&mut self, reply: Option<Reply>, open: Option<Unanswered>, bytes: usize) {
        let protocol = self.session.protocol;
        self.awaited_bytes += bytes;
        self.pending.push_back(Pending { reply, protocol, open, bytes });
    }

    /// Takes a command whose reply is made from answers of all cores.
    pub(super) fn expect_survey(&mut self) -> Token {
        let token = self.token(self.next_sequence());
        self.push(None, None, 0);
        self.surveying = true;
        token
    }

    /// Whether a survey is under way for it.
    pub(super) const fn is_surveying(&self) -> bool {
        self.surveying
    }

    /// Its line of `CLIENT LIST`.
    pub(super) fn line(&self, now: WallMillis) -> String {
        self.session.line(now, self.input.len(), self.output.len())
    }

    /// When a command may be handed to the engine.
    pub(super) fn order(&self, command: &Command, core: &Core) -> Order {
        let open = self.pending.iter().filter(|pending| pending.reply.is_none());
        core.order(command, open.filter_map(|pending| pending.open.as_ref()))
    }

    /// Keeps a command that has to wait.
    pub(super) fn hold(&mut self, command: Command) {
        assert!(self.held.is_none(), "nothing is taken after a command that waits");
        self.held = Some(command);
    }

    /// The command that waited.
    pub(super) fn take_held(&mut self) -> Option<Command> {
        self.held.take()
    }

    /// Answers a command that needed nobody else.
    pub(super) fn answer(&mut self, reply: Reply) {
        if self.pending.is_empty() {
            self.first += 1;
            resp::encode_reply(&reply, self.session.protocol, &mut self.output);
        } else {
            let bytes = reply.bytes();
            self.push(Some(reply), None, bytes);
        }
    }

    /// Fills in the reply of an earlier command. Unknown tokens are those of the slot's earlier
    /// connections: their clients are gone.
    pub(super) fn reply(&mut self, token: Token, reply: Reply) {
        let sequence = token.0 & ((1 << SEQUENCE_BITS) - 1);
        let Some(offset) = sequence.checked_sub(self.first) else { return };
        let Ok(offset) = usize::try_from(offset) else { return };
        let pending_count = self.pending.len();
        let Some(pending) = self.pending.get_mut(offset) else { return };
        assert!(pending.reply.is_none(), "token {} was answered twice", token.0);
        // The command of a survey is always the last one.
        self.surveying &= offset + 1 < pending_count;
        let bytes = reply.bytes();
        self.awaited_bytes = self.awaited_bytes - pending.bytes + bytes;
        (pending.reply, pending.bytes) = (Some(reply), bytes);
        while let Some(Pending { reply: Some(reply), protocol, bytes, .. }) = self.pending.front() {
            self.awaited_bytes -= bytes;
            // One that is about to be closed for its unread replies gets no more of them.
            if self.output.len() <= OUTPUT_HARD_MAX {
                resp::encode_reply(reply, *protocol, &mut self.output);
            }
            self.pending.pop_front();
            self.first += 1;
        }
    }

    /// Whether no further command may be taken now. While memory is short, one at a time is.
    pub(super) fn is_full(&self, short: bool) -> bool {
        let replies = self.reply_bytes();
        self.held.is_some()
            || self.surveying
            || self.pending.len() >= PENDING_MAX
            || replies >= OUTPUT_SOFT_MAX
            || (short && (!self.pending.is_empty() || replies > 0))
    }

    /// Whether a full connection has drained enough to go on.
    pub(super) fn may_resume(&self, short: bool) -> bool {
        self.pending.len() <= PENDING_RESUME
            && self.reply_bytes() < OUTPUT_SOFT_MAX / 2
            && !self.is_full(short)
    }

    /// Bytes of replies that the client has not got, or will be given for what it has asked.
    fn reply_bytes(&self) -> usize {
        self.output.len() + self.sent_bytes + self.awaited_bytes
    }

    /// Bytes of memory that it holds, or will soon.
    pub(super) fn bytes(&self) -> usize {
        self.input.len() + self.spare.capacity() + self.reply_bytes()
    }

    /// Whether it has sent much of a command, and not all.
    pub(super) const fn is_long(&self) -> bool {
        !self.paused && !self.closing && self.input.len() > LONG_INPUT
    }

    /// Whether the client reads so slowly that it must be closed.
    pub(super) fn is_overflowing(&self) -> bool {
        self.output.len() > OUTPUT_HARD_MAX
    }

    /// A second has passed; why the connection is to be closed, if it is.
    pub(super) fn look(&mut self, idle_max_seconds: u32) -> Option<Overdue> {
        let seen = Seen {
            authenticated: self.session.authenticated,
            busy: !self.pending.is_empty(),
            half: !self.input.is_empty() && !self.paused && !self.starved,
            swollen: self.reply_bytes() >= OUTPUT_SOFT_MAX,
        };
        self.watch.look(seen, idle_max_seconds)
    }

    /// Whether everything taken is answered and handed to the kernel.
    pub(super) fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.output.is_empty() && !self.sending
    }

    /// Bytes to send now, if any and if no send is under way.
    pub(super) fn take_output(&mut self) -> Option<Vec<u8>> {
        if self.sending || self.output.is_empty() {
            return None;
        }
        self.sending = true;
        self.sent_bytes = self.output.len();
        Some(std::mem::replace(&mut self.output, std::mem::take(&mut self.spare)))
    }

    /// A send has completed; its buffer is used again.
    pub(super) fn sent(&mut self, mut buffer: Vec<u8>) {
        self.sending = false;
        self.sent_bytes = 0;
        if buffer.capacity() <= BUFFER_KEEP {
            buffer.clear();
            self.spare = buffer;
        }
    }

    fn token(&self, sequence: u64) -> Token {
        Token((self.slot << SEQUENCE_BITS) | (sequence & ((1 << SEQUENCE_BITS) - 1)))
    }
}

const fn limits(session: &Session) -> Limits {
    if session.authenticated { Limits::DEFAULT } else { Limits::BEFORE_AUTH }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use coracle_engine::Via;
    use coracle_ring::{Ring, RingConfig};

    use super::super::session::tests::session;
    use super::super::watch::OUTPUT_SECONDS;
    use super::*;
    use crate::config::test_config;

    fn connection(ring: &mut Ring) -> Connection {
        let (near, _) = UnixStream::pair().expect("a pair of sockets");
        let config = test_config("--id 1 --cluster t --data-dir /d --node 1=h:1/2/3");
        Connection::new(ring.add_socket(0, near), session(Via::Plain, &config), 0, 0)
    }

    /// Unread replies: how many bytes stop the reading of commands, start the clock, and close.
    #[test]
    fn output_limits_hold_to_the_byte() {
        let small = RingConfig { entries: 8, recv_buffer_count: 2, recv_buffer_bytes: 4096 };
        let mut ring = Ring::new(small).expect("tests need io_uring");
        let cases = [
            (OUTPUT_SOFT_MAX - 1, false, false),
            (OUTPUT_SOFT_MAX, true, false),
            (OUTPUT_SOFT_MAX + 1, true, false),
            (OUTPUT_HARD_MAX - 1, true, false),
            (OUTPUT_HARD_MAX, true, false),
            (OUTPUT_HARD_MAX + 1, true, true),
        ];
        for (bytes, full, overflowing) in cases {
            let mut connection = connection(&mut ring);
            let framing = format!("${bytes}\r\n\r\n").len();
            connection.answer(Reply::Bulk(vec![0; bytes - framing]));
            assert_eq!(connection.output.len(), bytes);
            let state = (connection.is_full(false), connection.is_overflowing());
            assert_eq!(state, (full, overflowing));
            assert!(connection.is_full(true), "any reply that waits is too much");
            let closed_after = (0..2 * OUTPUT_SECONDS).find(|_| connection.look(0).is_some());
            assert_eq!(closed_after, full.then_some(OUTPUT_SECONDS), "{bytes}");
        }
    }
}
