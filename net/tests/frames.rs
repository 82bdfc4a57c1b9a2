//! Peer frames: what goes in comes out, in pieces of any size; damage is found and never panics.

use coracle_engine::command::{Access, Command};
use coracle_engine::{
    CoreAddr, CoreId, DiskSpace, EntriesAnswer, EntriesWanted, Forward, PeerMessage, Reply, SlotId,
    ValueAnswer, ValueWanted, WallMillis,
};
use coracle_net::frame::{
    Decoder, FRAME_BYTES_MAX, FrameBuf, FrameError, HEADER_BYTES_MAX, Hello, Incoming, Part,
    REFUSAL_BYTES_MAX, Refusal, RefusalKind, SHARED_BYTES_MIN, TooLong, VERSION, encode,
    encode_hello, encode_refusal,
};
use coracle_net::peers::Lineage;
use coracle_raft::{
    AppendOutcome, Body, Entry, EntryKind, GroupId, LogIndex, LogPosition, Message, NodeId,
    Payload, Term,
};
use proptest::prelude::*;

fn payload(bytes: &[u8]) -> Payload {
    Payload::new(bytes.to_vec(), crc32c::crc32c(bytes))
}

fn position(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term::new(term), index: LogIndex::new(index) }
}

fn raft(group: u32, body: Body) -> PeerMessage {
    PeerMessage::Raft {
        group: GroupId::new(group),
        message: Message {
            from: NodeId::new(1),
            to: NodeId::new(2),
            term: Term::new(0x0102_0304_0506_0708),
            body,
        },
    }
}

fn entry(term: u64, index: u64, kind: EntryKind, bytes: &[u8]) -> Entry {
    Entry { term: Term::new(term), index: LogIndex::new(index), kind, payload: payload(bytes) }
}

fn append(prev: u64, payloads: &[&[u8]]) -> PeerMessage {
    let entries = (prev + 1..)
        .zip(payloads)
        .map(|(index, bytes)| entry(3, index, EntryKind::Command, bytes))
        .collect();
    let commit = LogIndex::new(prev);
    raft(7, Body::Append { prev: position(3, prev), entries, commit, round: 9 })
}

fn forward(id: u64, access: Access, bytes: &[u8]) -> PeerMessage {
    PeerMessage::Forward(Forward {
        id,
        at: WallMillis(1_700_000_000_000),
        command: Command { slot: SlotId::of_key(b"key"), access, payload: payload(bytes) },
    })
}

fn reply(id: u64, reply: Reply) -> PeerMessage {
    PeerMessage::ForwardReply { id, reply }
}

const fn came_later(message: &PeerMessage) -> bool {
    matches!(message, PeerMessage::Digests(_) | PeerMessage::Space(_))
}

const fn asks_for_a_snapshot(message: &PeerMessage) -> bool {
    let PeerMessage::Raft { message, .. } = message else { return false };
    matches!(message.body, Body::SnapshotWanted { .. })
}

/// One message of each kind, and of each outcome within a kind.
fn one_of_each() -> Vec<PeerMessage> {
    let index = LogIndex::new;
    vec![
        raft(0, Body::PreVote { last: position(5, 6) }),
        raft(1, Body::PreVoteResponse { granted: true }),
        raft(2, Body::Vote { last: position(5, 6), transfer: true }),
        raft(3, Body::VoteResponse { granted: false }),
        raft(
            4,
            Body::Append {
                prev: position(5, 6),
                entries: vec![
                    entry(5, 7, EntryKind::Empty, b""),
                    entry(5, 8, EntryKind::Command, b"command"),
                    entry(6, 9, EntryKind::Membership, b"membership"),
                ],
                commit: index(5),
                round: 77,
            },
        ),
        append(10, &[]),
        raft(
            5,
            Body::AppendResponse {
                outcome: AppendOutcome::Accepted { matched: index(9) },
                round: 77,
            },
        ),
        raft(
            5,
            Body::AppendResponse {
                outcome: AppendOutcome::Rejected { prev: index(9), hint: position(4, 3) },
                round: 78,
            },
        ),
        forward(11, Access::Write, b"encoded command"),
        forward(12, Access::Read, b"read"),
        raft(6, Body::Heartbeat { commit: index(9), round: 79 }),
        raft(6, Body::HeartbeatResponse { round: 79 }),
        reply(11, Reply::OK),
        reply(12, Reply::Array(vec![Reply::Null, Reply::Bulk(b"value".to_vec())])),
        raft(6, Body::ReadIndex { context: 80 }),
        raft(6, Body::ReadIndexResponse { context: 80, index: Some(index(9)) }),
        raft(6, Body::ReadIndexResponse { context: 81, index: None }),
        PeerMessage::Leads(vec![
            (GroupId::new(1), Term::new(4)),
            (GroupId::new(u32::MAX), Term::new(u64::MAX)),
        ]),
        PeerMessage::Leads(vec![]),
        PeerMessage::Digests(payload(b"digests")),
        PeerMessage::Space(DiskSpace::Ample),
        PeerMessage::Space(DiskSpace::Out),
        raft(6, Body::TimeoutNow),
        raft(
            7,
            Body::Snapshot {
                base: position(8, 100),
                membership: payload(b"members"),
                piece: 2,
                done: true,
                payload: payload(b"piece of a snapshot"),
                round: 82,
            },
        ),
        raft(7, Body::SnapshotResponse { base: position(8, 100), next_piece: 3, round: 82 }),
        raft(7, Body::SnapshotWanted { first: index(101) }),
    ]
}

