//! A small blocking client of the Redis protocol for the command line.
//!
//! In: commands as byte strings. Out: replies, after redirects have been followed. One command at
//! a time; a command is sent again only when it was certainly not applied.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use coracle_engine::Reply;
use coracle_net::resp::{ReplyReader, encode_request};

/// Redirects followed for one command.
const REDIRECTS_MAX: usize = 5;
/// Pause before a command is tried again that was certainly not applied.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Largest reply that is taken.
const REPLY_BYTES_MAX: usize = 512 << 20;

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For a connection.
    pub(crate) connect: Duration,
    /// For a reply.
    pub(crate) reply: Duration,
    /// For a cluster that answers "try again" to serve.
    pub(crate) retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            reply: Duration::from_secs(30),
            retry: Duration::from_secs(5),
        }
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// No endpoint could be connected to: nothing was sent.
    Unreachable(String),
    /// The connection ended or stayed silent after the command was sent: its outcome is unknown.
    Lost(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) => write!(f, "cannot connect: {text}"),
            Self::Lost(text) => {
                write!(f, "no reply from {text}; whether the command was applied is not known")
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// One connection.
struct Link {
    stream: TcpStream,
    replies: ReplyReader,
}

impl Link {
    fn open(endpoint: &str, timeouts: Timeouts) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in endpoint.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeouts.connect) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(timeouts.reply))?;
                    stream.set_write_timeout(Some(timeouts.reply))?;
                    return Ok(Self { stream, replies: ReplyReader::new(REPLY_BYTES_MAX) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn call(&mut self, args: &[&[u8]]) -> io::Result<Reply> {
        let mut request = Vec::new();
        encode_request(args, &mut request);
        self.stream.write_all(&request)?;
        self.replies.read(&mut self.stream)
    }
}

/// A client of a cluster.
pub(crate) struct Client {
    /// Where to begin, and to go on when a connection is lost.
    endpoints: Vec<String>,
    current: usize,
    links: HashMap<String, Link>,
    password: Option<Vec<u8>>,
    timeouts: Timeouts,
}

impl Client {
    /// A client that connects when it is first used. `endpoints` (at least one) are tried in
    /// order.
    pub(crate) fn new(endpoints: Vec<String>, password: Option<Vec<u8>>) -> Self {
        assert!(!endpoints.is_empty(), "a client needs an endpoint");
        Self {
            endpoints,
            current: 0,
            links: HashMap::new(),
            password,
            timeouts: Timeouts::default(),
        }
    }

    /// The same client with other limits.
    pub(crate) fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The endpoint that commands go to first.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoints[self.current]
    }

    /// Connects if there is no connection yet.
    pub(crate) fn connect(&mut self) -> Result<(), ClientError> {
        self.entry().map(drop)
    }

    /// Executes one command: follows `MOVED`, and waits a while for a cluster that refuses with
    /// an error that means "certainly not applied".
    pub(crate) fn call(&mut self, args: &[&[u8]]) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.timeouts.retry;
        loop {
            let reply = self.call_redirected(args)?;
            if !is_retryable(&reply) || Instant::now() >= deadline {
                return Ok(reply);
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn call_redirected(&mut self, args: &[&[u8]]) -> Result<Reply, ClientError> {
        let mut endpoint = self.entry()?;
        for _ in 0..REDIRECTS_MAX {
            let reply = self.call_at(&endpoint, args)?;
            match moved_to(&reply) {
                Some(owner) => endpoint = owner,
                None => return Ok(reply),
            }
        }
        self.call_at(&endpoint, args)
    }

    fn call_at(&mut self, endpoint: &str, args: &[&[u8]]) -> Result<Reply, ClientError> {
        let link = self.link(endpoint)?;
        link.call(args).map_err(|error| {
            self.links.remove(endpoint);
            ClientError::Lost(format!("{endpoint} ({})", explain(&error)))
        })
    }

    /// The first of the given endpoints that can be connected to, beginning with the current.
    fn entry(&mut self) -> Result<String, ClientError> {
        let mut errors = Vec::new();
        for step in 0..self.endpoints.len() {
            let index = (self.current + step) % self.endpoints.len();
            let endpoint = self.endpoints[index].clone();
            match self.link(&endpoint) {
                Ok(_) => {
                    self.current = index;
                    return Ok(endpoint);
                }
                Err(ClientError::Unreachable(text) | ClientError::Lost(text)) => errors.push(text),
            }
        }
        Err(ClientError::Unreachable(errors.join("; ")))
    }

    fn link(&mut self, endpoint: &str) -> Result<&mut Link, ClientError> {
        if !self.links.contains_key(endpoint) {
            let unreachable =
                |error: &dyn fmt::Display| ClientError::Unreachable(format!("{endpoint}: {error}"));
            let mut link =
                Link::open(endpoint, self.timeouts).map_err(|e| unreachable(&explain(&e)))?;
            if let Some(password) = &self.password {
                match link.call(&[b"AUTH", b"default", password]) {
                    Ok(Reply::Error(text)) => return Err(unreachable(&text)),
                    Ok(_) => {}
                    Err(error) => return Err(unreachable(&explain(&error))),
                }
            }
            self.links.insert(endpoint.to_owned(), link);
        }
        Ok(self.links.get_mut(endpoint).expect("present or just inserted"))
    }
}

/// What an I/O error means for a person.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        _ => error.to_string(),
    }
}

