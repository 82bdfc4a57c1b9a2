//! The client connections of one core: takes commands off their bytes and hands them to the
//! engine or to the node's own commands.

use std::ops::Range;
use std::time::Instant;

use coracle_engine::command::{self, Command, Scope, Spec};
use coracle_engine::{Core, CoreAddr, Input, Order, Reply, Request, Token, WallMillis};
use coracle_net::resp::Parsed;
use coracle_ring::{Chunk, Ring, SocketId};

use super::client_memory::ClientMemory;
use super::connection::{BUFFER_KEEP, Connection, slot_of};
use super::digests;
use super::node_commands::{self, Outcome, View};
use super::session::Session;
use super::shared::Shared;
use super::surveys::{Answer, Filter, Question};

/// A command shorter than this is completed with this many bytes at a time, so that a request
/// that trickles in is not looked at byte by byte.
const TOP_UP_MIN: usize = 64;
/// Commands with at most this many arguments need no allocation for their argument list.
const ARGS_INLINE: usize = 8;

/// One place of the table; the numbering of commands goes on when it is used again.
struct Slot {
    connection: Option<Connection>,
    next_sequence: u64,
}

/// What the clients of a core take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClientUse {
    /// Bytes of commands and replies under way.
    pub(crate) bytes: u64,
    /// Connections closed because clients held too much.
    pub(crate) evicted: u64,
}

/// All client connections of a core.
pub(super) struct Clients {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Connections with something to send or to take up again, each once.
    touched: Vec<usize>,
    ranges: Vec<Range<usize>>,
    open: usize,
    ticks: usize,
    memory: ClientMemory,
    /// Connections closed because clients held too much.
    evicted: u64,
}

/// What the commands of a connection are executed with.
pub(super) struct Context<'a> {
    /// The engine of this core.
    pub(super) core: &'a mut Core,
    /// The core.
    pub(super) me: CoreAddr,
    /// What the cores of the node share.
    pub(super) shared: &'a Shared,
    /// Wall time of this turn.
    pub(super) now: WallMillis,
}