fn value_wanted(group: u32, version: u64, key: &[u8]) -> PeerMessage {
    let (group, version) = (GroupId::new(group), LogIndex::new(version));
    PeerMessage::ValueWanted(ValueWanted { id: 90, group, version, key: payload(key) })
}

fn value_answer(at: u64, value: Option<&[u8]>) -> PeerMessage {
    let (at, value) = (LogIndex::new(at), value.map(payload));
    PeerMessage::ValueAnswer(ValueAnswer { id: 90, at, value })
}

/// Requests for values, and answers to them.
fn values() -> Vec<PeerMessage> {
    vec![
        value_wanted(5, 1 << 40, b"key"),
        value_wanted(u32::MAX, u64::MAX, b""),
        forward(10, Access::Read, b"between them"),
        value_answer(17, Some(b"a value of the key")),
        value_answer(18, Some(b"")),
        value_answer(u64::MAX, None),
    ]
}

fn entries_wanted(group: u32, first: LogPosition, last: u64) -> PeerMessage {
    let (group, last) = (GroupId::new(group), LogIndex::new(last));
    PeerMessage::EntriesWanted(EntriesWanted { id: 91, group, first, last })
}

fn entries_answer(base: u64, entries: Vec<Entry>) -> PeerMessage {
    let base = LogIndex::new(base);
    PeerMessage::EntriesAnswer(EntriesAnswer { id: 91, base, entries })
}

/// Requests for entries, and answers to them.
fn entries() -> Vec<PeerMessage> {
    vec![
        entries_wanted(5, position(3, 1 << 40), 1 << 41),
        entries_wanted(u32::MAX, position(u64::MAX, u64::MAX), 0),
        append(3, &[b"between them"]),
        entries_answer(
            6,
            vec![
                entry(5, 7, EntryKind::Empty, b""),
                entry(5, 8, EntryKind::Command, b"command"),
                entry(6, 9, EntryKind::Membership, b"membership"),
            ],
        ),
        entries_answer(u64::MAX, vec![]),
    ]
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        cluster_id: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        from: CoreAddr { node: NodeId::new(1), core: CoreId(2) },
        to: CoreAddr { node: NodeId::new(3), core: CoreId(4) },
        lineage: Lineage::from_parts(0x0a0b_0c0d, 5, vec![0x1111, 0x2222]).expect("plausible"),
    }
}

fn bytes_of(frame: &FrameBuf) -> Vec<u8> {
    let bytes: Vec<_> = frame.parts().iter().flat_map(|part| part.bytes()).copied().collect();
    assert_eq!(bytes.len(), frame.total_len(), "total_len counts the bytes");
    bytes
}

fn encoded(messages: &[PeerMessage]) -> Vec<u8> {
    let mut frame = FrameBuf::new();
    encode(messages, &mut frame).expect("no message is too long");
    bytes_of(&frame)
}

/// The frames in `pieces`, and the error that ended them.
fn decode<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Incoming>, Result<(), FrameError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error.clone()), "an error stays");
                    return (frames, Err(error));
                }
            }
        }
    }
    (frames, Ok(()))
}

/// The messages in `pieces`, whatever frames they came in.
fn decode_messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<PeerMessage> {
    let (frames, end) = decode(pieces);
    assert_eq!(end, Ok(()), "the bytes are whole");
    let messages = frames.into_iter().flat_map(|frame| match frame {
        Incoming::Messages(messages) => messages,
        other => panic!("not messages: {other:?}"),
    });
    messages.collect()
}

fn decode_error(bytes: &[u8]) -> FrameError {
    let whole = decode([bytes]).1.expect_err("the bytes are damaged");
    assert_eq!(decode(bytes.chunks(1)).1, Err(whole.clone()), "pieces do not matter");
    whole
}

#[test]
fn every_kind_of_message_arrives_in_one_frame() {
    for messages in [one_of_each(), values(), entries()] {
        let (frames, end) = decode([encoded(&messages).as_slice()]);
        assert_eq!(end, Ok(()));
        assert_eq!(frames, [Incoming::Messages(messages)]);
    }
}

