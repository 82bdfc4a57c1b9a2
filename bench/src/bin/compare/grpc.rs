//! The sliver of HTTP/2 and gRPC that `Put` on etcd takes (RFC 9113; etcd's `rpc.proto`).
//!
//! Requests are headers without compression and one data frame. Of the answers only the frame
//! headers are read: a stream that carried data before its end succeeded, because gRPC sends
//! failures as trailers alone.

use std::collections::VecDeque;

/// What a client says first, with empty settings (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Window that both sides start with (RFC 9113 §6.9.2).
const INITIAL_WINDOW: i64 = 65_535;

/// Received bytes after which the peer is told that it may send more.
const RETURN_WINDOW: u32 = 32_768;

/// Largest frame that may be sent and must be accepted without asking (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One write that is on its way.
struct Stream<T> {
    id: u32,
    has_data: bool,
    tag: T,
}

/// The client's end of one connection: bytes in, bytes out, no socket. `T` is the caller's mark
/// on a request.
pub(crate) struct Connection<T> {
    headers: Vec<u8>,
    next_stream: u32,
    open: VecDeque<Stream<T>>,
    send_window: i64,
    received: u32,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// A request that ended.
pub(crate) struct Done<T> {
    pub(crate) tag: T,
    pub(crate) succeeded: bool,
}

impl<T> Connection<T> {
    /// A connection to `authority`; the preface is the first output.
    pub(crate) fn new(authority: &str) -> Self {
        Self {
            headers: put_headers(authority),
            next_stream: 1,
            open: VecDeque::new(),
            send_window: INITIAL_WINDOW,
            received: 0,
            input: Vec::new(),
            output: PREFACE.to_vec(),
        }
    }

    /// Requests without an answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Whether the peer takes this many more bytes now.
    pub(crate) fn may_send(&self, message_bytes: usize) -> bool {
        self.send_window >= message_bytes as i64
    }

    /// Queues one `Put`. `message` is a gRPC message from [`put_message`].
    pub(crate) fn send(&mut self, message: &[u8], tag: T) {
        assert!(message.len() <= FRAME_BYTES_MAX, "{} bytes in one frame", message.len());
        assert!(self.may_send(message.len()), "the peer's window is {}", self.send_window);
        let id = self.next_stream;
        self.next_stream += 2;
        self.send_window -= message.len() as i64;
        frame_header(&mut self.output, self.headers.len(), HEADERS, END_HEADERS, id);
        self.output.extend_from_slice(&self.headers);
        frame_header(&mut self.output, message.len(), DATA, END_STREAM, id);
        self.output.extend_from_slice(message);
        self.open.push_back(Stream { id, has_data: false, tag });
    }

    /// What is to be written to the socket.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes what the socket yielded; adds to `done` what has ended.
    pub(crate) fn receive(&mut self, bytes: &[u8], done: &mut Vec<Done<T>>) -> Result<(), String> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while let Some((header, behind)) = rest.split_first_chunk::<9>() {
            let [a, b, c, kind, flags, stream @ ..] = *header;
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > FRAME_BYTES_MAX {
                return Err(format!("a frame of {len} bytes; the limit is {FRAME_BYTES_MAX}"));
            }
            let Some((body, behind)) = behind.split_at_checked(len) else { break };
            self.frame(kind, flags, u32::from_be_bytes(stream) & 0x7fff_ffff, body, done)?;
            rest = behind;
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        body: &[u8],
        done: &mut Vec<Done<T>>,
    ) -> Result<(), String> {
        match kind {
            DATA => {
                self.return_window(body.len());
                if let Some(open) = self.open.iter_mut().find(|open| open.id == stream) {
                    open.has_data |= !body.is_empty();
                }
            }
            SETTINGS if flags & ACK == 0 => {
                frame_header(&mut self.output, 0, SETTINGS, ACK, 0);
            }
            PING if flags & ACK == 0 => {
                frame_header(&mut self.output, body.len(), PING, ACK, 0);
                self.output.extend_from_slice(body);
            }
            WINDOW_UPDATE if stream == 0 => {
                let [a, b, c, d] = *body else { return Err("a window of another size".into()) };
                self.send_window += i64::from(u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff);
            }
            GOAWAY => return Err(format!("the peer closed: {}", String::from_utf8_lossy(body))),
            _ => {}
        }
        let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if (ends || kind == RST_STREAM)
            && let Some(at) = self.open.iter().position(|open| open.id == stream)
            && let Some(Stream { has_data, tag, .. }) = self.open.remove(at)
        {
            done.push(Done { tag, succeeded: has_data && kind != RST_STREAM });
        }
        Ok(())
    }

