//! Replies and requests as bytes.

use coracle_engine::Reply;

use super::Protocol;
use super::number::{push_head, push_integer, push_unsigned};

/// Appends `reply` to `out`.
pub fn encode_reply(reply: &Reply, protocol: Protocol, out: &mut Vec<u8>) {
    let resp3 = protocol == Protocol::Resp3;
    match reply {
        Reply::Status(text) => push_line(b'+', text, out),
        Reply::Error(text) => push_line(b'-', text, out),
        Reply::Integer(value) => {
            out.push(b':');
            push_integer(*value, out);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Bulk(bytes) => push_bulk(bytes, out),
        Reply::Value(slice) => push_bulk(slice.bytes(), out),
        Reply::Null => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
        Reply::Array(items) => {
            push_head(b'*', items.len(), out);
            push_all(items, protocol, out);
        }
        Reply::Set(items) => {
            push_head(if resp3 { b'~' } else { b'*' }, items.len(), out);
            push_all(items, protocol, out);
        }
        Reply::Map(pairs) => {
            if resp3 {
                push_head(b'%', pairs.len(), out);
            } else {
                push_head(b'*', 2 * pairs.len(), out);
            }
            for (key, value) in pairs {
                encode_reply(key, protocol, out);
                encode_reply(value, protocol, out);
            }
        }
        Reply::Double(value) => {
            let text = double_text(*value);
            if resp3 {
                push_line(b',', &text, out);
            } else {
                push_bulk(text.as_bytes(), out);
            }
        }
        Reply::Boolean(value) => out.extend_from_slice(match (resp3, value) {
            (true, true) => b"#t\r\n",
            (true, false) => b"#f\r\n",
            (false, true) => b":1\r\n",
            (false, false) => b":0\r\n",
        }),
        Reply::Verbatim(text) => {
            if resp3 {
                push_head(b'=', text.len() + 4, out);
                out.extend_from_slice(b"txt:");
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(b"\r\n");
            } else {
                push_bulk(text.as_bytes(), out);
            }
        }
    }
}

/// Appends a command as an array of bulks, the form every server understands.
pub fn encode_request(args: &[&[u8]], out: &mut Vec<u8>) {
    push_head(b'*', args.len(), out);
    for arg in args {
        push_bulk(arg, out);
    }
}

fn push_all(items: &[Reply], protocol: Protocol, out: &mut Vec<u8>) {
    for item in items {
        encode_reply(item, protocol, out);
    }
}

fn push_bulk(bytes: &[u8], out: &mut Vec<u8>) {
    const FRAMING_BYTES: usize = 1 + 20 + 2 + 2;
    out.reserve(bytes.len() + FRAMING_BYTES);
    out.push(b'$');
    push_unsigned(bytes.len() as u64, out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// A line end inside the text would let it forge replies; it becomes spaces, as in Redis.
fn push_line(prefix: u8, text: &str, out: &mut Vec<u8>) {
    out.push(prefix);
    let from = out.len();
    out.extend_from_slice(text.as_bytes());
    for byte in out.iter_mut().skip(from).filter(|b| matches!(b, b'\r' | b'\n')) {
        *byte = b' ';
    }
    out.extend_from_slice(b"\r\n");
}

/// The shortest text that reads back as the same number; with an exponent where plain digits
/// would be long.
fn double_text(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        "nan".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "inf" } else { "-inf" }.to_owned()
    } else if size == 0.0 || (1e-5..1e17).contains(&size) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}