#[test]
fn checksums_of_payloads_are_taken_from_their_creator() {
    let messages = one_of_each();
    let arrived = decode_messages([encoded(&messages).as_slice()]);
    // Payloads are equal only with equal checksums, so this compares them.
    assert_eq!(arrived, messages);
    let forged = Payload::new(b"command".to_vec(), 1234);
    let command = Command { slot: SlotId::of_key(b"k"), access: Access::Write, payload: forged };
    let forward = Forward { id: 1, at: WallMillis(0), command };
    let error = decode_error(&encoded(&[PeerMessage::Forward(forward)]));
    let got = crc32c::crc32c(b"command");
    assert_eq!(error, FrameError::BadChecksum { what: "payload", got, expected: 1234 });
}

#[test]
fn the_handshake_arrives() {
    let mut frame = FrameBuf::new();
    encode_hello(&hello(), &mut frame);
    encode_refusal(RefusalKind::Amnesia, "wrong cluster: mine is é", &mut frame);
    encode(&one_of_each(), &mut frame).expect("short");
    let want = [
        Incoming::Hello(hello()),
        Incoming::Refusal(Refusal {
            kind: RefusalKind::Amnesia,
            text: "wrong cluster: mine is é".to_owned(),
        }),
        Incoming::Messages(one_of_each()),
    ];
    let bytes = bytes_of(&frame);
    assert_eq!(decode([bytes.as_slice()]), (want.to_vec(), Ok(())));
    assert_eq!(decode(bytes.chunks(1)), (want.to_vec(), Ok(())));
}

#[test]
fn long_refusals_are_cut_between_characters() {
    let mut frame = FrameBuf::new();
    encode_refusal(RefusalKind::Other, &format!("x{}", "é".repeat(REFUSAL_BYTES_MAX)), &mut frame);
    let text = format!("x{}", "é".repeat((REFUSAL_BYTES_MAX - 1) / 2));
    let want = Refusal { kind: RefusalKind::Other, text };
    assert_eq!(decode([bytes_of(&frame).as_slice()]).0, [Incoming::Refusal(want)]);
}

/// The bytes of version 1 must never change: nodes of two builds talk to each other, and the
/// features of rkyv decide them. `UPDATE_GOLDEN=1` rewrites the file.
#[test]
fn version_1_has_golden_bytes() {
    let mut frame = FrameBuf::new();
    encode_hello(&hello(), &mut frame);
    encode_refusal(RefusalKind::Amnesia, "no", &mut frame);
    let (latest, others): (Vec<_>, Vec<_>) =
        one_of_each().into_iter().partition(asks_for_a_snapshot);
    let (later, first): (Vec<_>, Vec<_>) = others.into_iter().partition(came_later);
    encode(&first, &mut frame).expect("short");
    // Of kinds that came later: what was there before stays as it was.
    encode(&later, &mut frame).expect("short");
    encode(&values(), &mut frame).expect("short");
    encode(&latest, &mut frame).expect("short");
    encode(&entries(), &mut frame).expect("short");
    let text: String = bytes_of(&frame)
        .chunks(16)
        .map(|row| {
            let mut line: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            line.insert(row.len().min(8), String::new());
            line.join(" ").trim_end().to_owned() + "\n"
        })
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/frames_v1.hex");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("the testdata folder can be written");
    }
    let golden = std::fs::read_to_string(path).expect("the golden file is there");
    assert_eq!(text, golden);
}

#[test]
fn every_split_in_two_gives_the_same() {
    let messages = [one_of_each(), values(), entries()].concat();
    let bytes = encoded(&messages);
    for split in 0..=bytes.len() {
        let (first, second) = bytes.split_at(split);
        assert_eq!(decode_messages([first, second]), messages, "split at {split}");
        let (frames, end) = decode([first]);
        assert_eq!(end, Ok(()), "a beginning of {split} bytes is no error");
        assert_eq!(frames.len(), usize::from(split == bytes.len()), "{split} bytes");
    }
}

#[test]
fn every_damaged_byte_is_found() {
    let bytes = encoded(&[one_of_each(), values(), entries()].concat());
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            // A longer declared length only waits; everything else is an error.
            let (frames, end) = decode([damaged.as_slice()]);
            assert_eq!(frames, [], "byte {at}");
            let length = (8..16).contains(&at);
            assert!(end.is_err() || length, "byte {at} flipped by {flip:#x} passes");
        }
    }
}

#[test]
fn strangers_are_told_apart() {
    let bytes = encoded(&one_of_each());
    let with = |at: usize, new: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + new.len()].copy_from_slice(new);
        decode_error(&changed)
    };
    for redis in [b"*1\r\n$4\r\nPING\r\n".as_slice(), b"PING\r\n", b"h"] {
        let error = decode_error(redis);
        assert_eq!(error, FrameError::BadMagic { offset: 0, got: redis[0], expected: 0xc7 });
        assert!(error.to_string().contains("this is a peer port"), "{error}");
        let answer = error.hint_reply().expect("a Redis client gets an answer");
        assert!(answer.starts_with(b"-ERR this is a peer port") && answer.ends_with(b"\r\n"));
    }
    let tls = decode_error(b"\x16\x03\x01");
    assert_eq!(tls.hint_reply(), None);
    assert!(!tls.to_string().contains("Redis"), "{tls}");
    let error = with(3, b"x");
    assert_eq!(error, FrameError::BadMagic { offset: 3, got: b'x', expected: b'C' });
    assert_eq!(error.hint_reply(), None);
    assert_eq!(with(4, &[2, 0]), FrameError::UnknownVersion { version: 2, known: 1 });
    assert_eq!(with(4, &[0, 0]), FrameError::UnknownVersion { version: 0, known: 1 });
    assert_eq!(with(6, &[9]), FrameError::BadHeader("unknown kind of frame"));
    assert_eq!(with(20, &[1]), FrameError::BadHeader("reserved bytes are not zero"));
    assert!(matches!(with(28, &[0, 0]), FrameError::BadChecksum { what: "frame header", .. }));
}

