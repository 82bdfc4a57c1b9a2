//! A minimal server on std threads that answers as a test wants.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use coracle_engine::Reply;
use coracle_net::resp::{Limits, Parsed, Protocol, RequestParser, encode_reply};

/// What to do with one request.
#[allow(dead_code, reason = "each test uses some of them")]
pub(crate) enum Answer {
    Reply(Reply),
    /// These bytes.
    Raw(&'static [u8]),
    /// Never answer this one.
    Silence,
    /// Close the connection.
    HangUp,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Called with the connection's number and the request.
type Handler = dyn Fn(u64, &[&[u8]]) -> Answer + Send + Sync;

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    killed: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(u64, &[&[u8]]) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a free port"), handler)
    }

    pub(crate) fn on(
        listener: TcpListener,
        handler: impl Fn(u64, &[&[u8]]) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        let addr = listener.local_addr().expect("bound");
        let killed = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (stop, open) = (Arc::clone(&killed), Arc::clone(&streams));
        let accepting = thread::spawn(move || {
            let number = AtomicU64::new(0);
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.expect("accepted");
                stream.set_nodelay(true).expect("a TCP socket");
                let mut open = open.lock().expect("no panic");
                open.push(stream.try_clone().expect("cloned"));
                let (handler, number) =
                    (Arc::clone(&handler), number.fetch_add(1, Ordering::SeqCst));
                thread::spawn(move || serve(stream, number, &*handler));
            }
        });
        Self { addr, killed, streams, accepting: Some(accepting) }
    }

    /// Closes everything; nobody can connect afterwards.
    pub(crate) fn kill(&mut self) {
        self.killed.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the accepting thread ends");
        }
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(mut stream: TcpStream, number: u64, handler: &Handler) {
    let (mut parser, mut args) = (RequestParser::new(Limits::DEFAULT), Vec::new());
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        while let Ok(Parsed::Complete { consumed }) = parser.parse(&input, &mut args) {
            let words: Vec<&[u8]> = args.iter().map(|range| &input[range.clone()]).collect();
            match handler(number, &words) {
                Answer::Reply(reply) => encode_reply(&reply, Protocol::Resp2, &mut output),
                Answer::Raw(bytes) => output.extend_from_slice(bytes),
                Answer::Silence => {}
                Answer::HangUp => {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            input.drain(..consumed);
        }
        if stream.write_all(&std::mem::take(&mut output)).is_err() {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => input.extend_from_slice(&buffer[..count]),
        }
    }
}

/// A store of its own, shared by clones.
#[allow(dead_code, reason = "not every test has one")]
#[derive(Clone, Default)]
pub(crate) struct Store(pub(crate) Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>);

#[allow(dead_code, reason = "not every test has one")]
impl Store {
    pub(crate) fn answer(&self, args: &[&[u8]]) -> Answer {
        let mut map = self.0.lock().expect("no panic");
        Answer::Reply(match args {
            [b"SET", key, value] => {
                map.insert(key.to_vec(), value.to_vec());
                Reply::OK
            }
            [b"GET", key] => match map.get(*key) {
                Some(value) => Reply::Bulk(value.clone()),
                None => Reply::Null,
            },
            [b"APPEND", key, value] => {
                let whole = map.entry(key.to_vec()).or_default();
                whole.extend_from_slice(value);
                Reply::Integer(whole.len() as i64)
            }
            [b"INCR", key] => {
                let value = map.entry(key.to_vec()).or_insert_with(|| b"0".to_vec());
                let next = String::from_utf8_lossy(value).parse::<i64>().expect("a number") + 1;
                *value = next.to_string().into_bytes();
                Reply::Integer(next)
            }
            _ => Reply::error("ERR unknown command"),
        })
    }
}

/// The reply of `CLUSTER SLOTS` for ranges of slots and their owners.
#[allow(dead_code, reason = "not every test has a cluster")]
pub(crate) fn slots(ranges: &[(u16, u16, SocketAddr)]) -> Reply {
    let row = |&(first, last, owner): &(u16, u16, SocketAddr)| {
        let host = Reply::Bulk(owner.ip().to_string().into_bytes());
        let node = Reply::Array(vec![host, Reply::Integer(owner.port().into())]);
        Reply::Array(vec![Reply::Integer(first.into()), Reply::Integer(last.into()), node])
    };
    Reply::Array(ranges.iter().map(row).collect())
}
