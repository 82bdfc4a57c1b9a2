//! Which endpoint owns which slot, as `CLUSTER SLOTS` and `MOVED` tell it.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use coracle_engine::{Reply, SLOT_COUNT, SlotId};
use coracle_ring::Waker;

use crate::client::{Client, Unreachable, resolve};

/// How long one endpoint may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// More ranges than this are not a layout of 16384 slots.
const RANGES_MAX: usize = SLOT_COUNT as usize;

/// Consecutive slots and the address of their owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: SlotId,
    /// Inclusive.
    pub(crate) last: SlotId,
    pub(crate) owner: SocketAddr,
}

/// Asks the endpoints in turn until one answers with a layout.
pub(crate) fn ask(endpoints: &[String]) -> Result<Vec<Range>, Unreachable> {
    let mut failures = Vec::new();
    for endpoint in endpoints {
        match ask_one(endpoint) {
            Ok(ranges) => return Ok(ranges),
            Err(why) => failures.push(why),
        }
    }
    Err(Unreachable(failures.join("; ")))
}

fn ask_one(endpoint: &str) -> Result<Vec<Range>, String> {
    let addr = resolve(endpoint).map_err(|error| error.0)?;
    let reply = Client::connect(addr, ASK_TIMEOUT)
        .and_then(|mut client| client.call(&[b"CLUSTER", b"SLOTS"]))
        .map_err(|error| format!("{endpoint}: {error}"))?;
    parse_slots(&reply, addr.ip()).map_err(|why| format!("{endpoint}: CLUSTER SLOTS: {why}"))
}

/// Understands the reply of `CLUSTER SLOTS`. An empty or unspecified host means the one that was
/// asked (Redis documentation of CLUSTER SLOTS, "preferred endpoint").
pub(crate) fn parse_slots(reply: &Reply, asked: IpAddr) -> Result<Vec<Range>, String> {
    let rows = match reply {
        Reply::Array(rows) => rows,
        Reply::Error(text) => return Err(text.clone()),
        other => return Err(format!("expected a list, got {other:?}")),
    };
    if rows.is_empty() {
        return Err("no slot has an owner".to_owned());
    }
    if rows.len() > RANGES_MAX {
        return Err(format!("{} ranges, but there are only {RANGES_MAX} slots", rows.len()));
    }
    rows.iter().map(|row| parse_row(row, asked)).collect()
}

/// The slot and the owner of `MOVED slot host:port`. The owner is `None` if its host is a name,
/// which only a new layout resolves.
pub(crate) fn parse_moved(error: &str, asked: IpAddr) -> Option<(SlotId, Option<SocketAddr>)> {
    let mut words = error.strip_prefix("MOVED ")?.split(' ');
    let slot = SlotId::new(words.next()?.parse().ok()?)?;
    // From the right, because IPv6 addresses contain colons.
    let (host, port) = words.next()?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = if host.is_empty() { Some(asked) } else { host.parse().ok() };
    Some((slot, ip.map(|ip| SocketAddr::new(specified(ip, asked), port))))
}

/// Asks for new layouts on a thread of its own, so that the load never waits for one.
#[derive(Debug)]
pub(crate) struct Refresher {
    questions: SyncSender<Vec<String>>,
    answers: Receiver<Result<Vec<Range>, Unreachable>>,
    asked: bool,
}