/// The frame limit at n - 1, n and n + 1, declared but not sent.
#[test]
fn declared_lengths_have_limits() {
    const FIXED: u64 = 32;
    let declare = |header: u64, tail: u64| {
        let mut fixed = encoded(&one_of_each())[..32].to_vec();
        fixed[8..12].copy_from_slice(&(header as u32).to_le_bytes());
        fixed[12..16].copy_from_slice(&(tail as u32).to_le_bytes());
        decode([fixed.as_slice()]).1
    };
    let header_max = HEADER_BYTES_MAX as u64;
    let frame_max = FRAME_BYTES_MAX as u64;
    assert_eq!(declare(header_max - 1, 0), Ok(()));
    assert_eq!(declare(header_max, 0), Ok(()));
    let bytes = header_max + 1;
    let error = FrameError::TooLarge { what: "frame header", bytes, limit_bytes: header_max };
    assert_eq!(declare(bytes, 0), Err(error));
    assert_eq!(declare(16, frame_max - FIXED - 17), Ok(()));
    assert_eq!(declare(16, frame_max - FIXED - 16), Ok(()));
    let bytes = frame_max + 1;
    let error = FrameError::TooLarge { what: "frame", bytes, limit_bytes: frame_max };
    assert_eq!(declare(16, frame_max - FIXED - 15), Err(error));
    assert!(declare(u64::from(u32::MAX), u64::from(u32::MAX)).is_err());
}

/// Long payloads are sent from where they are; short ones, and all headers, are copied together.
#[test]
fn long_payloads_are_shared_and_short_ones_copied() {
    let short = vec![1; SHARED_BYTES_MIN - 1];
    let long = vec![2; SHARED_BYTES_MIN];
    let messages = [append(4, &[&short, &long, &short, &short]), append(8, &[&long, &long])];
    let mut frame = FrameBuf::new();
    encode(&messages, &mut frame).expect("short");
    let shape: Vec<_> = frame
        .parts()
        .iter()
        .map(|part| match part {
            Part::Bytes(_) => 'b',
            Part::Shared(shared) => {
                let PeerMessage::Raft { message, .. } = &messages[0] else { unreachable!() };
                let Body::Append { entries, .. } = &message.body else { unreachable!() };
                let same = std::sync::Arc::ptr_eq(&shared.shared(), &entries[1].payload.shared());
                if same { 'S' } else { 's' }
            }
        })
        .collect();
    assert_eq!(shape, ['b', 'S', 'b', 's', 's']);
    assert_eq!(decode_messages([bytes_of(&frame).as_slice()]), messages);
}

#[test]
fn buffers_are_used_again() {
    let mut frame = FrameBuf::new();
    let buffer_of = |frame: &mut FrameBuf| {
        encode(&one_of_each(), frame).expect("short");
        let Some(Part::Bytes(buffer)) = frame.take_parts().next() else { panic!("no buffer") };
        buffer
    };
    let first = buffer_of(&mut frame);
    assert!(frame.is_empty());
    assert_eq!(frame.total_len(), 0);
    let (address, bytes) = (first.as_ptr(), first.clone());
    frame.recycle(first);
    let second = buffer_of(&mut frame);
    assert_eq!((second.as_ptr(), &second), (address, &bytes));
    frame.recycle(second);
    encode(&one_of_each(), &mut frame).expect("short");
    frame.clear();
    assert_eq!((frame.total_len(), frame.parts()), (0, [].as_slice()));
    let third = buffer_of(&mut frame);
    assert_eq!(third.as_ptr(), address);
}

#[test]
fn nothing_to_send_is_no_frame() {
    assert_eq!(encoded(&[]), []);
}

#[test]
fn many_messages_become_several_frames_in_order() {
    let value = vec![3; 300_000];
    let mut messages = Vec::new();
    for i in 0..40 {
        messages.push(append(i, &[&value]));
        messages.push(reply(i, Reply::Bulk(vec![i as u8; 5000])));
    }
    let bytes = encoded(&messages);
    let (frames, end) = decode(bytes.chunks(16 * 1024));
    assert_eq!(end, Ok(()));
    assert!(frames.len() > 5, "{} frames", frames.len());
    assert_eq!(decode_messages([bytes.as_slice()]), messages);
}

