//! Replies: the bytes they become, and that clients read back what was sent.

use coracle_engine::{Reply, Slice};
use coracle_net::resp::{
    Protocol, ProtocolError, REPLY_DEPTH_MAX, ReplyKind, ReplyParser, Skipped, encode_reply,
    parse_reply, skip_reply,
};
use coracle_raft::Payload;
use proptest::prelude::*;

fn encoded(reply: &Reply, protocol: Protocol) -> Vec<u8> {
    let mut out = Vec::new();
    encode_reply(reply, protocol, &mut out);
    out
}

fn value(text: &[u8]) -> Reply {
    let stored = [b"head", text, b"rest"].concat();
    let len = stored.len();
    Reply::Value(Slice::new(Payload::new(stored, 0), 4, len - 4))
}

/// Redis protocol specification, one row per type and version.
#[test]
fn replies_have_the_bytes_of_the_specification() {
    let pair = || (Reply::Bulk(b"k".to_vec()), Reply::Integer(1));
    let cases: &[(Reply, &str, &str)] = &[
        (Reply::OK, "+OK\r\n", "+OK\r\n"),
        (Reply::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n"),
        (Reply::error("ERR a\r\n+OK\r\n"), "-ERR a  +OK  \r\n", "-ERR a  +OK  \r\n"),
        (Reply::Integer(-42), ":-42\r\n", ":-42\r\n"),
        (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
        (Reply::Bulk(Vec::new()), "$0\r\n\r\n", "$0\r\n\r\n"),
        (Reply::Bulk(b"a\r\nb".to_vec()), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
        (value(b"stored"), "$6\r\nstored\r\n", "$6\r\nstored\r\n"),
        (Reply::Null, "$-1\r\n", "_\r\n"),
        (Reply::Array(vec![]), "*0\r\n", "*0\r\n"),
        (Reply::Array(vec![Reply::Null, Reply::OK]), "*2\r\n$-1\r\n+OK\r\n", "*2\r\n_\r\n+OK\r\n"),
        (
            Reply::Map(vec![pair(), pair()]),
            "*4\r\n$1\r\nk\r\n:1\r\n$1\r\nk\r\n:1\r\n",
            "%2\r\n$1\r\nk\r\n:1\r\n$1\r\nk\r\n:1\r\n",
        ),
        (Reply::Set(vec![Reply::Integer(7)]), "*1\r\n:7\r\n", "~1\r\n:7\r\n"),
        (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
        (Reply::Double(3.0), "$1\r\n3\r\n", ",3\r\n"),
        (Reply::Double(1e300), "$5\r\n1e300\r\n", ",1e300\r\n"),
        (Reply::Double(-2.5e-9), "$7\r\n-2.5e-9\r\n", ",-2.5e-9\r\n"),
        (Reply::Double(f64::INFINITY), "$3\r\ninf\r\n", ",inf\r\n"),
        (Reply::Double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
        (Reply::Double(f64::NAN), "$3\r\nnan\r\n", ",nan\r\n"),
        (Reply::Boolean(true), ":1\r\n", "#t\r\n"),
        (Reply::Boolean(false), ":0\r\n", "#f\r\n"),
        (Reply::Verbatim("é".to_owned()), "$2\r\né\r\n", "=6\r\ntxt:é\r\n"),
    ];
    for (reply, resp2, resp3) in cases {
        let check = |protocol, want: &str| {
            let got = encoded(reply, protocol);
            assert_eq!(got.escape_ascii().to_string(), want.as_bytes().escape_ascii().to_string());
        };
        check(Protocol::Resp2, resp2);
        check(Protocol::Resp3, resp3);
    }
}

/// What a client cannot tell apart, made the same.
fn as_read(reply: &Reply, protocol: Protocol) -> Reply {
    let all = |items: &[Reply]| items.iter().map(|r| as_read(r, protocol)).collect::<Vec<_>>();
    let resp2 = protocol == Protocol::Resp2;
    match reply {
        Reply::Value(slice) => Reply::Bulk(slice.bytes().to_vec()),
        Reply::Error(text) => Reply::Error(text.replace(['\r', '\n'], " ")),
        Reply::Array(items) => Reply::Array(all(items)),
        Reply::Set(items) if resp2 => Reply::Array(all(items)),
        Reply::Set(items) => Reply::Set(all(items)),
        Reply::Map(pairs) if resp2 => {
            Reply::Array(pairs.iter().flat_map(|(k, v)| all(&[k.clone(), v.clone()])).collect())
        }
        Reply::Map(pairs) => Reply::Map(
            pairs.iter().map(|(k, v)| (as_read(k, protocol), as_read(v, protocol))).collect(),
        ),
        Reply::Double(_) if resp2 => match &encoded(reply, Protocol::Resp3)[..] {
            [b',', text @ .., b'\r', b'\n'] => Reply::Bulk(text.to_vec()),
            other => panic!("not a double: {}", other.escape_ascii()),
        },
        Reply::Boolean(value) if resp2 => Reply::Integer(i64::from(*value)),
        Reply::Verbatim(text) if resp2 => Reply::Bulk(text.clone().into_bytes()),
        other => other.clone(),
    }
}

fn arb_reply() -> impl Strategy<Value = Reply> {
    let status = prop_oneof![Just("OK"), Just("PONG"), Just("string"), Just("none")];
    let leaf = prop_oneof![
        status.prop_map(Reply::Status),
        "[A-Z]{3,6} .{0,30}".prop_map(Reply::Error),
        any::<i64>().prop_map(Reply::Integer),
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(Reply::Bulk),
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(|text| value(&text)),
        Just(Reply::Null),
        any::<f64>()
            .prop_filter("NaN is not equal to itself", |f| !f.is_nan())
            .prop_map(Reply::Double),
        any::<bool>().prop_map(Reply::Boolean),
        ".{0,30}".prop_map(Reply::Verbatim),
    ];
    leaf.prop_recursive(REPLY_DEPTH_MAX as u32, 40, 5, |inner| {
        let items = || proptest::collection::vec(inner.clone(), 0..5);
        prop_oneof![
            items().prop_map(Reply::Array),
            items().prop_map(Reply::Set),
            proptest::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Reply::Map),
        ]
    })
}

fn kind_of(reply: &Reply) -> ReplyKind<'_> {
    match reply {
        Reply::Status(text) => ReplyKind::Status(text.as_bytes()),
        Reply::Error(text) => ReplyKind::Error(text.as_bytes()),
        Reply::Integer(value) => ReplyKind::Integer(*value),
        Reply::Bulk(bytes) => ReplyKind::Value(bytes),
        Reply::Verbatim(text) => ReplyKind::Value(text.as_bytes()),
        Reply::Null => ReplyKind::Null,
        _ => ReplyKind::Other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn replies_come_back_as_they_were_sent(reply in arb_reply(), resp3 in any::<bool>()) {
        let protocol = if resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
        let bytes = encoded(&reply, protocol);
        let want = as_read(&reply, protocol);
        let followed = [bytes.as_slice(), b"+OK\r\n"].concat();
        prop_assert_eq!(parse_reply(&followed), Ok(Some((want.clone(), bytes.len()))));
        let skipped = Skipped::Complete { kind: kind_of(&want), consumed: bytes.len() };
        prop_assert_eq!(skip_reply(&followed), Ok(skipped));
    }

    #[test]
    fn every_prefix_is_incomplete_and_every_split_gives_the_same(reply in arb_reply()) {
        let bytes = encoded(&reply, Protocol::Resp3);
        let whole = parse_reply(&bytes);
        let mut parser = ReplyParser::new();
        for len in 0..bytes.len() {
            let prefix = &bytes[..len];
            prop_assert_eq!(parser.parse_reply(prefix), Ok(None));
            let needed = parser.needed_bytes(prefix);
            prop_assert!((1..=bytes.len() - len).contains(&needed), "needs {} at {}", needed, len);
            match skip_reply(prefix) {
                Ok(Skipped::Incomplete { needed_bytes }) => {
                    prop_assert!((1..=bytes.len() - len).contains(&needed_bytes));
                }
                other => prop_assert!(false, "{:?} at {}", other, len),
            }
        }
        prop_assert_eq!(&parser.parse_reply(&bytes), &whole);
        prop_assert_eq!(parser.parse_reply(&bytes), whole, "the parser starts over");
    }

    #[test]
    fn damaged_replies_do_not_panic_and_both_readers_agree(
        reply in arb_reply(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encoded(&reply, Protocol::Resp3);
        *at.get_mut(&mut bytes) = byte;
        let skipped = match skip_reply(&bytes) {
            Ok(Skipped::Complete { consumed, .. }) => Ok(Some(consumed)),
            Ok(Skipped::Incomplete { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let parsed = parse_reply(&bytes).map(|done| done.map(|(_, consumed)| consumed));
        // Only the parser looks into verbatim texts.
        if parsed != Err(ProtocolError::InvalidReply("verbatim text without its format")) {
            prop_assert_eq!(parsed, skipped);
        }
    }
}

#[test]
fn types_that_only_other_servers_send_are_understood() {
    let array = |items: &[i64]| Reply::Array(items.iter().copied().map(Reply::Integer).collect());
    let cases: &[(&[u8], Reply)] = &[
        (b"*-1\r\n", Reply::Null),
        (b"$-1\r\n", Reply::Null),
        (b":+5\r\n", Reply::Integer(5)),
        (b"!7\r\nERR a\r\n\r\n", Reply::error("ERR a\r\n")),
        (b">2\r\n:1\r\n:2\r\n", array(&[1, 2])),
        (b"(12\r\n", Reply::Integer(12)),
        (b"(92233720368547758080\r\n", Reply::Bulk(b"92233720368547758080".to_vec())),
        (b"+Something else\r\n", Reply::Bulk(b"Something else".to_vec())),
        (b"=5\r\nmkd:a\r\n", Reply::Verbatim("a".to_owned())),
        (b"|1\r\n+ttl\r\n:3\r\n:7\r\n", Reply::Integer(7)),
        (b"*2\r\n:1\r\n|1\r\n+a\r\n*1\r\n+b\r\n:2\r\n", array(&[1, 2])),
        (b"|0\r\n|1\r\n+a\r\n+b\r\n*0\r\n", array(&[])),
        (b",-1.5E3\r\n", Reply::Double(-1500.0)),
    ];
    for (input, want) in cases {
        let parsed = parse_reply(input);
        assert_eq!(parsed, Ok(Some((want.clone(), input.len()))), "{}", input.escape_ascii());
        let consumed = match skip_reply(input) {
            Ok(Skipped::Complete { consumed, .. }) => consumed,
            other => panic!("{other:?} for {}", input.escape_ascii()),
        };
        assert_eq!(consumed, input.len(), "{}", input.escape_ascii());
    }
}

#[test]
fn invalid_replies_are_refused() {
    let simple = ProtocolError::InvalidReply("invalid simple value in reply");
    let cases: &[(&[u8], ProtocolError)] = &[
        (b"x", ProtocolError::UnknownType { got: b'x' }),
        (b"\r\n", ProtocolError::UnknownType { got: b'\r' }),
        (b":\r\n", simple.clone()),
        (b":1x\r\n", simple.clone()),
        (b"_x\r\n", simple.clone()),
        (b"#x\r\n", simple.clone()),
        (b",1.x\r\n", simple),
        (b"$?\r\n", ProtocolError::InvalidBulkLength),
        (b"$-2\r\n", ProtocolError::InvalidBulkLength),
        (b"$536870913\r\n", ProtocolError::InvalidBulkLength),
        (b"$1\r\nabc", ProtocolError::MissingLineEnd { len_bytes: 1 }),
        (b"*-2\r\n", ProtocolError::InvalidMultibulkLength),
        (b"%-1\r\n", ProtocolError::InvalidMultibulkLength),
        (b"*2097153\r\n", ProtocolError::InvalidMultibulkLength),
        (b"+O\rK\r\n", ProtocolError::InvalidReply("stray carriage return in reply")),
    ];
    for (input, want) in cases {
        assert_eq!(parse_reply(input), Err(want.clone()), "{}", input.escape_ascii());
        assert_eq!(skip_reply(input), Err(want.clone()), "{}", input.escape_ascii());
    }
    let endless = vec![b'+'; 64 * 1024 + 2];
    let want = ProtocolError::InvalidReply("reply line without an end");
    assert_eq!(parse_reply(&endless), Err(want));
}

/// RESP depth 8.
#[test]
fn nesting_is_bounded() {
    let nested = |depth| [b"*1\r\n".repeat(depth), b":1\r\n".to_vec()].concat();
    for depth in [REPLY_DEPTH_MAX - 1, REPLY_DEPTH_MAX] {
        assert!(matches!(parse_reply(&nested(depth)), Ok(Some(_))), "{depth}");
        assert!(matches!(skip_reply(&nested(depth)), Ok(Skipped::Complete { .. })), "{depth}");
    }
    let want = ProtocolError::TooDeep { limit: REPLY_DEPTH_MAX };
    assert_eq!(parse_reply(&nested(REPLY_DEPTH_MAX + 1)), Err(want.clone()));
    assert_eq!(skip_reply(&nested(REPLY_DEPTH_MAX + 1)), Err(want));
}

#[test]
fn a_long_value_in_small_pieces_is_read_once() {
    let bytes = encoded(&Reply::Array(vec![Reply::Bulk(vec![7; 100_000]); 10]), Protocol::Resp2);
    let mut parser = ReplyParser::new();
    let mut tries = 0;
    let mut len = 0;
    while len < bytes.len() {
        len = (len + 1000).min(bytes.len());
        if parser.needed_bytes(&bytes[..len]) == 0 {
            tries += 1;
        }
        let parsed = parser.parse_reply(&bytes[..len]).unwrap();
        assert_eq!(parsed.is_some(), len == bytes.len(), "complete at the end, not at {len}");
    }
    assert!(tries <= 12, "one try per value and one for the head, not {tries}");
}
