//! A small blocking client for what happens beside the load: asking for the layout, checking.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use coracle_engine::Reply;
use coracle_net::resp::{self, ReplyParser};

/// Nobody answers where somebody should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable(pub String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreachable: {}", self.0)
    }
}

impl std::error::Error for Unreachable {}

/// The addresses of `host:port`; the text of the error names it.
pub(crate) fn resolve(endpoint: &str) -> Result<SocketAddr, Unreachable> {
    let addrs = endpoint.to_socket_addrs();
    let why = match addrs.map(|mut addrs| addrs.next()) {
        Ok(Some(addr)) => return Ok(addr),
        Ok(None) => "the name has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Unreachable(format!("{endpoint}: {why}")))
}

/// One blocking connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    parser: ReplyParser,
    input: Vec<u8>,
    consumed: usize,
}

impl Client {
    /// Connects; `timeout` also bounds every later wait for an answer.
    pub(crate) fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, parser: ReplyParser::new(), input: Vec::new(), consumed: 0 })
    }

    /// Sends one request and waits for its reply.
    pub(crate) fn call(&mut self, args: &[&[u8]]) -> io::Result<Reply> {
        let mut request = Vec::new();
        resp::encode_request(args, &mut request);
        self.send(&request)?;
        self.receive()
    }

    /// Sends encoded requests.
    pub(crate) fn send(&mut self, requests: &[u8]) -> io::Result<()> {
        self.stream.write_all(requests)
    }

    /// Waits for the next reply.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        loop {
            let parsed = self.parser.parse_reply(&self.input[self.consumed..]);
            let parsed = parsed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if let Some((reply, bytes)) = parsed {
                self.consumed += bytes;
                return Ok(reply);
            }
            self.input.drain(..self.consumed);
            self.consumed = 0;
            let mut more = [0; 1 << 16];
            match self.stream.read(&mut more) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&more[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