#[test]
fn many_small_messages_become_several_frames() {
    let beats = vec![raft(1, Body::HeartbeatResponse { round: 1 }); 40_000];
    assert_eq!(decode_messages([encoded(&beats).as_slice()]), beats);
}

#[test]
fn the_longest_message_fits_and_a_longer_one_is_left_out() {
    let around = |middle: &PeerMessage| {
        [reply(1, Reply::Bulk(vec![1; 100])), middle.clone(), reply(2, Reply::OK)]
    };
    // What one append of one entry costs beside its payload, rounded generously.
    let framing = 512;
    let fits = around(&append(1, &[&vec![7; FRAME_BYTES_MAX - framing]]));
    assert_eq!(decode_messages(encoded(&fits).chunks(64 * 1024)), fits);

    let over = around(&append(1, &[&vec![7; FRAME_BYTES_MAX]]));
    let mut frame = FrameBuf::new();
    let error = encode(&over, &mut frame).expect_err("the append is too long");
    let TooLong { index, bytes, limit_bytes } = error;
    assert_eq!((index, limit_bytes), (1, FRAME_BYTES_MAX));
    assert!(bytes > FRAME_BYTES_MAX, "{bytes}");
    let rest = [over[0].clone(), over[2].clone()];
    assert_eq!(decode_messages([bytes_of(&frame).as_slice()]), rest);
}

/// Somebody waits for an answer, so there is one even if it cannot be sent.
#[test]
fn an_answer_that_is_too_long_becomes_an_error() {
    const LIMIT: usize = FRAME_BYTES_MAX - 1024;
    const FRAMING: usize = "$16000000\r\n\r\n".len();
    let answer = |len| [reply(1, Reply::OK), reply(2, Reply::Bulk(vec![7; len]))];
    for len in [LIMIT - FRAMING - 1, LIMIT - FRAMING] {
        let fits = answer(len);
        assert_eq!(decode_messages(encoded(&fits).chunks(64 * 1024)), fits, "{len}");
    }
    let over = decode_messages([encoded(&answer(LIMIT - FRAMING + 1)).as_slice()]);
    let text = "ERR answer of 16776193 bytes is too long to be passed on, limit is 16776192; \
                ask for less at once, or ask the node that holds the keys";
    assert_eq!(over, [reply(1, Reply::OK), reply(2, Reply::error(text))]);
}

#[test]
fn too_many_entries_for_a_header_are_left_out() {
    let entries: Vec<&[u8]> = vec![b""; HEADER_BYTES_MAX / 32];
    let mut frame = FrameBuf::new();
    let error = encode(&[append(0, &entries)], &mut frame).expect_err("one header is too long");
    assert_eq!((error.index, error.limit_bytes), (0, HEADER_BYTES_MAX));
    assert!(frame.is_empty());
    let fits = [append(0, &entries[..entries.len() - 16])];
    assert_eq!(decode_messages([encoded(&fits).as_slice()]), fits);
}

/// Unknown statuses cannot be represented; known ones keep their type on the way.
#[test]
fn answers_keep_their_type() {
    let replies = [
        Reply::OK,
        Reply::Status("string"),
        Reply::Status("none"),
        Reply::error("UNCERTAIN outcome unknown"),
        Reply::Integer(-1),
        Reply::Null,
        Reply::Boolean(true),
        Reply::Double(0.5),
        Reply::Map(vec![(Reply::Integer(1), Reply::Set(vec![]))]),
        Reply::Verbatim("text".to_owned()),
    ];
    let messages: Vec<_> = (0..).zip(replies).map(|(id, answer)| reply(id, answer)).collect();
    assert_eq!(decode_messages([encoded(&messages).as_slice()]), messages);
}

fn arb_position() -> impl Strategy<Value = LogPosition> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, index)| position(term, index))
}

fn arb_payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 1000usize..5000).prop_map(|(byte, len)| vec![byte; len]),
    ]
    .prop_map(|bytes| payload(&bytes))
}

fn arb_append() -> impl Strategy<Value = Body> {
    let kind =
        prop_oneof![Just(EntryKind::Empty), Just(EntryKind::Command), Just(EntryKind::Membership)];
    let prev = (any::<u64>(), 0..u64::MAX - 100);
    let entries = proptest::collection::vec((any::<u64>(), kind, arb_payload()), 0..8);
    (prev, entries, any::<u64>(), any::<u64>()).prop_map(
        |((term, index), entries, commit, round)| {
            let entries = (index + 1..).zip(entries).map(|(index, (term, kind, payload))| Entry {
                term: Term::new(term),
                index: LogIndex::new(index),
                kind,
                payload,
            });
            Body::Append {
                prev: position(term, index),
                entries: entries.collect(),
                commit: LogIndex::new(commit),
                round,
            }
        },
    )
}

