//! A raw client of the Redis protocol: one connection, no retries, no redirects.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use coracle_engine::Reply;
use coracle_net::resp::{ReplyReader, encode_request};

/// Longest reply that a test expects.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// How long a reply may take.
const REPLY_MAX: Duration = Duration::from_secs(30);

/// One connection.
pub struct Client {
    stream: TcpStream,
    replies: ReplyReader,
}

impl Client {
    /// Connects to a port on loopback.
    pub fn connect(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, replies: ReplyReader::new(REPLY_BYTES_MAX) };
        client.reply_within(REPLY_MAX);
        Ok(client)
    }

    /// Changes how long a reply may take.
    pub fn reply_within(&mut self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("set a timeout");
        self.stream.set_write_timeout(Some(limit)).expect("set a timeout");
    }

    /// Sends a command and waits for its reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        self.send(args)?;
        self.reply()
    }

    /// [`Self::call`] for a command without spaces in its arguments; panics without a reply.
    pub fn run(&mut self, line: &str) -> Reply {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.call(&args).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Sends a command.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<()> {
        let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        let mut request = Vec::new();
        encode_request(&args, &mut request);
        self.stream.write_all(&request)
    }

    /// Sends any bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Waits for the next reply. The end of the connection is an error.
    pub fn reply(&mut self) -> io::Result<Reply> {
        self.replies.read(&mut self.stream)
    }

    /// The next `count` bytes, whatever they are.
    pub fn read_exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = self.replies.take_rest();
        let had = bytes.len();
        assert!(had <= count, "{had} bytes are there, only {count} wanted");
        bytes.resize(count, 0);
        self.stream.read_exact(&mut bytes[had..])?;
        Ok(bytes)
    }

    /// Everything until the server closes the connection; an error if it does not.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = self.replies.take_rest();
        match self.stream.read_to_end(&mut bytes) {
            // A server that closes with unread input resets the connection.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(bytes),
        }
    }

    /// A line of `CLUSTER INFO`.
    pub fn info_line(&mut self, name: &str) -> io::Result<String> {
        let text = text(&self.call(&["CLUSTER", "INFO"])?);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.unwrap_or_default().to_owned())
    }
}

/// The text of a reply that has one, else its debug form.
pub fn text(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Verbatim(text) | Reply::Error(text) => text.clone(),
        Reply::Status(text) => (*text).to_owned(),
        other => format!("{other:?}"),
    }
}

/// A reply with a value.
pub fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}
