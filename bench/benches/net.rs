//! Codecs: requests and replies of the Redis protocol, frames between cores.
//!
//! Times are per call; a call handles 16 commands or one frame of 32 entries, each of 4 KiB.

use std::hint::black_box;

use coracle_engine::{PeerMessage, Reply, Slice};
use coracle_net::frame::{Decoder, FrameBuf, encode};
use coracle_net::resp::{
    Limits, Parsed, Protocol, RequestParser, Skipped, encode_reply, encode_request, skip_reply,
};
use coracle_raft::{
    Body, Entry, EntryKind, GroupId, LogIndex, LogPosition, Message, NodeId, Payload, Term,
};
use criterion::{Criterion, Throughput};

const VALUE_BYTES: usize = 4096;
const PIPELINE: usize = 16;
const ENTRIES: u64 = 32;

fn payload() -> Payload {
    let bytes = vec![b'v'; VALUE_BYTES];
    let checksum = crc32c::crc32c(&bytes);
    Payload::new(bytes, checksum)
}

/// Parses everything in `input`; returns how many commands it held.
fn parse_all(parser: &mut RequestParser, input: &[u8]) -> usize {
    let (mut at, mut commands) = (0, 0);
    let mut args = Vec::new();
    while at < input.len() {
        match parser.parse(&input[at..], &mut args).expect("the input is well-formed") {
            Parsed::Complete { consumed } => {
                black_box(&args);
                at += consumed;
                commands += 1;
            }
            other => panic!("the input is made of complete commands, not {other:?}"),
        }
    }
    commands
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resp_requests");
    let value = vec![b'v'; VALUE_BYTES];
    let mut input = Vec::new();
    for i in 0..PIPELINE {
        encode_request(&[b"SET", format!("key:{i:08}").as_bytes(), &value], &mut input);
    }
    group.throughput(Throughput::Elements(PIPELINE as u64));
    group.bench_function("parse_16_set_4k", |bencher| {
        let mut parser = RequestParser::new(Limits::DEFAULT);
        bencher.iter(|| assert_eq!(parse_all(&mut parser, black_box(&input)), PIPELINE));
    });
    let mut small = Vec::new();
    for i in 0..PIPELINE {
        encode_request(&[b"GET", format!("key:{i:08}").as_bytes()], &mut small);
    }
    group.bench_function("parse_16_get", |bencher| {
        let mut parser = RequestParser::new(Limits::DEFAULT);
        bencher.iter(|| assert_eq!(parse_all(&mut parser, black_box(&small)), PIPELINE));
    });
    group.finish();
}

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resp_replies");
    group.throughput(Throughput::Elements(PIPELINE as u64));
    let value = Reply::Value(Slice::new(payload(), 0, VALUE_BYTES));
    for (name, reply) in [("ok", Reply::OK), ("integer", Reply::Integer(123_456)), ("4k", value)] {
        group.bench_function(format!("encode_16_{name}"), |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                for _ in 0..PIPELINE {
                    encode_reply(black_box(&reply), Protocol::Resp2, &mut out);
                }
                black_box(&out);
            });
        });
        let mut encoded = Vec::new();
        encode_reply(&reply, Protocol::Resp2, &mut encoded);
        group.bench_function(format!("skip_16_{name}"), |bencher| {
            bencher.iter(|| {
                for _ in 0..PIPELINE {
                    let skipped = skip_reply(black_box(&encoded));
                    assert!(matches!(skipped, Ok(Skipped::Complete { .. })), "{skipped:?}");
                }
            });
        });
    }
    group.finish();
}

/// One append of 32 entries, as a busy leader sends them.
fn append() -> PeerMessage {
    let term = Term::new(3);
    let entries = (1..=ENTRIES).map(|offset| Entry {
        term,
        index: LogIndex::new(1000 + offset),
        kind: EntryKind::Command,
        payload: payload(),
    });
    let body = Body::Append {
        prev: LogPosition { term, index: LogIndex::new(1000) },
        entries: entries.collect(),
        commit: LogIndex::new(990),
        round: 17,
    };
    let (from, to) = (NodeId::new(1), NodeId::new(2));
    PeerMessage::Raft { group: GroupId::new(5), message: Message { from, to, term, body } }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("peer_frames");
    group.throughput(Throughput::Bytes(ENTRIES * VALUE_BYTES as u64));
    let messages = [append()];
    group.bench_function("encode_32_entries_4k", |bencher| {
        let mut frame = FrameBuf::new();
        bencher.iter(|| {
            frame.clear();
            encode(black_box(&messages), &mut frame).expect("far below the limit");
            black_box(frame.total_len());
        });
    });
    let mut frame = FrameBuf::new();
    encode(&messages, &mut frame).expect("far below the limit");
    let bytes: Vec<u8> = frame.parts().iter().flat_map(|part| part.bytes()).copied().collect();
    // 16 KiB is what a receive buffer of the ring holds.
    for piece_bytes in [16 * 1024, bytes.len()] {
        group.bench_function(format!("decode_32_entries_4k_pieces_of_{piece_bytes}"), |bencher| {
            let mut decoder = Decoder::new();
            bencher.iter(|| {
                let mut frames = 0;
                for piece in black_box(&bytes).chunks(piece_bytes) {
                    decoder.push(piece);
                    while let Some(frame) = decoder.next().expect("the frame is well-formed") {
                        black_box(frame);
                        frames += 1;
                    }
                }
                assert_eq!(frames, 1);
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    requests(&mut criterion);
    replies(&mut criterion);
    frames(&mut criterion);
    criterion.final_summary();
}
