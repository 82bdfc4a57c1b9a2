//! The request parser: what it accepts, what it refuses, and that pieces do not matter.

use std::ops::Range;

use coracle_engine::Reply;
use coracle_net::resp::{Limits, Parsed, ProtocolError, RequestParser, encode_request};
use proptest::prelude::*;

/// Everything that happened on one connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    commands: Vec<Vec<Vec<u8>>>,
    empty: usize,
    error: Option<ProtocolError>,
    /// Bytes that no command has taken.
    rest: usize,
}

/// A connection as a server handles it: pieces are appended to a buffer, commands taken from its
/// front.
fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> Heard {
    let mut parser = RequestParser::new(limits);
    let mut heard = Heard::default();
    let mut buffer = Vec::new();
    let mut args: Vec<Range<usize>> = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        while heard.error.is_none() {
            let input = &buffer[at..];
            match parser.parse(input, &mut args) {
                Ok(Parsed::Complete { consumed }) => {
                    assert!(!args.is_empty(), "a command has a name");
                    heard.commands.push(args.iter().map(|r| input[r.clone()].to_vec()).collect());
                    at += consumed;
                }
                Ok(Parsed::Quoted { consumed, args: words }) => {
                    assert!(!words.is_empty(), "a command has a name");
                    assert!(args.is_empty(), "there are no ranges beside the words");
                    heard.commands.push(words);
                    at += consumed;
                }
                Ok(Parsed::Empty { consumed }) => {
                    heard.empty += 1;
                    at += consumed;
                }
                Ok(Parsed::Incomplete { needed_bytes }) => {
                    assert!(needed_bytes > 0, "something is missing");
                    assert!(args.is_empty(), "incomplete arguments stay inside");
                    break;
                }
                Err(error) => {
                    assert_eq!(parser.parse(input, &mut args), Err(error.clone()), "it stays");
                    heard.error = Some(error);
                }
            }
        }
        buffer.drain(..at);
    }
    heard.rest = buffer.len();
    if heard.error.is_some() {
        // How much arrives after the error depends on the pieces.
        heard.rest = 0;
    }
    heard
}

fn hear_whole(input: &[u8], limits: Limits) -> Heard {
    hear([input], limits)
}

