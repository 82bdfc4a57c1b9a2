//! Whole replies out of a stream of bytes, for blocking clients.

use std::io::{self, Read};

use coracle_engine::Reply;

use super::ReplyParser;

/// Asked of the stream at once.
const PIECE_BYTES: usize = 64 << 10;

/// Reads replies off a stream, whatever the pieces in which they arrive.
#[derive(Debug)]
pub struct ReplyReader {
    parser: ReplyParser,
    /// Read and not taken yet.
    input: Vec<u8>,
    reply_bytes_max: usize,
}

impl ReplyReader {
    /// At the beginning of a connection. Replies longer than about `reply_bytes_max` are refused.
    pub const fn new(reply_bytes_max: usize) -> Self {
        Self { parser: ReplyParser::new(), input: Vec::new(), reply_bytes_max }
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// Those of the stream; `UnexpectedEof` at its end, `InvalidData` for what is no reply.
    pub fn read(&mut self, stream: &mut impl Read) -> io::Result<Reply> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let parsed = self.parser.parse_reply(&self.input);
            if let Some((reply, consumed)) = parsed.map_err(|error| invalid(error.to_string()))? {
                self.input.drain(..consumed);
                return Ok(reply);
            }
            if self.input.len() > self.reply_bytes_max {
                return Err(invalid(format!("the reply exceeds {} bytes", self.reply_bytes_max)));
            }
            match stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend(piece.iter().take(count)),
                // A process that was stopped goes on.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes out what was read behind the last reply.
    pub fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that arrives byte by byte, with a signal before each.
    struct Trickle<'a>(&'a [u8], bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = self.0.len().min(1);
            self.0.read(&mut buffer[..count])
        }
    }

    /// Replies do not depend on the pieces they come in, and nothing behind them is lost.
    #[test]
    fn replies_are_read_from_any_pieces() {
        let bytes = b":1\r\n$2\r\nhi\r\n*1\r\n+OK\r\nrest";
        let whole: &mut dyn Read = &mut &bytes[..];
        let slow: &mut dyn Read = &mut Trickle(bytes, false);
        for (mut stream, rest) in [(whole, &b"rest"[..]), (slow, b"")] {
            let mut reader = ReplyReader::new(1024);
            for want in
                [Reply::Integer(1), Reply::Bulk(b"hi".to_vec()), Reply::Array(vec![Reply::OK])]
            {
                assert_eq!(reader.read(&mut stream).expect("a reply"), want);
            }
            assert_eq!(reader.take_rest(), rest);
        }
    }

    /// An end, garbage and endless replies are errors of their own kinds.
    #[test]
    fn what_is_no_reply_is_an_error() {
        let endless = [&b"$100000\r\n"[..], &[b'x'; 50_000]].concat();
        let cases: [(&[u8], io::ErrorKind); 4] = [
            (b"", io::ErrorKind::UnexpectedEof),
            (b"$5\r\nab", io::ErrorKind::UnexpectedEof),
            (b"hello\r\n", io::ErrorKind::InvalidData),
            (&endless, io::ErrorKind::InvalidData),
        ];
        for (bytes, kind) in cases {
            let error = ReplyReader::new(1000).read(&mut &bytes[..]).expect_err("no reply");
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