impl Refresher {
    /// `waker` is called when an answer is there. The thread ends after the refresher.
    pub(crate) fn start(waker: Waker) -> std::io::Result<Self> {
        let (questions, inbox) = sync_channel::<Vec<String>>(1);
        let (outbox, answers) = sync_channel(1);
        std::thread::Builder::new().name("layout".to_owned()).spawn(move || {
            while let Ok(endpoints) = inbox.recv() {
                if outbox.send(ask(&endpoints)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { questions, answers, asked: false })
    }

    /// Starts a question unless one is open; whether it did.
    pub(crate) fn ask(&mut self, endpoints: impl FnOnce() -> Vec<String>) -> bool {
        if self.asked {
            return false;
        }
        self.asked = match self.questions.try_send(endpoints()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        };
        self.asked
    }

    /// The answer, once.
    pub(crate) fn answer(&mut self) -> Option<Result<Vec<Range>, Unreachable>> {
        let answer = self.answers.try_recv().ok()?;
        self.asked = false;
        Some(answer)
    }
}

fn parse_row(row: &Reply, asked: IpAddr) -> Result<Range, String> {
    let wrong = || format!("a range is not understood: {row:?}");
    let Reply::Array(fields) = row else { return Err(wrong()) };
    let [Reply::Integer(first), Reply::Integer(last), Reply::Array(owner), ..] = &fields[..] else {
        return Err(wrong());
    };
    let slot = |raw: &i64| SlotId::new(u16::try_from(*raw).ok()?);
    let (Some(first), Some(last)) = (slot(first), slot(last)) else { return Err(wrong()) };
    let [host, Reply::Integer(port), ..] = &owner[..] else { return Err(wrong()) };
    let port = u16::try_from(*port).ok().filter(|&port| port != 0).ok_or_else(wrong)?;
    let ip = match host {
        Reply::Null => asked,
        Reply::Bulk(host) if host.is_empty() => asked,
        Reply::Bulk(host) => {
            let host = String::from_utf8_lossy(host);
            match host.parse() {
                Ok(ip) => ip,
                Err(_) => resolve(&format!("{host}:{port}")).map_err(|error| error.0)?.ip(),
            }
        }
        _ => return Err(wrong()),
    };
    if first > last {
        return Err(wrong());
    }
    Ok(Range { first, last, owner: SocketAddr::new(specified(ip, asked), port) })
}

fn specified(ip: IpAddr, asked: IpAddr) -> IpAddr {
    if ip.is_unspecified() { asked } else { ip }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn row(first: i64, last: i64, host: Reply, port: i64) -> Reply {
        let node = Reply::Array(vec![host, Reply::Integer(port), Reply::Bulk(b"id".to_vec())]);
        Reply::Array(vec![Reply::Integer(first), Reply::Integer(last), node])
    }

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    #[test]
    fn slots_are_understood() {
        let cases = [
            (bulk("127.0.0.1"), "127.0.0.1:7000"),
            (bulk("::1"), "[::1]:7000"),
            (bulk("localhost"), ""),
            (bulk(""), "10.0.0.9:7000"),
            (bulk("0.0.0.0"), "10.0.0.9:7000"),
            (Reply::Null, "10.0.0.9:7000"),
        ];
        for (host, want) in cases {
            let reply = Reply::Array(vec![row(0, 16383, host.clone(), 7000)]);
            let ranges = parse_slots(&reply, ASKED).expect("understood");
            assert_eq!((ranges[0].first.get(), ranges[0].last.get()), (0, 16383));
            if want.is_empty() {
                assert!(ranges[0].owner.ip().is_loopback(), "{host:?}: {:?}", ranges[0].owner);
            } else {
                assert_eq!(
                    ranges[0].owner,
                    want.parse::<SocketAddr>().expect("address"),
                    "{host:?}"
                );
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let host = || bulk("127.0.0.1");
        let cases = [
            Reply::Array(vec![]),
            Reply::OK,
            Reply::error("ERR This instance has cluster support disabled"),
            Reply::Array(vec![Reply::Integer(1)]),
            Reply::Array(vec![row(0, 16384, host(), 1)]),
            Reply::Array(vec![row(5, 4, host(), 1)]),
            Reply::Array(vec![row(-1, 4, host(), 1)]),
            Reply::Array(vec![row(0, 4, host(), 0)]),
            Reply::Array(vec![row(0, 4, host(), 65536)]),
            Reply::Array(vec![row(0, 4, Reply::Integer(1), 1)]),
        ];
        for reply in cases {
            assert!(parse_slots(&reply, ASKED).is_err(), "{reply:?}");
        }
    }

    #[test]
    fn moved_is_understood() {
        let addr = |text: &str| Some(text.parse::<SocketAddr>().expect("address"));
        let cases = [
            ("MOVED 3999 127.0.0.1:6381", Some((3999, addr("127.0.0.1:6381")))),
            ("MOVED 1 ::1:6381", Some((1, addr("[::1]:6381")))),
            ("MOVED 1 :6381", Some((1, addr("10.0.0.9:6381")))),
            ("MOVED 1 db.example:6381", Some((1, None))),
            ("MOVED 16384 127.0.0.1:1", None),
            ("MOVED 1 127.0.0.1:0", None),
            ("MOVED 1 127.0.0.1", None),
            ("MOVED", None),
            ("ASK 1 127.0.0.1:1", None),
        ];
        for (text, want) in cases {
            let got = parse_moved(text, ASKED).map(|(slot, owner)| (slot.get(), owner));
            assert_eq!(got, want, "{text}");
        }
    }
}
