//! What a client connection has agreed on: protocol, authentication, names, reads.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use coracle_engine::{ReadMode, Via, WallMillis};
use coracle_net::resp::Protocol;

use crate::config::Config;

/// Longest name a client may give itself or its library.
const NAME_BYTES_MAX: usize = 256;

/// State of one client connection beside its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Number of the connection, unique in this process.
    pub(crate) id: u64,
    /// Protocol version that replies are written in.
    pub(crate) protocol: Protocol,
    /// Whether commands beyond the handshake are allowed.
    pub(crate) authenticated: bool,
    /// Where this connection's reads may be answered.
    pub(crate) read_mode: ReadMode,
    /// Kind of port it came in by.
    pub(crate) via: Via,
    /// Name given by the client; empty if none.
    pub(crate) name: String,
    /// Name of the client's library; empty if unknown.
    pub(crate) lib_name: String,
    /// Version of the client's library; empty if unknown.
    pub(crate) lib_ver: String,
    /// Address of the client.
    pub(crate) peer: String,
    /// IP address of the client; `::` if unknown.
    pub(crate) ip: IpAddr,
    /// Address it connected to.
    pub(crate) local: String,
    /// When it connected.
    pub(crate) created: WallMillis,
    /// When its last command was taken.
    pub(crate) active: WallMillis,
    /// That command.
    pub(crate) last_command: &'static str,
    /// Commands so far.
    pub(crate) commands: u64,
    /// `CLIENT NO-EVICT`.
    pub(crate) no_evict: bool,
    /// `CLIENT NO-TOUCH`.
    pub(crate) no_touch: bool,
}

impl Session {
    /// The session of a connection that was just accepted.
    pub(crate) fn new(
        id: u64,
        via: Via,
        socket: &impl AsFd,
        now: WallMillis,
        config: &Config,
    ) -> Self {
        let peer = rustix::net::getpeername(socket).ok().flatten();
        let local = rustix::net::getsockname(socket).ok();
        Self::with_addresses(id, via, [show(peer), show(local)], now, config)
    }

    fn with_addresses(
        id: u64,
        via: Via,
        [peer, local]: [String; 2],
        now: WallMillis,
        config: &Config,
    ) -> Self {
        Self {
            id,
            protocol: Protocol::Resp2,
            authenticated: config.password.is_none(),
            read_mode: ReadMode::Leader,
            via,
            name: String::new(),
            lib_name: String::new(),
            lib_ver: String::new(),
            ip: peer
                .parse()
                .map_or(Ipv6Addr::UNSPECIFIED.into(), |address: SocketAddr| address.ip()),
            peer,
            local,
            created: now,
            active: now,
            last_command: "NULL",
            commands: 0,
            no_evict: false,
            no_touch: false,
        }
    }

    /// Back to what it was right after accepting (`RESET`).
    pub(crate) fn reset(&mut self, config: &Config) {
        self.protocol = Protocol::Resp2;
        self.authenticated = config.password.is_none();
        self.read_mode = ReadMode::Leader;
        self.name.clear();
        self.no_evict = false;
        self.no_touch = false;
    }

    /// Takes note of a command.
    pub(crate) const fn note(&mut self, command: &'static str, now: WallMillis) {
        self.active = now;
        self.last_command = command;
        self.commands += 1;
    }

    /// One line of `CLIENT LIST` (Redis, "CLIENT LIST"), without the line end. `input_bytes` and
    /// `output_bytes` wait in the connection's buffers.
    pub(crate) fn line(&self, now: WallMillis, input_bytes: usize, output_bytes: usize) -> String {
        let seconds = |since: WallMillis| now.0.saturating_sub(since.0) / 1000;
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            line,
            "id={} addr={} laddr={} fd=0 name={} age={} idle={} flags={} db=0 sub=0 psub=0 \
             ssub=0 multi=-1 watch=0 qbuf={input_bytes} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 \
             rbp=0 obl=0 oll=0 omem={output_bytes} tot-mem={} events=r cmd={} user=default \
             redir=-1 resp={} lib-name={} lib-ver={} tot-cmds={}",
            self.id,
            self.peer,
            self.local,
            self.name,
            seconds(self.created),
            seconds(self.active),
            self.flags(),
            input_bytes + output_bytes,
            self.last_command,
            match self.protocol {
                Protocol::Resp2 => 2,
                Protocol::Resp3 => 3,
            },
            self.lib_name,
            self.lib_ver,
            self.commands,
        );
        line
    }

    fn flags(&self) -> String {
        let mut flags = String::new();
        if self.read_mode == ReadMode::AnyReplica {
            flags.push('r');
        }
        if self.no_evict {
            flags.push('e');
        }
        if self.no_touch {
            flags.push('T');
        }
        if flags.is_empty() { "N".to_owned() } else { flags }
    }
}

/// A name as clients may give it: short, printable, without spaces (redis `networking.c`,
/// `validateClientName`).
pub(super) fn valid_name(text: &[u8]) -> Option<String> {
    let printable = text.iter().all(|byte| (b'!'..=b'~').contains(byte));
    if !printable || text.len() > NAME_BYTES_MAX {
        return None;
    }
    String::from_utf8(text.to_vec()).ok()
}

fn show(address: Option<rustix::net::SocketAddrAny>) -> String {
    address
        .and_then(|any| SocketAddr::try_from(any).ok())
        .map_or_else(|| "?:0".to_owned(), |address| address.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A session as if it had connected over loopback at time 0.
    pub(in crate::server) fn session(via: Via, config: &Config) -> Session {
        let addresses = ["127.0.0.1:5".to_owned(), "127.0.0.1:6".to_owned()];
        Session::with_addresses(7, via, addresses, WallMillis(0), config)
    }

    /// Names that would break the lines of `CLIENT LIST` are refused.
    #[test]
    fn names_are_one_printable_word() {
        assert_eq!(valid_name(b"web-1"), Some("web-1".to_owned()));
        assert_eq!(valid_name(b""), Some(String::new()));
        let long = [b'a'; NAME_BYTES_MAX + 1];
        for bad in [&b"a b"[..], b"a\nb", b"\xff", b"\x7f", &long] {
            assert_eq!(valid_name(bad), None, "{bad:?}");
        }
    }
}