impl Clients {
    /// No connections, which may hold `memory_max` bytes.
    pub(super) fn new(memory_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            touched: Vec::new(),
            ranges: Vec::new(),
            open: 0,
            ticks: 0,
            memory: ClientMemory::new(memory_max),
            evicted: 0,
        }
    }

    /// How many connections are open.
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// What they take.
    pub(super) const fn usage(&self) -> ClientUse {
        ClientUse { bytes: self.memory.used() as u64, evicted: self.evicted }
    }

    /// Reserves a table slot; its number goes into the ring key of the connection's socket.
    pub(super) fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { connection: None, next_sequence: 0 });
            self.slots.len() - 1
        })
    }

    /// Puts a connection into a reserved slot.
    pub(super) fn insert(&mut self, index: usize, socket: SocketId, session: Session) {
        let slot = &mut self.slots[index];
        assert!(slot.connection.is_none(), "connection slot {index} is taken");
        slot.connection = Some(Connection::new(socket, session, index, slot.next_sequence));
        self.open += 1;
    }

    /// Takes bytes that arrived on a connection.
    pub(super) fn received(&mut self, index: usize, mut data: &[u8], context: &mut Context<'_>) {
        let Some(connection) = self.slots[index].connection.as_mut() else { return };
        connection.watch.heard = true;
        let short = self.memory.is_short();
        let mut ranges = std::mem::take(&mut self.ranges);
        while !data.is_empty() {
            if connection.closing {
                break;
            }
            if connection.paused {
                connection.input.extend_from_slice(data);
                break;
            }
            if connection.input.is_empty() {
                let consumed = take_commands(connection, data, &mut ranges, short, context);
                connection.input.extend_from_slice(&data[consumed..]);
                break;
            }
            // A command has begun in earlier bytes: add what it lacks, go on without copying.
            let lacking = connection.lacking.max(TOP_UP_MIN).min(data.len());
            connection.input.extend_from_slice(&data[..lacking]);
            data = &data[lacking..];
            take_buffered(connection, &mut ranges, short, context);
        }
        self.ranges = ranges;
        self.touch(index);
    }

    /// The client closed its side, or the connection broke: what it asked for is answered to
    /// nobody.
    pub(super) fn ended(&mut self, index: usize, ring: &mut Ring, core: &mut Core) {
        if let Some(connection) = self.slots[index].connection.as_mut() {
            if connection.is_drained() {
                self.close(index, ring, core);
            } else {
                connection.closing = true;
                self.touch(index);
            }
        }
    }

    /// Closes a connection at once.
    pub(super) fn close(&mut self, index: usize, ring: &mut Ring, core: &mut Core) {
        let slot = &mut self.slots[index];
        let Some(connection) = slot.connection.take() else { return };
        slot.next_sequence = connection.next_sequence();
        self.memory.release(index, &connection);
        for token in connection.awaited() {
            core.handle(Input::Forget(token));
        }
        ring.close(connection.socket);
        self.open -= 1;
    }

    /// The ring let go of the socket: its slot may be used again.
    pub(super) fn closed(&mut self, index: usize) {
        self.free.push(index);
    }

    /// Delivers an answer of the engine.
    pub(super) fn reply(&mut self, token: Token, reply: Reply) {
        let index = slot_of(token);
        if let Some(connection) = self.slots[index].connection.as_mut() {
            connection.reply(token, reply);
            self.touch(index);
        }
    }

    /// A send has completed.
    pub(super) fn sent(&mut self, index: usize, chunks: Vec<Chunk>) {
        if let Some(connection) = self.slots[index].connection.as_mut() {
            let buffer = chunks.into_iter().find_map(|chunk| match chunk {
                Chunk::Owned(buffer) => Some(buffer),
                Chunk::Shared { .. } => None,
            });
            connection.watch.heard = true;
            connection.sent(buffer.unwrap_or_default());
            self.touch(index);
        }
    }

    /// A tick has passed: closes connections whose time is up. Each is looked at once per second.
    pub(super) fn tick(&mut self, ring: &mut Ring, context: &mut Context<'_>) {
        let config = context.shared.config();
        let ticks_per_second = (1000 / config.raft.tick_ms).max(1) as usize;
        self.ticks += 1;
        for index in (self.ticks % ticks_per_second..self.slots.len()).step_by(ticks_per_second) {
            let Some(connection) = self.slots[index].connection.as_mut() else { continue };
            if !connection.watch.heard && self.memory.pass_on(index, connection) {
                pause_receive(connection, ring);
            }
            if let Some(why) = connection.look(config.timeout_seconds) {
                let (core, client) = (context.me.core.0, &connection.session.peer);
                tracing::debug!(target: "net", core, client, %why, "client closed");
                self.close(index, ring, context.core);
            }
        }
    }

    /// The node stops: no connection takes another command, each is closed once it has its answers.
    pub(super) fn finish(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(connection) = self.slots[index].connection.as_mut() {
                connection.closing = true;
                self.touch(index);
            }
        }
    }

    /// End of the turn: sends what is to be sent, takes up paused connections that have room
    /// again, closes those that are done.
    pub(super) fn flush(&mut self, ring: &mut Ring, context: &mut Context<'_>) {
        if context.shared.surveys().any() {
            self.take_part_in_surveys(ring, context);
        }
        let mut touched = std::mem::take(&mut self.touched);
        let mut ranges = std::mem::take(&mut self.ranges);
        for index in touched.drain(..) {
            let Some(connection) = self.slots[index].connection.as_mut() else { continue };
            connection.touched = false;
            if let Some(command) = connection.take_held() {
                submit(connection, command, context);
                // What came after it goes on now.
                connection.paused |= !connection.input.is_empty();
            }
            let short = self.memory.is_short();
            if connection.paused && connection.may_resume(short) {
                connection.paused = false;
                take_buffered(connection, &mut ranges, short, context);
                if !connection.paused && !connection.starved {
                    resume_receive(connection, ring);
                }
            }
            if connection.paused {
                pause_receive(connection, ring);
            }
            if let Some(output) = connection.take_output() {
                ring.send(connection.socket, vec![Chunk::Owned(output)]);
            }
            if self.memory.count(index, connection) {
                pause_receive(connection, ring);
            }
            if connection.is_overflowing() || (connection.closing && connection.is_drained()) {
                self.close(index, ring, context.core);
            }
        }
        self.touched = touched;
        self.ranges = ranges;
        self.share_memory(ring, context);
    }

    /// Lets those go on for whom there is memory, and closes those for whom there is none.
    fn share_memory(&mut self, ring: &mut Ring, context: &mut Context<'_>) {
        while let Some(index) = self.memory.next() {
            let connection = self.slots[index].connection.as_mut();
            let Some(connection) = connection.filter(|waits| waits.starved) else { continue };
            connection.starved = false;
            if !connection.paused {
                resume_receive(connection, ring);
                self.memory.favour(index);
            }
        }
        while self.memory.is_exceeded() {
            let open = self
                .slots
                .iter()
                .enumerate()
                .filter_map(|(index, slot)| Some((slot.connection.as_ref()?.counted, index)));
            let Some((bytes, index)) = open.max() else { return };
            if let Some(connection) = &self.slots[index].connection {
                let (core, client) = (context.me.core.0, &connection.session.peer);
                tracing::debug!(target: "net", core, client, bytes, "client closed: out of memory");
            }
            self.evicted += 1;
            self.close(index, ring, context.core);
        }
    }

    /// Answers what is asked about this core's clients; replies to those who asked here.
    fn take_part_in_surveys(&mut self, ring: &mut Ring, context: &mut Context<'_>) {
        let (surveys, here) = (context.shared.surveys(), context.me.core);
        for (number, question) in surveys.questions(here) {
            let answer = match question {
                Question::List(filter) => {
                    let open = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
                    let meant = open.filter(|connection| filter.matches(&connection.session));
                    let line = |c: &Connection| (c.session.id, c.line(context.now));
                    Answer::Lines(meant.map(line).collect())
                }
                Question::Kill(filter) | Question::KillOne(filter) => {
                    Answer::Killed(self.kill(&filter, ring, context.core))
                }
                Question::Digests { now } => Answer::Digests(digests::rows(context.core, now)),
            };
            surveys.answer(here, number, answer);
        }
        for (token, reply) in surveys.take_finished(here, Instant::now()) {
            self.reply(token, reply);
        }
    }

    /// Closes connections; how many. One that waits for the answer of a survey gets that first.
    fn kill(&mut self, filter: &Filter, ring: &mut Ring, core: &mut Core) -> u64 {
        let mut count = 0;
        for index in 0..self.slots.len() {
            let Some(connection) = self.slots[index].connection.as_mut() else { continue };
            if !filter.matches(&connection.session) {
                continue;
            }
            count += 1;
            if connection.is_surveying() {
                connection.closing = true;
                self.touch(index);
            } else {
                self.close(index, ring, core);
            }
        }
        count
    }

    fn touch(&mut self, index: usize) {
        if let Some(connection) = self.slots[index].connection.as_mut()
            && !std::mem::replace(&mut connection.touched, true)
        {
            self.touched.push(index);
        }
    }
}

