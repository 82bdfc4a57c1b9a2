use proptest::prelude::*;

use super::*;

fn op(kind: OpKind, outcome: Outcome) -> Op {
    let return_ns = (outcome != Outcome::Unknown).then_some(34);
    Op { client: 1, key: b"k1"[..].into(), kind, outcome, call_ns: 12, return_ns }
}

fn some(value: &[u8]) -> Reply {
    Reply::Value(Some(value.into()))
}

/// The format, line by line: other programs write and read it.
#[test]
fn lines_are_golden() {
    let v = || Bytes::from(&b"v7"[..]);
    let cases = [
        (
            OpKind::Set(v()),
            Outcome::Reply(Reply::Ok),
            r#""op":"set","key":"k1","arg":"v7","result":"OK""#,
        ),
        (
            OpKind::Get,
            Outcome::Reply(some(b"a\n%\"\\")),
            r#""op":"get","key":"k1","result":"a%0a%25\"\\""#,
        ),
        (OpKind::Get, Outcome::Reply(Reply::Value(None)), r#""op":"get","key":"k1","result":null"#),
        (OpKind::Clear, Outcome::Reply(Reply::Ok), r#""op":"clear","key":"k1","result":"OK""#),
        (OpKind::Del, Outcome::Reply(Reply::Integer(1)), r#""op":"del","key":"k1","result":1"#),
        (
            OpKind::Append(v()),
            Outcome::Reply(Reply::Integer(9)),
            r#""op":"append","key":"k1","arg":"v7","result":9"#,
        ),
        (
            OpKind::Incr(-3),
            Outcome::Reply(Reply::Integer(-4)),
            r#""op":"incr","key":"k1","arg":-3,"result":-4"#,
        ),
        (
            OpKind::SetNx(v()),
            Outcome::Reply(Reply::Integer(0)),
            r#""op":"setnx","key":"k1","arg":"v7","result":0"#,
        ),
        (
            OpKind::GetSet(v()),
            Outcome::Reply(some(b"")),
            r#""op":"getset","key":"k1","arg":"v7","result":"""#,
        ),
        (
            OpKind::GetDel,
            Outcome::Reply(some(&[0, 255])),
            r#""op":"getdel","key":"k1","result":"%00%ff""#,
        ),
        (OpKind::GetDel, Outcome::Unknown, r#""op":"getdel","key":"k1","result":null"#),
        (OpKind::Set(v()), Outcome::Refused, r#""op":"set","key":"k1","arg":"v7","result":null"#),
    ];
    for (kind, outcome, middle) in cases {
        let op = op(kind, outcome);
        let end = op.return_ns.map_or("null".to_owned(), |ns| ns.to_string());
        let refused = if op.outcome == Outcome::Refused { r#","refused":true"# } else { "" };
        let line = format!(r#"{{"client":1,{middle},"call_ns":12,"return_ns":{end}{refused}}}"#);
        assert_eq!(op.to_line(), line);
        assert_eq!(Op::from_line(&line).as_ref(), Ok(&op), "{line}");
    }
}

/// The load generator's golden file is read, and written again byte by byte.
#[test]
fn the_load_generators_lines_are_read() {
    let text = include_str!("../../../loadgen/testdata/history.ndjson");
    let ops: Result<Vec<Op>, _> = Reader::new(text.as_bytes()).collect();
    let ops = ops.expect("a history");
    assert_eq!(ops.len(), 15);
    let mut again = Vec::new();
    write(&ops, &mut again).expect("a vector takes everything");
    assert_eq!(String::from_utf8_lossy(&again), text);
}

/// Each error says what is wrong with which line.
#[test]
fn damaged_lines_are_refused_with_a_reason() {
    let good = r#"{"client":1,"op":"get","key":"k","result":null,"call_ns":1,"return_ns":2}"#;
    let cases = [
        ("", "EOF"),
        ("{", "EOF"),
        ("[1]", "invalid"),
        (&good.replace("get", "hget"), "`hget` is no operation"),
        (&good.replace("get", "set"), "`set` needs a string as arg"),
        (&good.replace("get\"", "incr\",\"arg\":\"x\""), "`incr` needs a 64-bit number"),
        (&good.replace("get\"", "get\",\"arg\":\"x\""), "`get` has no arg"),
        (&good.replace("null", "7"), "7 is no result of this operation"),
        (&good.replace("get", "del"), "null is no result of this operation"),
        (&good.replace("get", "del").replace("null", "2"), "2 is no result"),
        (&good.replace("\"return_ns\":2", "\"return_ns\":0"), "before its call at 1 ns"),
        (&good.replace(",\"return_ns\":2", ""), "missing field `return_ns`"),
        (&good.replace("\"result\":null,", ""), "missing field `result`"),
        (&good.replace("null", "\"v\"").replace(":2", ":null"), "a result, but no return_ns"),
        (&good.replace("null", "\"v\"").replace(":2", ":2,\"refused\":true"), "refused, but"),
        (&good.replace("\"k\"", "\"%4\""), "key: byte 0: % needs two hex digits"),
        (&good.replace("\"k\"", "\"%+1\""), "key: byte 0: % needs two hex digits"),
        (&good.replace("\"k\"", "\"aé\""), "key: byte 1: 0xc3 must be written as %c3"),
        (&good.replace("null", "\"\\n\""), "result: byte 0: 0x0a must be written as %0a"),
        (&good.replace("client", "clinet"), "unknown field `clinet`"),
    ];
    for (line, want) in cases {
        let text = format!("{good}\n{line}\n{good}\n");
        let mut reader = Reader::new(text.as_bytes());
        assert!(reader.next().expect("a line").is_ok());
        let error = reader.next().expect("a line").expect_err(line).to_string();
        assert!(error.starts_with("line 2 of the history: "), "{line}: {error}");
        assert!(error.contains(want), "{line}: {error}");
        assert!(reader.next().is_none(), "nothing is read after an error");
    }
}

#[test]
fn long_and_unfinished_lines_are_refused() {
    let good = r#"{"client":1,"op":"get","key":"k","result":null,"call_ns":1,"return_ns":2}"#;
    let text = format!("{good}\n{good}\n");
    let read = |text: &str, limit| -> Vec<_> {
        Reader::with_limit(text.as_bytes(), limit).map(|op| op.map_err(|e| e.to_string())).collect()
    };
    assert!(read(&text, good.len()).iter().all(Result::is_ok));
    assert_eq!(read(&text, good.len()).len(), 2);
    let found = read(&text, good.len() - 1);
    assert_eq!(found.len(), 1);
    assert!(found[0].as_ref().is_err_and(|e| e.contains("longer than 72 bytes")), "{found:?}");
    let found = read(text.trim_end(), good.len());
    assert!(found[1].as_ref().is_err_and(|e| e.contains("did not finish")), "{found:?}");
    let found: Vec<_> = Reader::new(&b"\xff\n"[..]).collect();
    assert!(found[0].as_ref().is_err_and(|e| e.to_string().contains("UTF-8")), "{found:?}");
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn any_op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        any_bytes().prop_map(OpKind::Set),
        Just(OpKind::Get),
        Just(OpKind::Del),
        any_bytes().prop_map(OpKind::Append),
        any::<i64>().prop_map(OpKind::Incr),
        any_bytes().prop_map(OpKind::SetNx),
        any_bytes().prop_map(OpKind::GetSet),
        Just(OpKind::GetDel),
        Just(OpKind::Clear),
    ];
    let value = prop::option::of(any_bytes());
    let times = (any::<u64>(), 0..u64::MAX / 2, 0..u64::MAX / 2);
    (kind, value, any::<i64>(), 0..4, any_bytes(), times).prop_map(
        |(kind, value, number, luck, key, (client, call_ns, took_ns))| {
            let reply = match &kind {
                OpKind::Set(_) | OpKind::Clear => Reply::Ok,
                OpKind::Get | OpKind::GetSet(_) | OpKind::GetDel => Reply::Value(value),
                OpKind::Del | OpKind::SetNx(_) => Reply::Integer(number & 1),
                OpKind::Append(_) => Reply::Integer(number & i64::MAX),
                OpKind::Incr(_) => Reply::Integer(number),
            };
            let outcome = match luck {
                0 => Outcome::Unknown,
                1 => Outcome::Refused,
                _ => Outcome::Reply(reply),
            };
            let return_ns = (luck != 0).then_some(call_ns + took_ns);
            Op { client, key, kind, outcome, call_ns, return_ns }
        },
    )
}

proptest! {
    /// Any operation on any bytes survives being written and read.
    #[test]
    fn what_is_written_is_read(ops in prop::collection::vec(any_op(), 0..20)) {
        let mut text = Vec::new();
        write(&ops, &mut text).expect("a vector takes everything");
        prop_assert!(text.is_ascii());
        let read: Result<Vec<Op>, _> = Reader::new(&text[..]).collect();
        prop_assert_eq!(read.expect("what was written"), ops);
    }

    /// No input makes the reader panic.
    #[test]
    fn garbage_is_an_error(text in ".{0,200}") {
        let _ = Op::from_line(&text);
        let _ = unescape(&text);
    }
}