    /// Answers are small, so only the connection's window ever needs to be given back.
    fn return_window(&mut self, len: usize) {
        self.received += len as u32;
        if self.received >= RETURN_WINDOW {
            frame_header(&mut self.output, 4, WINDOW_UPDATE, 0, 0);
            self.output.extend_from_slice(&self.received.to_be_bytes());
            self.received = 0;
        }
    }
}

fn frame_header(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    let len = u32::try_from(len).expect("frames have at most 16 KiB").to_be_bytes();
    out.extend_from_slice(&[len[1], len[2], len[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Header block of a `Put`: literals that touch no table (RFC 7541 §6.2.2).
fn put_headers(authority: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    let mut text = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("header values here are short"));
        block.extend_from_slice(value.as_bytes());
    };
    text(&[0x04], "/etcdserverpb.KV/Put"); // :path
    text(&[0x01], authority); // :authority
    text(&[0x0f, 0x10], "application/grpc"); // content-type
    text(b"\x00\x02te", "trailers");
    block
}

/// A `PutRequest` behind gRPC's five bytes; the key starts at the returned offset.
pub(crate) fn put_message(key_bytes: usize, value: &[u8]) -> (Vec<u8>, usize) {
    let mut request = Vec::new();
    let mut field = |tag: u8, len: usize| {
        request.push(tag);
        let mut rest = len;
        while rest >= 0x80 {
            request.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        request.push(rest as u8);
        let start = request.len();
        request.resize(start + len, b'0');
        start
    };
    let key = field(0x0a, key_bytes);
    let start = field(0x12, value.len());
    request[start..].copy_from_slice(value);
    let mut message = vec![0];
    message
        .extend_from_slice(&u32::try_from(request.len()).expect("far below 4 GiB").to_be_bytes());
    message.append(&mut request);
    (message, 5 + key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame_header(&mut out, body.len(), kind, flags, stream);
        out.extend_from_slice(body);
        out
    }

    /// Field 1 and 2 as length-delimited, lengths as varints (Protocol Buffers encoding).
    #[test]
    fn put_is_encoded_as_protobuf_behind_a_grpc_length() {
        let (message, key) = put_message(3, &[7; 200]);
        assert_eq!(message[..5], [0, 0, 0, 0, 208]);
        assert_eq!(message[5..key], [0x0a, 3]);
        assert_eq!(message[key + 3..key + 6], [0x12, 0xc8, 1]);
        assert_eq!(message.len(), 5 + 208);
    }

    /// Split anywhere, the same answers come out; only the stream with data succeeded.
    #[test]
    fn answers_are_matched_in_any_order_and_in_any_pieces() {
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 3, b"x"));
        bytes.extend(frame(DATA, 0, 3, b"answer"));
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"failed"));
        bytes.extend(frame(PING, 0, 0, b"12345678"));
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 3, b"x"));
        bytes.extend(frame(RST_STREAM, 0, 5, &[0; 4]));
        for size in [1, 2, 9, 10, 1000] {
            let mut connection = Connection::new("a:1");
            for tag in ["one", "two", "three"] {
                connection.send(b"m", tag);
            }
            connection.take_output();
            let mut done = Vec::new();
            for piece in bytes.chunks(size) {
                connection.receive(piece, &mut done).unwrap();
            }
            let done: Vec<_> = done.iter().map(|done| (done.tag, done.succeeded)).collect();
            assert_eq!(done, [("one", false), ("two", true), ("three", false)], "pieces of {size}");
            assert_eq!(connection.in_flight(), 0);
            let mut acks = frame(SETTINGS, ACK, 0, &[]);
            acks.extend(frame(PING, ACK, 0, b"12345678"));
            assert_eq!(connection.take_output(), acks, "pieces of {size}");
        }
    }

    #[test]
    fn the_window_closes_and_opens() {
        let mut connection = Connection::new("a:1");
        let message = vec![0; 4096];
        let mut sent = 0;
        while connection.may_send(message.len()) {
            connection.send(&message, ());
            sent += 1;
        }
        assert_eq!(sent, 15);
        let update = frame(WINDOW_UPDATE, 0, 0, &8192u32.to_be_bytes());
        connection.receive(&update, &mut Vec::new()).unwrap();
        assert!(connection.may_send(message.len()));
    }

    #[test]
    fn a_closing_peer_and_a_huge_frame_are_errors() {
        for bytes in [frame(GOAWAY, 0, 0, b"why"), vec![0xff; 9]] {
            assert!(Connection::<()>::new("a:1").receive(&bytes, &mut Vec::new()).is_err());
        }
    }
}