fn pause_receive(connection: &mut Connection, ring: &mut Ring) {
    if std::mem::take(&mut connection.receiving) {
        ring.pause_receive(connection.socket);
    }
}

fn resume_receive(connection: &mut Connection, ring: &mut Ring) {
    if !std::mem::replace(&mut connection.receiving, true) {
        ring.resume_receive(connection.socket);
    }
}

/// Takes the commands that `connection.input` holds.
fn take_buffered(
    connection: &mut Connection,
    ranges: &mut Vec<Range<usize>>,
    short: bool,
    context: &mut Context<'_>,
) {
    let mut input = std::mem::take(&mut connection.input);
    let consumed = take_commands(connection, &input, ranges, short, context);
    input.drain(..consumed);
    if !input.is_empty() || input.capacity() <= BUFFER_KEEP {
        connection.input = input;
    }
}

/// Takes commands off the front of `input` until it ends or the connection is full; returns how
/// many bytes they took.
fn take_commands(
    connection: &mut Connection,
    input: &[u8],
    ranges: &mut Vec<Range<usize>>,
    short: bool,
    context: &mut Context<'_>,
) -> usize {
    let mut taken = 0;
    while taken < input.len() && !connection.closing {
        if connection.is_full(short) {
            connection.paused = true;
            break;
        }
        let rest = &input[taken..];
        ranges.clear();
        match connection.parse(rest, ranges) {
            Ok(Parsed::Complete { consumed }) => {
                taken += consumed;
                connection.watch.progressed = true;
                with_args(rest, ranges, |args| execute(connection, args, context));
            }
            Ok(Parsed::Quoted { consumed, args }) => {
                taken += consumed;
                connection.watch.progressed = true;
                let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                execute(connection, &args, context);
            }
            Ok(Parsed::Empty { consumed }) => taken += consumed,
            Ok(Parsed::Incomplete { needed_bytes }) => {
                connection.lacking = needed_bytes;
                break;
            }
            Err(error) => {
                connection.answer(error.reply());
                connection.closing = true;
            }
        }
    }
    taken
}

