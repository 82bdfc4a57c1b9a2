//! What clients do in a run: send, wait, give up, reconnect, write down.

use std::collections::BTreeSet;

use coracle_engine::Via;
use coracle_net::resp::{self, encode_request};

use crate::client::{self, Expect, Open, Scan, Verdict};
use crate::history::Outcome;
use crate::host::{Arrival, Commands};
use crate::plan::MS;
use crate::queue::Micros;
use crate::report::Failure;
use crate::whole::{Did, Whole};
use crate::world::{Event, World};

/// When a probe is given up: it asks the next host then, so that a host that cannot serve does
/// not hide that another can.
const PROBE_TIMEOUT: Micros = 500 * MS;

impl World {
    /// Lets a client begin something new after a while.
    pub(crate) fn client_later(&mut self, client: usize) {
        let serial = self.clients[client].serial;
        let think = self.rng.wait(self.plan.load.think);
        self.queue.push(self.now + think, Event::ClientNext { client, serial });
    }

    /// Connects a client to one of the hosts that are open to clients.
    pub(crate) fn reconnect(&mut self, client: usize, wanted: Option<usize>) {
        let host = match wanted.filter(|host| self.open_hosts.contains(host)) {
            Some(host) => host,
            None => *self.rng.pick(&self.open_hosts),
        };
        self.clients[client].connect(host, &mut self.rng);
    }

    pub(crate) fn client_next(&mut self, client: usize, serial: u64) {
        let state = &self.clients[client];
        if state.serial != serial || !state.open.is_empty() || !self.clients_run || state.probing {
            return;
        }
        let up = self.nodes[self.node_of(state.host)].up && self.open_hosts.contains(&state.host);
        if !up || self.rng.chance(0.02) {
            self.reconnect(client, None);
            self.client_later(client);
            return;
        }
        let calls = self.clients[client].next(&self.plan.load, self.now, &mut self.rng);
        self.client_send(client, calls);
    }

    /// Sends commands, all at once.
    pub(crate) fn client_send(&mut self, client: usize, calls: Vec<client::Call>) {
        let mut bytes = Vec::new();
        for call in &calls {
            let args: Vec<&[u8]> = call.args.iter().map(Vec::as_slice).collect();
            encode_request(&args, &mut bytes);
        }
        let count = calls.len();
        let open = calls
            .into_iter()
            .map(|call| Open { call, call_ns: self.moment(), verdict: None })
            .collect();
        let way = self.client_way();
        let state = &mut self.clients[client];
        state.open = open;
        let (host, serial) = (state.host, state.serial);
        let (via, read_mode, protocol) = (state.via, state.read_mode, state.protocol);
        let commands = Commands { client, serial, via, read_mode, protocol, bytes, count };
        let (life, arrival) = (self.hosts[host].life, Arrival::Commands(commands));
        self.queue.push(self.now + way, Event::Arrive { host, life, arrival });
        let probing = self.clients[client].probing;
        let patience = if probing { PROBE_TIMEOUT } else { self.plan.load.timeout };
        self.queue.push(self.now + patience, Event::ClientTimeout { client, serial });
        self.counters.calls += 1;
    }

    pub(crate) fn client_reply(
        &mut self,
        client: usize,
        serial: u64,
        step: usize,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let reply = self.parse(bytes)?;
        for byte in bytes.iter().take(64) {
            self.trace.mix(u64::from(*byte));
        }
        let state = &mut self.clients[client];
        if state.serial != serial || state.open.is_empty() {
            return Ok(());
        }
        let open = &mut state.open[step];
        open.verdict = Some(client::judge(&open.call, &reply));
        if state.open.iter().all(|open| open.verdict.is_some()) {
            return self.client_answered(client);
        }
        Ok(())
    }

    /// Everything a client waited for has been answered.
    fn client_answered(&mut self, client: usize) -> Result<(), Failure> {
        let open = std::mem::take(&mut self.clients[client].open);
        let id = self.clients[client].id;
        // The answers to what follows a step that was not done are for the history alone.
        let whole = open
            .iter()
            .all(|open| !matches!(open.verdict, Some(Verdict::Refused(_) | Verdict::Unknown)));
        if self.clients[client].probing {
            self.probed = whole;
        }
        let mut target = None;
        for mut open in open {
            let outcome = match open.verdict.take() {
                Some(Verdict::Astray(outcome, _)) if !whole => {
                    self.counters.count_answer(open.call.writes);
                    outcome
                }
                Some(Verdict::Wrong(text) | Verdict::Astray(_, text)) => {
                    let key = String::from_utf8_lossy(&open.call.key).into_owned();
                    return Err(self.failure("answers", format!("client {id}, key {key}: {text}")));
                }
                Some(Verdict::Named(names)) => {
                    self.counters.count_answer(false);
                    self.saw(id, open.call_ns, Did::List(names));
                    continue;
                }
                Some(Verdict::Stepped(cursor, names)) => {
                    self.counters.count_answer(false);
                    self.stepped(client, open.call_ns, cursor, names);
                    continue;
                }
                Some(Verdict::Done(outcome)) => {
                    self.counters.count_answer(open.call.writes);
                    outcome
                }
                Some(Verdict::Refused(to)) => {
                    self.counters.refused += 1;
                    target = to.or(target);
                    Outcome::Refused
                }
                Some(Verdict::Unknown) | None => {
                    self.counters.unknown += 1;
                    Outcome::Unknown
                }
            };
            self.write_down(id, &open, outcome);
        }
        if let Some((host, port)) = target {
            let wanted = self.host_named(&host, port);
            self.reconnect(client, wanted);
        }
        self.client_later(client);
        Ok(())
    }