/// The owner named by `-MOVED slot host:port`.
fn moved_to(reply: &Reply) -> Option<String> {
    let Reply::Error(text) = reply else { return None };
    let owner = text.strip_prefix("MOVED ")?.split(' ').nth(1)?;
    Some(owner.to_owned())
}

/// Errors that mean "certainly not applied, later it may work".
fn is_retryable(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(text)
        if text.starts_with("TRYAGAIN ") || text.starts_with("CLUSTERDOWN "))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// A server that gives one scripted reply per chunk of input, then closes; its endpoint.
    pub(crate) fn scripted(replies: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let endpoint = listener.local_addr().expect("address").to_string();
        std::thread::spawn(move || {
            let mut replies = replies.iter();
            'connections: for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let mut piece = [0; 4096];
                while stream.read(&mut piece).is_ok_and(|count| count > 0) {
                    let Some(reply) = replies.next() else { break 'connections };
                    if *reply == "close" {
                        break;
                    }
                    stream.write_all(reply.as_bytes()).expect("write");
                }
            }
        });
        endpoint
    }

    fn quick(endpoints: Vec<String>) -> Client {
        let second = Duration::from_secs(1);
        Client::new(endpoints, None).with_timeouts(Timeouts {
            connect: second,
            reply: second,
            retry: second,
        })
    }

    /// A reply in two pieces is one reply; an error that means "not applied" is tried again.
    #[test]
    fn retries_only_what_was_not_applied() {
        let endpoint = scripted(&["-TRYAGAIN later\r\n", "-CLUSTERDOWN no\r\n", ":5\r\n"]);
        let mut client = quick(vec![endpoint]);
        assert_eq!(client.call(&[b"INCR", b"a"]).expect("reply"), Reply::Integer(5));
        let endpoint = scripted(&["-UNCERTAIN outcome unknown\r\n", ":9\r\n"]);
        let reply = quick(vec![endpoint]).call(&[b"INCR", b"a"]).expect("reply");
        assert_eq!(reply, Reply::error("UNCERTAIN outcome unknown"));
    }

    /// `MOVED` leads to the owner.
    #[test]
    fn follows_moved() {
        let owner = scripted(&["$2\r\nhi\r\n"]);
        let moved: &'static str = format!("-MOVED 12182 {owner}\r\n").leak();
        let first = scripted(vec![moved].leak());
        let reply = quick(vec![first]).call(&[b"GET", b"foo"]).expect("reply");
        assert_eq!(reply, Reply::Bulk(b"hi".to_vec()));
    }

    /// Endless redirects end.
    #[test]
    fn gives_up_on_a_circle_of_redirects() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let endpoint = listener.local_addr().expect("address").to_string();
        let moved = format!("-MOVED 1 {endpoint}\r\n");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut piece = [0; 4096];
            while stream.read(&mut piece).is_ok_and(|count| count > 0) {
                stream.write_all(moved.as_bytes()).expect("write");
            }
        });
        let reply = quick(vec![endpoint]).call(&[b"GET", b"a"]).expect("reply");
        assert!(matches!(reply, Reply::Error(text) if text.starts_with("MOVED")));
    }

    /// A lost connection is never answered by sending again; the next command uses another
    /// endpoint.
    #[test]
    fn a_lost_connection_leaves_the_outcome_open() {
        let first = scripted(&["close"]);
        let second = scripted(&["+OK\r\n"]);
        let mut client = quick(vec![first, second]);
        let error = client.call(&[b"INCR", b"a"]).expect_err("closed");
        assert!(matches!(&error, ClientError::Lost(_)), "{error}");
        assert!(error.to_string().contains("not known"), "{error}");
    }

    /// Nobody there: every endpoint is named.
    #[test]
    fn names_every_endpoint_that_cannot_be_reached() {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            listener.local_addr().expect("address").to_string()
        };
        let (a, b) = (free(), free());
        let error = quick(vec![a.clone(), b.clone()]).connect().expect_err("nobody");
        let text = error.to_string();
        assert!(
            text.contains(&a) && text.contains(&b) && text.contains("nobody listens"),
            "{text}"
        );
    }
}