/// Calls `then` with the arguments as slices.
fn with_args(input: &[u8], ranges: &[Range<usize>], then: impl FnOnce(&[&[u8]])) {
    let mut inline = [&[][..]; ARGS_INLINE];
    if ranges.len() <= ARGS_INLINE {
        for (slot, range) in inline.iter_mut().zip(ranges) {
            *slot = &input[range.clone()];
        }
        then(&inline[..ranges.len()]);
    } else {
        let args: Vec<&[u8]> = ranges.iter().map(|range| &input[range.clone()]).collect();
        then(&args);
    }
}

fn execute(connection: &mut Connection, args: &[&[u8]], context: &mut Context<'_>) {
    let Some(&name) = args.first() else { return };
    let Some(spec) = command::lookup(name) else {
        return connection.answer(command::unknown_command(args));
    };
    connection.session.note(spec.name, context.now);
    if connection.session.authenticated && spec.scope != Scope::Node {
        return execute_data(connection, spec, args, context);
    }
    if !connection.session.authenticated && !node_commands::allowed_before_auth(spec) {
        connection.answer(Reply::error("NOAUTH Authentication required."));
        return;
    }
    let core = &*context.core;
    let view = View {
        config: context.shared.config(),
        map: context.shared.map(),
        me: context.me,
        backoff: context.shared.backoff(),
        now: context.now,
        started: context.shared.started(),
        leader_of: &|group| core.leader_of(group),
        keys_in_slot: &|slot| core.keys_in_slot(slot),
        keys_of_slot: &|slot, max| core.keys_of_slot(slot, max),
        stats: &|| context.shared.stats(),
    };
    let outcome = node_commands::execute(spec, args, &mut connection.session, &view);
    connection.update_limits();
    match outcome {
        Outcome::Reply(reply) => connection.answer(reply),
        Outcome::ReplyThenClose(reply) => {
            connection.answer(reply);
            connection.closing = true;
        }
        Outcome::Survey(question) => {
            let token = connection.expect_survey();
            if !context.shared.surveys().ask(question, context.me.core, token) {
                let text = "ERR too many CLIENT LIST and KILL commands at once, try again";
                connection.reply(token, Reply::error(text));
            }
        }
    }
}

fn execute_data(
    connection: &mut Connection,
    spec: &Spec,
    args: &[&[u8]],
    context: &mut Context<'_>,
) {
    match command::decode_spec(spec, args, context.now) {
        Err(reply) => connection.answer(reply),
        Ok(command) => submit(connection, command, context),
    }
}

/// Hands a command to the engine, or keeps it until those before it are answered.
fn submit(connection: &mut Connection, command: Command, context: &mut Context<'_>) {
    let order = connection.order(&command, context.core);
    if order == Order::Waits {
        return connection.hold(command);
    }
    let bytes = context.core.reply_bytes(&command);
    let token = connection.expect(context.core.unanswered(&command), bytes);
    context.core.handle(Input::Request(Request {
        token,
        via: connection.session.via,
        read_mode: connection.session.read_mode,
        follows: order == Order::Follows,
        at: context.now,
        command,
    }));
}