fn words(text: &[&str]) -> Vec<Vec<u8>> {
    text.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// One command per line of the table, with the words a server must see.
const ACCEPTED: &[(&[u8], &[&[&str]])] = &[
    (b"*1\r\n$4\r\nPING\r\n", &[&["PING"]]),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", &[&["SET", "k", ""]]),
    (b"*2\r\n$4\r\nECHO\r\n$8\r\na\r\n$1\r\n\0\r\n", &[&["ECHO", "a\r\n$1\r\n\0"]]),
    (b"*1\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n", &[&["a"], &["b"]]),
    (b"*0\r\n*-1\r\n\r\n\n*1\r\n$1\r\na\r\n", &[&["a"]]),
    (b"PING\r\n", &[&["PING"]]),
    (b"PING\n", &[&["PING"]]),
    (b"  SET\tkey \x0b value  \r\n", &[&["SET", "key", "value"]]),
    (b"a\x0bb c\x0c\r\n", &[&["a\x0bb", "c\x0c"]]),
    (b"$3 is inline\r\n", &[&["$3", "is", "inline"]]),
    (b"PING\r\n*1\r\n$4\r\nPING\r\nPING\r\n", &[&["PING"], &["PING"], &["PING"]]),
    (br#"SET k "a b""#, &[]),
    (b"SET k \"a b\"\r\n", &[&["SET", "k", "a b"]]),
    (b"SET \"\" ''\r\n", &[&["SET", "", ""]]),
    (b"echo \"\\x41\\n\\r\\t\\b\\a\\\\\\\"\\q\\xZZ\"\r\n", &[&["echo", "A\n\r\t\x08\x07\\\"qxZZ"]]),
    (b"echo 'it\\'s \\n \"raw\"'\r\n", &[&["echo", "it's \\n \"raw\""]]),
    (b"echo foo\"bar baz\"\r\n", &[&["echo", "foobar baz"]]),
    (b"GET k\0 \"\r\n", &[&["GET", "k"]]),
];

#[test]
fn requests_are_understood_as_redis_understands_them() {
    for &(input, want) in ACCEPTED {
        let heard = hear_whole(input, Limits::DEFAULT);
        let want: Vec<_> = want.iter().map(|command| words(command)).collect();
        assert_eq!(heard.commands, want, "{}", input.escape_ascii());
        assert_eq!(heard.error, None, "{}", input.escape_ascii());
    }
}

/// Error texts of Redis' networking.c.
const REFUSED: &[(&[u8], &str)] = &[
    (b"*x\r\n", "invalid multibulk length"),
    (b"*\r\n", "invalid multibulk length"),
    (b"*1048577\r\n", "invalid multibulk length"),
    (b"*9223372036854775808\r\n", "invalid multibulk length"),
    (b"*+1\r\n", "invalid multibulk length"),
    (b"*01\r\n", "invalid multibulk length"),
    (b"*1\r\nx", "expected '$', got 'x'"),
    (b"*1\r\n\r\n", "expected '$', got '\\r'"),
    (b"*2\r\n$1\r\na\r\n*", "expected '$', got '*'"),
    (b"*1\r\n$x\r\n", "invalid bulk length"),
    (b"*1\r\n$\r\n", "invalid bulk length"),
    (b"*1\r\n$-1\r\n", "invalid bulk length"),
    (b"*1\r\n$-5\r\n", "invalid bulk length"),
    (b"*1\r\n$536870912\r\n", "invalid bulk length"),
    (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
    (b"*1\r\n$1\r\nabc", "expected a line end after 1 bytes of bulk"),
    (b"*1\r\n$1\r\na\rb", "expected a line end after 1 bytes of bulk"),
    (b"SET k \"a\r\n", "unbalanced quotes in request"),
    (b"SET k 'a\r\n", "unbalanced quotes in request"),
    (b"SET k \"a\"b\r\n", "unbalanced quotes in request"),
    (b"SET k 'a'b\r\n", "unbalanced quotes in request"),
    (b"SET k \"a\\\r\n", "unbalanced quotes in request"),
];

#[test]
fn errors_have_the_texts_of_redis() {
    for &(input, want) in REFUSED {
        let heard = hear_whole(input, Limits::DEFAULT);
        let error = heard.error.unwrap_or_else(|| panic!("{} passes", input.escape_ascii()));
        assert_eq!(error.to_string(), format!("Protocol error: {want}"));
        assert_eq!(error.reply(), Reply::Error(format!("ERR Protocol error: {want}")));
    }
    let long = vec![b'a'; 64 * 1024 + 1];
    let heard = hear_whole(&long, Limits::DEFAULT);
    assert_eq!(heard.error, Some(ProtocolError::TooBigInline));
    assert_eq!(ProtocolError::TooBigInline.to_string(), "Protocol error: too big inline request");
}

#[test]
fn every_split_in_two_and_byte_by_byte_gives_the_same() {
    let inputs = ACCEPTED.iter().map(|case| case.0).chain(REFUSED.iter().map(|case| case.0));
    for input in inputs {
        let whole = hear_whole(input, Limits::DEFAULT);
        for split in 0..=input.len() {
            let halves = [&input[..split], &input[split..]];
            assert_eq!(hear(halves, Limits::DEFAULT), whole, "{} at {split}", input.escape_ascii());
        }
        assert_eq!(hear(input.chunks(1), Limits::DEFAULT), whole, "{}", input.escape_ascii());
    }
}

/// The limits of a small server, so that a test can stand on both sides of each.
const SMALL: Limits = Limits {
    args_max: 5,
    bulk_bytes_max: 20,
    inline_bytes_max: 30,
    command_bytes_max: 58,
    before_auth: false,
};

fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_request(args, &mut out);
    out
}

/// A request of one argument per length.
fn request_of(lens: &[usize]) -> Vec<u8> {
    let args: Vec<_> = lens.iter().map(|&len| vec![b'a'; len]).collect();
    request(&args.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn inline_of(len: usize) -> Vec<u8> {
    let mut line: Vec<_> = b"ab ".iter().copied().cycle().take(len).collect();
    line.push(b'\n');
    line
}

/// Every limit holds at n - 1 and n and refuses at n + 1.
#[test]
fn limits_are_exact() {
    let before_auth = Limits { before_auth: true, ..SMALL };
    let wide = Limits { args_max: 100, ..SMALL };
    let too_large = |bytes| ProtocolError::CommandTooLarge { bytes, limit_bytes: 58 };
    // 4 bytes for the count, then 5 + 20 + 2 for the first, 5 + n + 2 for the second argument.
    assert_eq!(request_of(&[20, 20]).len(), 58);
    let cases: &[(&str, Limits, Vec<u8>, Option<ProtocolError>)] = &[
        ("args n-1", SMALL, request_of(&[1; 4]), None),
        ("args n", SMALL, request_of(&[1; 5]), None),
        ("args n+1", SMALL, request_of(&[1; 6]), Some(ProtocolError::InvalidMultibulkLength)),
        (
            "args n+1 before auth",
            before_auth,
            request_of(&[1; 6]),
            Some(ProtocolError::UnauthenticatedMultibulkLength),
        ),
        ("inline args n", SMALL, b"a b c d e\r\n".to_vec(), None),
        (
            "inline args n+1",
            SMALL,
            b"a b c d e f\r\n".to_vec(),
            Some(ProtocolError::InvalidMultibulkLength),
        ),
        (
            "quoted args n+1",
            SMALL,
            b"a b c d e 'f'\r\n".to_vec(),
            Some(ProtocolError::InvalidMultibulkLength),
        ),
        ("bulk n-1", SMALL, request_of(&[19]), None),
        ("bulk n", SMALL, request_of(&[20]), None),
        ("bulk n+1", SMALL, request_of(&[21]), Some(ProtocolError::InvalidBulkLength)),
        (
            "bulk n+1 before auth",
            before_auth,
            request_of(&[21]),
            Some(ProtocolError::UnauthenticatedBulkLength),
        ),
        (
            "inline word n+1",
            SMALL,
            [[b'a'; 21].as_slice(), b"\r\n"].concat(),
            Some(ProtocolError::InvalidBulkLength),
        ),
        ("inline n-1", wide, inline_of(29), None),
        ("inline n", wide, inline_of(30), None),
        ("inline n+1", wide, inline_of(31), Some(ProtocolError::TooBigInline)),
        ("command n-1", SMALL, request_of(&[20, 19]), None),
        ("command n", SMALL, request_of(&[20, 20]), None),
        ("command n+1", SMALL, request_of(&[20, 5, 10]), Some(too_large(59))),
    ];
    for (name, limits, input, want) in cases {
        let heard = hear_whole(input, *limits);
        assert_eq!(heard.error, *want, "{name}");
        assert_eq!(heard.commands.len(), usize::from(want.is_none()), "{name}");
        assert_eq!(hear(input.chunks(1), *limits), heard, "{name} byte by byte");
    }
}

#[test]
fn limits_before_authentication_are_those_of_redis() {
    let limits = Limits::BEFORE_AUTH;
    let ten = hear_whole(&request_of(&[1; 10]), limits);
    let eleven = hear_whole(&request_of(&[1; 11]), limits);
    assert_eq!((ten.commands.len(), ten.error), (1, None));
    assert_eq!(
        eleven.error.map(|e| e.to_string()),
        Some("Protocol error: unauthenticated multibulk length".to_owned())
    );
    let fits = hear_whole(&request_of(&[16 * 1024]), limits);
    let over = hear_whole(&request_of(&[16 * 1024 + 1]), limits);
    assert_eq!((fits.commands.len(), fits.error), (1, None));
    assert_eq!(
        over.error.map(|e| e.to_string()),
        Some("Protocol error: unauthenticated bulk length".to_owned())
    );
    // The longest command that both limits allow is not cut short by the third.
    let full = hear_whole(&request_of(&[16 * 1024; 10]), limits);
    assert_eq!((full.commands.len(), full.error), (1, None));
}

#[test]
fn limits_can_change_after_authentication() {
    let mut parser = RequestParser::new(Limits::BEFORE_AUTH);
    let mut args = Vec::new();
    let input = request_of(&[1; 11]);
    parser.set_limits(Limits::DEFAULT);
    let parsed = parser.parse(&input, &mut args);
    assert_eq!(parsed, Ok(Parsed::Complete { consumed: input.len() }));
    assert_eq!(args.len(), 11);
}

/// A declared length is a promise, not a reason to allocate.
#[test]
fn the_hint_says_what_is_missing() {
    let mut parser = RequestParser::new(Limits::DEFAULT);
    let mut args = Vec::new();
    let mut check = |input: &[u8], needed_bytes| {
        let parsed = parser.parse(input, &mut args);
        assert_eq!(parsed, Ok(Parsed::Incomplete { needed_bytes }), "{}", input.escape_ascii());
        assert!(args.capacity() < 16, "nothing is reserved for declared arguments");
    };
    check(b"", 1);
    check(b"*1000000\r\n$8388608\r", 1);
    check(b"*1000000\r\n$8388608\r\n", 8_388_610);
    check(b"*1000000\r\n$8388608\r\nabc", 8_388_607);
}

/// Requests, pieces of requests and noise, so that every path of the parser is reached.
fn arb_stream() -> impl Strategy<Value = Vec<u8>> {
    let bulk = proptest::collection::vec(any::<u8>(), 0..40);
    let piece = prop_oneof![
        8 => proptest::collection::vec(bulk, 1..5).prop_map(|args| {
            request(&args.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }),
        2 => "[a-c \"'\\\\x]{0,12}\r?\n".prop_map(String::into_bytes),
        1 => Just(b"*0\r\n".to_vec()),
        1 => "[*$0-9\r\n-]{0,6}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Cuts `input` at the given places, in thousandths of its length.
fn cut<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut * input.len() / 1000).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for place in places {
        pieces.push(&input[from..place]);
        from = place;
    }
    pieces.push(&input[from..]);
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn pieces_do_not_matter(
        input in arb_stream(),
        cuts in proptest::collection::vec(0usize..=1000, 0..20),
    ) {
        let whole = hear_whole(&input, SMALL);
        prop_assert_eq!(&hear(cut(&input, &cuts), SMALL), &whole);
        prop_assert_eq!(&hear(input.chunks(1), SMALL), &whole);
    }

    #[test]
    fn noise_does_not_panic(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        let starred = [b"*", input.as_slice()].concat();
        hear_whole(&input, SMALL);
        hear_whole(&starred, SMALL);
    }

    #[test]
    fn requests_come_back_as_they_were_sent(
        commands in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6),
            0..6,
        ),
    ) {
        let mut input = Vec::new();
        for command in &commands {
            encode_request(&command.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut input);
        }
        let heard = hear_whole(&input, Limits::DEFAULT);
        prop_assert_eq!(heard, Heard { commands, ..Heard::default() });
    }
}