fn arb_body() -> impl Strategy<Value = Body> {
    let number = any::<u64>;
    let index = || any::<u64>().prop_map(LogIndex::new);
    let snapshot = (arb_position(), arb_payload(), number(), any::<bool>(), arb_payload());
    prop_oneof![
        arb_position().prop_map(|last| Body::PreVote { last }),
        any::<bool>().prop_map(|granted| Body::PreVoteResponse { granted }),
        (arb_position(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        any::<bool>().prop_map(|granted| Body::VoteResponse { granted }),
        arb_append(),
        (index(), number()).prop_map(|(matched, round)| Body::AppendResponse {
            outcome: AppendOutcome::Accepted { matched },
            round
        }),
        (index(), arb_position(), number()).prop_map(|(prev, hint, round)| {
            Body::AppendResponse { outcome: AppendOutcome::Rejected { prev, hint }, round }
        }),
        (index(), number()).prop_map(|(commit, round)| Body::Heartbeat { commit, round }),
        number().prop_map(|round| Body::HeartbeatResponse { round }),
        number().prop_map(|context| Body::ReadIndex { context }),
        (number(), proptest::option::of(index()))
            .prop_map(|(context, index)| Body::ReadIndexResponse { context, index }),
        Just(Body::TimeoutNow),
        (snapshot, number()).prop_map(|((base, membership, piece, done, payload), round)| {
            Body::Snapshot { base, membership, piece, done, payload, round }
        }),
        (arb_position(), number(), number()).prop_map(|(base, next_piece, round)| {
            Body::SnapshotResponse { base, next_piece, round }
        }),
        index().prop_map(|first| Body::SnapshotWanted { first }),
    ]
}

fn arb_message() -> impl Strategy<Value = PeerMessage> {
    let slot = (0u16..16384).prop_map(|raw| SlotId::new(raw).expect("below 16384"));
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let command = (slot, access, arb_payload()).prop_map(|(slot, access, payload)| Command {
        slot,
        access,
        payload,
    });
    let answer = prop_oneof![
        Just(Reply::OK),
        Just(Reply::Null),
        any::<i64>().prop_map(Reply::Integer),
        proptest::collection::vec(any::<u8>(), 0..50).prop_map(Reply::Bulk),
    ];
    let led = (any::<u32>(), any::<u64>())
        .prop_map(|(group, term)| (GroupId::new(group), Term::new(term)));
    prop_oneof![
        6 => (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), arb_body()).prop_map(
            |(group, from, to, term, body)| PeerMessage::Raft {
                group: GroupId::new(group),
                message: Message {
                    from: NodeId::new(from),
                    to: NodeId::new(to),
                    term: Term::new(term),
                    body,
                },
            }
        ),
        2 => (any::<u64>(), any::<u64>(), command).prop_map(
            |(id, at, command)| {
                PeerMessage::Forward(Forward { id, at: WallMillis(at), command })
            }
        ),
        2 => (any::<u64>(), answer).prop_map(|(id, answer)| reply(id, answer)),
        1 => proptest::collection::vec(led, 0..5).prop_map(PeerMessage::Leads),
        1 => any::<Vec<u8>>().prop_map(|bytes| PeerMessage::Digests(payload(&bytes))),
        1 => (any::<u32>(), any::<u64>(), any::<[u8; 3]>())
            .prop_map(|(group, version, key)| value_wanted(group, version, &key)),
        1 => (any::<u64>(), any::<Option<[u8; 9]>>())
            .prop_map(|(at, value)| value_answer(at, value.as_ref().map(|value| &value[..]))),
        1 => (any::<u32>(), arb_position(), any::<u64>())
            .prop_map(|(group, first, last)| entries_wanted(group, first, last)),
        1 => (any::<u64>(), arb_append()).prop_map(|(base, append)| match append {
            Body::Append { entries, .. } => entries_answer(base, entries),
            other => unreachable!("not an append: {other:?}"),
        }),
        1 => proptest::sample::select(&DiskSpace::ALL[..]).prop_map(PeerMessage::Space),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn messages_arrive_whatever_the_pieces(
        batches in proptest::collection::vec(proptest::collection::vec(arb_message(), 0..12), 0..4),
        piece in 1usize..3000,
    ) {
        let mut frame = FrameBuf::new();
        for batch in &batches {
            encode(batch, &mut frame).expect("short");
        }
        let bytes = bytes_of(&frame);
        prop_assert_eq!(decode_messages(bytes.chunks(piece)), batches.concat());
    }

    #[test]
    fn noise_does_not_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        magic in any::<bool>(),
    ) {
        let start: &[u8] = if magic { b"\xc7CRC\x01\0\x03\0" } else { b"" };
        decode([start, &noise]).1.ok();
    }
}

/// Damage that the checksums cannot see: the sender itself makes nonsense, and seals it.
mod sealed {
    use super::*;

    /// Computes the checksum of the headers anew.
    fn seal(frame: &mut [u8]) {
        let header = u32::from_le_bytes(frame[8..12].try_into().expect("four bytes")) as usize;
        let end = (32 + header.next_multiple_of(16)).min(frame.len());
        let checksum = crc32c::crc32c(&frame[..28]);
        let checksum = crc32c::crc32c_append(checksum, &frame[32..end]);
        frame[28..32].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The first place of `row` in a frame with `messages`, overwritten with `new`.
    fn forge(messages: &[PeerMessage], row: &[u8], new: &[u8]) -> FrameError {
        let mut frame = encoded(messages);
        let at = frame.windows(row.len()).position(|window| window == row).expect("is there");
        frame[at..at + new.len()].copy_from_slice(new);
        seal(&mut frame);
        decode_error(&frame)
    }

    fn u64s(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn u32s(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let messages = [append(4, &[b"a", b"b"])];
        let error = forge(&messages, &u64s(&[3, 6]), &u64s(&[3, 7]));
        assert_eq!(error, FrameError::BadHeader("entries of a message are not contiguous"));
        let error = forge(&messages, &u64s(&[3, 5]), &u64s(&[3, 4]));
        assert_eq!(error, FrameError::BadHeader("entries of a message are not contiguous"));
    }

    /// An index beyond the largest one must not overflow.
    #[test]
    fn entries_after_the_last_index_are_refused() {
        let messages = [append(4, &[b"a"])];
        let error = forge(&messages, &u64s(&[3, 4, 4, 9]), &u64s(&[3, u64::MAX, 4, 9]));
        assert_eq!(error, FrameError::BadHeader("entries of a message are not contiguous"));
    }

    #[test]
    fn counts_that_do_not_match_are_refused() {
        let messages = [append(4, &[b"a", b"b"])];
        // Group, from, to, kind, flag, count.
        let row = |count| u32s(&[7, 1, 2, 5, 0, count]);
        let more = forge(&messages, &row(2), &row(3));
        assert_eq!(more, FrameError::BadHeader("more messages than rows"));
        let huge = forge(&messages, &row(2), &row(u32::MAX));
        assert_eq!(huge, FrameError::BadHeader("more messages than rows"));
        let fewer = forge(&messages, &row(2), &row(1));
        assert_eq!(fewer, FrameError::BadHeader("rows that belong to no message"));
        let other = [raft(7, Body::TimeoutNow), raft(7, Body::TimeoutNow)];
        for (count, want) in [
            (0, "empty run of messages"),
            (1, "rows that belong to no message"),
            (3, "more messages than rows"),
            (u32::MAX, "more messages than rows"),
        ] {
            let error = forge(&other, &u32s(&[1, 2]), &u32s(&[1, count]));
            assert_eq!(error, FrameError::BadHeader(want), "{count}");
        }
        let led = [PeerMessage::Leads(vec![(GroupId::new(1), Term::new(1))])];
        let error = forge(&led, &u32s(&[4, 1]), &u32s(&[4, 2]));
        assert_eq!(error, FrameError::BadHeader("more messages than rows"));
    }

    #[test]
    fn lengths_that_do_not_match_are_refused() {
        let messages = [append(4, &[b"ab", b"c"])];
        let blob = u32s(&[2, crc32c::crc32c(b"ab")]);
        for len in [1, 3, u32::MAX] {
            let error = forge(&messages, &blob, &u32s(&[len]));
            let want = "lengths of the payloads are not the length of the tail";
            assert_eq!(error, FrameError::BadHeader(want), "{len}");
        }
    }

    #[test]
    fn unknown_kinds_and_flags_are_refused() {
        let beat = [raft(7, Body::HeartbeatResponse { round: 1 })];
        let row = |kind, flag| u32s(&[7, 1, 2, kind, flag, 0]);
        for (kind, flag, want) in [
            (0, 0, "unknown kind of consensus message"),
            (16, 0, "unknown kind of consensus message"),
            (9, 1, "a field is set that the kind of message lacks"),
            (2, 0, "a field is set that the kind of message lacks"),
        ] {
            let error = forge(&beat, &row(9, 0), &row(kind, flag));
            assert_eq!(error, FrameError::BadHeader(want), "{kind} {flag}");
        }
        let vote = [raft(7, Body::VoteResponse { granted: true })];
        let error = forge(&vote, &row(4, 1), &row(4, 2));
        assert_eq!(error, FrameError::BadHeader("a field is set that the kind of message lacks"));
        let error = forge(&beat, &u32s(&[1, 1]), &u32s(&[11, 1]));
        assert_eq!(error, FrameError::BadHeader("unknown kind of message"));
        let error = forge(&beat, &u32s(&[1, 1]), &u32s(&[9, 1]));
        let want = "a field is set that a request for entries lacks";
        assert_eq!(error, FrameError::BadHeader(want));
        let error = forge(&beat, &u32s(&[1, 1]), &u32s(&[10, 1]));
        let want = "a field is set that an answer with entries lacks";
        assert_eq!(error, FrameError::BadHeader(want));
        let answer = [entries_answer(4, vec![entry(3, 5, EntryKind::Command, b"a")])];
        // Position, base, id.
        let error = forge(&answer, &u64s(&[4, 4, 91]), &u64s(&[5, 4, 91]));
        assert_eq!(error, FrameError::BadHeader("entries of a message are not contiguous"));
        let none = [entries_answer(4, vec![])];
        let error = forge(&none, &u64s(&[0, 4, 91]), &u64s(&[5, 4, 91]));
        assert_eq!(error, FrameError::BadHeader(want));
        let space = [PeerMessage::Space(DiskSpace::Out)];
        let error = forge(&space, &u32s(&[8, 3]), &u32s(&[8, 4]));
        assert_eq!(error, FrameError::BadHeader("unknown fill level of a disk"));

        let messages = [append(4, &[b"a"])];
        let error = forge(&messages, &u64s(&[3, 5, 2]), &u64s(&[3, 5, 4]));
        assert_eq!(error, FrameError::BadHeader("unknown kind of entry"));
        let error = forge(&messages, &u64s(&[3, 5, 2]), &u64s(&[3, 5, 2 | 1 << 32]));
        assert_eq!(error, FrameError::BadHeader("reserved field is not zero"));

        let error = forge(&[value_wanted(3, 9, b"k")], &u32s(&[3, 0]), &u32s(&[3, 1]));
        assert_eq!(error, FrameError::BadHeader("unknown flag of a request for a value"));
        let answer = [value_answer(1 << 33 | 7, Some(b"v"))];
        let row = |slot, flags| u32s(&[7, 2, slot, flags]);
        for (slot, flags) in [(0, 2), (0, 3), (1, 1)] {
            let error = forge(&answer, &row(0, 1), &row(slot, flags));
            let want = "unknown flag of an answer with a value";
            assert_eq!(error, FrameError::BadHeader(want), "{slot} {flags}");
        }
        let error = forge(&answer, &row(0, 1), &row(0, 0));
        assert_eq!(error, FrameError::BadHeader("rows that belong to no message"));

        let slot = u32::from(SlotId::of_key(b"key").get());
        let forwards = [forward(1, Access::Write, b"x")];
        let error = forge(&forwards, &u32s(&[slot, 1]), &u32s(&[slot, 2]));
        assert_eq!(error, FrameError::BadHeader("unknown flag of a forward"));
        for bad in [16384, 65536, u32::MAX] {
            let error = forge(&forwards, &u32s(&[slot, 1]), &u32s(&[bad, 1]));
            assert_eq!(error, FrameError::BadHeader("slot of a forward above 16383"), "{bad}");
        }
    }

    #[test]
    fn answers_that_are_not_resp_are_refused() {
        for (good, bad) in [(b":1\r\n", b"x1\r\n"), (b":1\r\n", b"$9\r\n"), (b":1\r\n", b"_\r\n:")]
        {
            let mut frame = encoded(&[reply(1, Reply::Integer(1))]);
            let old = crc32c::crc32c(good).to_le_bytes();
            let at = frame.windows(4).position(|window| window == old).expect("is there");
            frame[at..at + 4].copy_from_slice(&crc32c::crc32c(bad).to_le_bytes());
            let tail = frame.len() - 4;
            frame[tail..].copy_from_slice(bad);
            seal(&mut frame);
            let error = decode_error(&frame);
            let want = "answer to a forward is not one RESP reply";
            assert_eq!(error, FrameError::BadHeader(want), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Reaches rkyv's checks and everything behind them.
        #[test]
        fn sealed_nonsense_does_not_panic(
            messages in proptest::collection::vec(arb_message(), 1..8),
            changes in proptest::collection::vec(
                (any::<prop::sample::Index>(), any::<u8>()), 1..4
            ),
        ) {
            let mut frame = encoded(&messages);
            let header = u32::from_le_bytes(frame[8..12].try_into().expect("four bytes"));
            for (at, byte) in changes {
                frame[32 + at.index(header as usize)] = byte;
            }
            seal(&mut frame);
            if let (frames, Ok(())) = decode([frame.as_slice()]) {
                // Nonsense that makes sense is a message like any other: it can be sent again.
                for frame in frames {
                    let Incoming::Messages(messages) = frame else { continue };
                    prop_assert_eq!(decode_messages([encoded(&messages).as_slice()]), messages);
                }
            }
        }

        /// The same for headers of nothing but noise.
        #[test]
        fn sealed_noise_does_not_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 1u8..4,
            tail in 0u32..64,
        ) {
            let mut frame = vec![0; 32];
            frame[..8].copy_from_slice(b"\xc7CRC\x01\0\x03\0");
            frame[6] = kind;
            frame[8..12].copy_from_slice(&(noise.len() as u32).to_le_bytes());
            frame[12..16].copy_from_slice(&tail.to_le_bytes());
            frame.extend_from_slice(&noise);
            frame.resize(frame.len().next_multiple_of(16), 0);
            seal(&mut frame);
            frame.resize(frame.len() + tail as usize, 0);
            decode([frame.as_slice()]).1.ok();
        }
    }
}