    /// A client has seen names of keys.
    fn saw(&mut self, client: u64, call_ns: u64, did: Did) {
        let return_ns = Some(self.moment());
        self.wholes.push(Whole { client, call_ns, return_ns, did });
    }

    /// A client has done a step of a scan, or a part of one on a core's port.
    fn stepped(&mut self, client: usize, call_ns: u64, cursor: Vec<u8>, names: BTreeSet<Vec<u8>>) {
        let state = &mut self.clients[client];
        let (id, all) = (state.id, state.via == Via::Plain);
        let begun = Scan { call_ns, cursor: Vec::new(), names: BTreeSet::new() };
        let mut scan = state.scan.take().unwrap_or(begun);
        scan.names.extend(names.iter().cloned());
        if cursor != b"0" {
            scan.cursor = cursor;
            state.scan = all.then_some(scan);
        } else if all {
            self.saw(id, scan.call_ns, Did::List(scan.names));
        }
        self.saw(id, call_ns, Did::See(names));
    }

    fn write_down(&mut self, id: u64, open: &Open, outcome: Outcome) {
        if outcome == Outcome::Refused || matches!(open.call.expect, Expect::Anything) {
            return;
        }
        let now = self.moment();
        if matches!(open.call.expect, Expect::Flushed) {
            let return_ns = (outcome != Outcome::Unknown).then_some(now);
            let (call_ns, did) = (open.call_ns, Did::Clear);
            self.wholes.push(Whole { client: id, call_ns, return_ns, did });
            return;
        }
        self.history.extend(client::history(id, open, outcome, now));
    }

    /// The host that listens on an address of the layout.
    fn host_named(&self, name: &str, port: u16) -> Option<usize> {
        let node = self.map.nodes().iter().position(|node| node.host == name)?;
        let info = &self.map.nodes()[node];
        let core = port.saturating_sub(info.core_port);
        self.hosts_of(node).nth(usize::from(core))
    }

    pub(crate) fn client_timeout(&mut self, client: usize, serial: u64) {
        if self.clients[client].serial == serial && !self.clients[client].open.is_empty() {
            self.counters.timeouts += 1;
            self.client_lost(client, true);
        }
    }

    pub(crate) fn client_disconnected(&mut self, client: usize, serial: u64) {
        if self.clients[client].serial == serial {
            self.client_lost(client, false);
        }
    }

    /// The connection is gone: what was not answered may have happened or not.
    fn client_lost(&mut self, client: usize, by_client: bool) {
        let open = std::mem::take(&mut self.clients[client].open);
        let (id, host) = (self.clients[client].id, self.clients[client].host);
        for open in &open {
            let outcome = match &open.verdict {
                Some(Verdict::Done(outcome) | Verdict::Astray(outcome, _)) => outcome.clone(),
                Some(Verdict::Refused(_)) => Outcome::Refused,
                _ => Outcome::Unknown,
            };
            self.counters.unknown += u64::from(outcome == Outcome::Unknown);
            self.write_down(id, open, outcome);
        }
        if by_client {
            let serial = self.clients[client].serial;
            let state = &self.hosts[host];
            let askers = state.askers.iter();
            let tokens = askers
                .filter(|(_, asker)| asker.client == client && asker.serial == serial)
                .map(|(token, _)| *token)
                .collect();
            let at = self.now + MS;
            let (life, arrival) = (state.life, Arrival::Forget(tokens));
            self.queue.push(at, Event::Arrive { host, life, arrival });
        }
        self.reconnect(client, None);
        self.client_later(client);
    }

    /// Decodes an answer as a client does.
    fn parse(&self, bytes: &[u8]) -> Result<coracle_engine::Reply, Failure> {
        match resp::parse_reply(bytes) {
            Ok(Some((reply, used))) if used == bytes.len() => Ok(reply),
            other => Err(self.failure("codec", format!("an answer is parsed as {other:?}"))),
        }
    }

    /// A number for the next moment of a history: later than all before it.
    fn moment(&mut self) -> u64 {
        self.ns = (self.ns + 1).max(self.now * 1000);
        self.ns
    }
}
