//! Every command against its expected answers, with Redis' texts.

use super::show;
use crate::command::{KEY_BYTES_MAX, VALUE_BYTES_MAX, decode};
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{Reply, WallMillis};

const ARITY: &str = "-ERR wrong number of arguments for";
const INTEGER: &str = "-ERR value is not an integer or out of range";
const SYNTAX: &str = "-ERR syntax error";

/// One node, one shard, and a wall clock that only tests move.
fn single() -> Cluster {
    let options =
        ClusterOptions { nodes: 1, shards: 1, groups: 1, tick_ms: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    cluster
}

/// Runs a script: each command (words separated by single spaces) and its answer. `@n` moves
/// the wall clock by n milliseconds.
fn check(script: &[(&str, &str)]) {
    let mut cluster = single();
    for &(command, want) in script {
        if let Some(ms) = command.strip_prefix('@') {
            cluster.advance_wall(ms.parse().unwrap());
            continue;
        }
        let got = show(&cluster.call(addr(1, 0), command));
        assert_eq!(got, want, "{command}");
    }
}

#[test]
fn get_set_and_their_relatives() {
    check(&[
        ("GET k", "_"),
        ("SET k v", "+OK"),
        ("get k", "$v"),
        ("PUT k w", "+OK"),
        ("GET k", "$w"),
        ("SET k x GET", "$w"),
        ("SET new x GET", "_"),
        ("GETSET k y", "$x"),
        ("GETSET none y", "_"),
        ("SETNX k z", ":0"),
        ("SETNX fresh z", ":1"),
        ("GET fresh", "$z"),
        ("GETDEL k", "$y"),
        ("GETDEL k", "_"),
        ("STRLEN fresh", ":1"),
        ("STRLEN none-at-all", ":0"),
        ("TYPE fresh", "+string"),
        ("TYPE none-at-all", "+none"),
        ("GET", &format!("{ARITY} 'get' command")),
        ("GET a b", &format!("{ARITY} 'get' command")),
        ("SET k", &format!("{ARITY} 'set' command")),
    ]);
}

#[test]
fn set_conditions() {
    check(&[
        ("SET k a XX", "_"),
        ("SET k a NX", "+OK"),
        ("SET k b NX", "_"),
        ("SET k b XX", "+OK"),
        ("SET k c nx get", "$b"),
        ("GET k", "$b"),
        ("SET k c XX GET", "$b"),
        ("SET new c NX GET", "_"),
        ("GET new", "$c"),
        ("SET k v NX XX", SYNTAX),
        ("SET k v XX NX", SYNTAX),
        ("SET k v bogus", SYNTAX),
        ("SET k v EX", SYNTAX),
        ("SET k v EX 1 PX 1", SYNTAX),
        ("SET k v EX 1 KEEPTTL", SYNTAX),
        ("SET k v KEEPTTL EX 1", SYNTAX),
        ("SET k v EX abc", INTEGER),
        ("SET k v EX 0", "-ERR invalid expire time in 'set' command"),
        ("SET k v PX -1", "-ERR invalid expire time in 'set' command"),
        ("SET k v EX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
        ("PUT k v EX 0", "-ERR invalid expire time in 'put' command"),
        ("SETEX k 0 v", "-ERR invalid expire time in 'setex' command"),
        ("PSETEX k -5 v", "-ERR invalid expire time in 'psetex' command"),
        ("SETEX k x v", INTEGER),
    ]);
}

#[test]
fn getex_changes_when_a_key_expires() {
    check(&[
        ("GETEX k", "_"),
        ("GETEX k EX 10", "_"),
        ("TTL k", ":-2"),
        ("SET k v", "+OK"),
        ("GETEX k", "$v"),
        ("TTL k", ":-1"),
        ("GETEX k EX 10", "$v"),
        ("TTL k", ":10"),
        ("GETEX k px 1500", "$v"),
        ("PTTL k", ":1500"),
        ("GETEX k EXAT 1700000020", "$v"),
        ("EXPIRETIME k", ":1700000020"),
        ("GETEX k PERSIST", "$v"),
        ("GETEX k PERSIST", "$v"),
        ("TTL k", ":-1"),
        ("GETEX k PXAT 1", "$v"),
        ("GET k", "_"),
        ("GETEX k EX", SYNTAX),
        ("GETEX k EX 1 PERSIST", SYNTAX),
        ("GETEX k KEEPTTL", SYNTAX),
        ("GETEX k EX x", INTEGER),
        ("GETEX k EX 0", "-ERR invalid expire time in 'getex' command"),
    ]);
}

#[test]
fn msetnx_is_all_or_nothing() {
    check(&[
        ("MSETNX a 1 b 2", ":1"),
        ("MSETNX b 3 c 4", ":0"),
        ("MGET a b c", "[$1 $2 _]"),
        ("SET d v PX 10", "+OK"),
        ("@10", ""),
        ("MSETNX c 3 d 4", ":1"),
        ("MGET c d", "[$3 $4]"),
        ("MSETNX x", &format!("{ARITY} 'msetnx' command")),
        ("MSETNX x 1 y", &format!("{ARITY} 'msetnx' command")),
    ]);
}

#[test]
fn incrbyfloat_adds_decimals() {
    check(&[
        ("INCRBYFLOAT f 10.50", "$10.5"),
        ("INCRBYFLOAT f 0.1", "$10.6"),
        ("INCRBYFLOAT f -5", "$5.6"),
        ("INCRBYFLOAT f 5.0e3", "$5005.6"),
        ("GET f", "$5005.6"),
        ("SET i 3", "+OK"),
        ("EXPIRE i 100", ":1"),
        ("INCRBYFLOAT i 1", "$4"),
        ("TTL i", ":100"),
        ("INCR i", ":5"),
        ("SET t text", "+OK"),
        ("INCRBYFLOAT t 1", "-ERR value is not a valid float"),
        ("INCRBYFLOAT i one", "-ERR value is not a valid float"),
        ("INCRBYFLOAT big 9e20", "$900000000000000000000"),
        ("INCRBYFLOAT big 9e20", "-ERR increment would produce NaN or Infinity"),
        ("GET big", "$900000000000000000000"),
    ]);
}

#[test]
fn the_whole_keyspace() {
    check(&[
        ("DBSIZE", ":0"),
        ("RANDOMKEY", "_"),
        ("SCAN 0", "[$0 []]"),
        ("KEYS *", "[]"),
        ("FLUSHALL", "+OK"),
        ("SET k v", "+OK"),
        ("DBSIZE", ":1"),
        ("RANDOMKEY", "$k"),
        ("SCAN 0", "[$0 [$k]]"),
        ("scan 0 match ?", "[$0 [$k]]"),
        ("SCAN 0 MATCH x*", "[$0 []]"),
        ("SCAN 0 TYPE string COUNT 5", "[$0 [$k]]"),
        ("SCAN 0 TYPE LIST", "[$0 []]"),
        ("SCAN 9007199254740991", "[$0 []]"),
        ("KEYS [^x]", "[$k]"),
        ("KEYS kk", "[]"),
        ("SCAN", &format!("{ARITY} 'scan' command")),
        ("SCAN x", "-ERR invalid cursor"),
        ("SCAN -1", "-ERR invalid cursor"),
        ("SCAN 9007199254740992", "-ERR invalid cursor"),
        ("SCAN 0 MATCH", SYNTAX),
        ("SCAN 0 COUNT 0", SYNTAX),
        ("SCAN 0 COUNT x", INTEGER),
        ("SCAN 0 LIMIT 5", SYNTAX),
        ("KEYS", &format!("{ARITY} 'keys' command")),
        ("FLUSHALL NOW", SYNTAX),
        ("FLUSHDB ASYNC NOW", SYNTAX),
        ("FLUSHALL async", "+OK"),
        ("DBSIZE", ":0"),
        ("GET k", "_"),
        ("SET k w PX 50", "+OK"),
        ("@50", ""),
        ("SCAN 0", "[$0 []]"),
        ("KEYS *", "[]"),
        ("RANDOMKEY", "_"),
        ("SET k v PX 50", "+OK"),
        ("FLUSHDB SYNC", "+OK"),
        ("SET k v PX 50", "+OK"),
        ("PTTL k", ":50"),
        ("@50", ""),
        ("GET k", "_"),
    ]);
    let mut cluster = single();
    let long = "*".repeat(1025);
    let got = show(&cluster.call(addr(1, 0), &format!("KEYS {long}")));
    assert_eq!(got, "-ERR pattern is longer than 1024 bytes");
}

#[test]
fn time_to_live() {
    check(&[
        ("SET k v EX 10", "+OK"),
        ("TTL k", ":10"),
        ("PTTL k", ":10000"),
        ("EXPIRETIME k", ":1700000010"),
        ("PEXPIRETIME k", ":1700000010000"),
        ("@9400", ""),
        ("TTL k", ":1"),
        ("PTTL k", ":600"),
        ("GET k", "$v"),
        ("@599", ""),
        ("GET k", "$v"),
        ("@1", ""),
        ("GET k", "_"),
        ("TTL k", ":-2"),
        ("SET k v PX 100", "+OK"),
        ("SET k w KEEPTTL", "+OK"),
        ("PTTL k", ":100"),
        ("APPEND k !", ":2"),
        ("PTTL k", ":100"),
        ("SET k v", "+OK"),
        ("TTL k", ":-1"),
        ("EXPIRETIME k", ":-1"),
        ("TTL none", ":-2"),
        ("SETEX k 5 v", "+OK"),
        ("TTL k", ":5"),
        ("PSETEX k 1500 v", "+OK"),
        ("PTTL k", ":1500"),
        ("TTL k", ":2"),
        ("PERSIST k", ":1"),
        ("PERSIST k", ":0"),
        ("PERSIST none", ":0"),
        ("TTL k", ":-1"),
        ("SET k v EXAT 1700000020", "+OK"),
        ("PEXPIRETIME k", ":1700000020000"),
        ("SET k v PXAT 1700000020500", "+OK"),
        ("EXPIRETIME k", ":1700000021"),
        ("SET k v EXAT 1", "+OK"),
        ("GET k", "_"),
        ("SET n 5 PX 50", "+OK"),
        ("@50", ""),
        ("INCR n", ":1"),
        ("TTL n", ":-1"),
    ]);
}

#[test]
fn expire_and_its_conditions() {
    check(&[
        ("EXPIRE k 10", ":0"),
        ("SET k v", "+OK"),
        ("EXPIRE k 10 XX", ":0"),
        ("EXPIRE k 10 GT", ":0"),
        ("EXPIRE k 10 LT", ":1"),
        ("EXPIRE k 20 NX", ":0"),
        ("EXPIRE k 5 GT", ":0"),
        ("EXPIRE k 20 GT", ":1"),
        ("EXPIRE k 30 LT", ":0"),
        ("PEXPIRE k 1500 XX LT", ":1"),
        ("PTTL k", ":1500"),
        ("EXPIREAT k 1700000100", ":1"),
        ("TTL k", ":100"),
        ("PEXPIREAT k 1700000000001", ":1"),
        ("PTTL k", ":1"),
        ("EXPIRE k -1", ":1"),
        ("EXISTS k", ":0"),
        ("SET k v", "+OK"),
        ("EXPIREAT k 1", ":1"),
        ("GET k", "_"),
        ("EXPIRE k abc", INTEGER),
        ("EXPIRE k 1 bogus", "-ERR Unsupported option bogus"),
        (
            "EXPIRE k 1 NX XX",
            "-ERR NX and XX, GT or LT options at the same time are not compatible",
        ),
        ("EXPIRE k 1 GT LT", "-ERR GT and LT options at the same time are not compatible"),
        ("EXPIRE k 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
        ("PEXPIRE k 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
        ("EXPIRE k", &format!("{ARITY} 'expire' command")),
    ]);
}

#[test]
fn numbers() {
    check(&[
        ("INCR n", ":1"),
        ("INCRBY n 41", ":42"),
        ("DECR n", ":41"),
        ("DECRBY n 50", ":-9"),
        ("DECRBY n -9", ":0"),
        ("GET n", "$0"),
        ("SET n 9223372036854775807", "+OK"),
        ("INCR n", "-ERR increment or decrement would overflow"),
        ("GET n", "$9223372036854775807"),
        ("SET n -9223372036854775808", "+OK"),
        ("DECR n", "-ERR increment or decrement would overflow"),
        ("INCRBY n x", INTEGER),
        ("INCRBY n 9223372036854775808", INTEGER),
        ("DECRBY n -9223372036854775808", "-ERR decrement would overflow"),
        ("SET n 007", "+OK"),
        ("INCR n", INTEGER),
        ("SET n 1.5", "+OK"),
        ("INCR n", INTEGER),
        ("SET n +1", "+OK"),
        ("INCR n", INTEGER),
        ("SET n -0", "+OK"),
        ("INCR n", INTEGER),
        ("INCR", &format!("{ARITY} 'incr' command")),
    ]);
}

#[test]
fn strings() {
    check(&[
        ("APPEND k Hello", ":5"),
        ("APPEND k -World", ":11"),
        ("GET k", "$Hello-World"),
        ("GETRANGE k 0 4", "$Hello"),
        ("GETRANGE k -5 -1", "$World"),
        ("GETRANGE k 0 -1", "$Hello-World"),
        ("SUBSTR k 6 100", "$World"),
        ("GETRANGE k 5 3", "$"),
        ("GETRANGE k 100 200", "$"),
        ("GETRANGE k -100 -200", "$"),
        ("GETRANGE k -100 0", "$H"),
        ("GETRANGE none 0 -1", "$"),
        ("GETRANGE k a 1", INTEGER),
        ("SETRANGE k 6 Redis", ":11"),
        ("GET k", "$Hello-Redis"),
        ("SETRANGE p 3 x", ":4"),
        ("GET p", "$\0\0\0x"),
        ("SETRANGE k 0 ", ":11"),
        ("SETRANGE none 5 ", ":0"),
        ("EXISTS none", ":0"),
        ("SETRANGE k -1 x", "-ERR offset is out of range"),
        ("SETRANGE k x x", INTEGER),
        ("SETRANGE k 8388608 x", "-ERR string exceeds maximum allowed size (proto-max-bulk-len)"),
        ("STRLEN k", ":11"),
    ]);
}

#[test]
fn several_keys() {
    check(&[
        ("MSET a 1 b 2 c 3", "+OK"),
        ("MGET a none c", "[$1 _ $3]"),
        ("MSET a 1 b", &format!("{ARITY} 'mset' command")),
        ("MSET a 1 a 2", "+OK"),
        ("GET a", "$2"),
        ("EXISTS a b a none", ":3"),
        ("TOUCH a none", ":1"),
        ("DEL a none b a", ":2"),
        ("UNLINK c", ":1"),
        ("MGET a b c", "[_ _ _]"),
        ("MGET", &format!("{ARITY} 'mget' command")),
        ("DEL", &format!("{ARITY} 'del' command")),
    ]);
}

/// Redis names the command and its first arguments, at most 128 bytes of them.
#[test]
fn unknown_commands_are_named() {
    check(&[
        ("FOO", "-ERR unknown command 'FOO', with args beginning with: "),
        ("foo a b", "-ERR unknown command 'foo', with args beginning with: 'a' 'b' "),
        ("PING", "-ERR 'ping' has no keys"),
    ]);
    let long = [b'x'; 300];
    let Err(Reply::Error(text)) = decode(&[b"f\r\no", &long, b"more"], WallMillis(0)) else {
        panic!("unknown commands are refused")
    };
    assert!(text.starts_with("ERR unknown command 'f  o', with args beginning with: 'xxx"));
    assert_eq!(text.matches('x').count(), 128);
    assert!(!text.contains("more"));
}

/// Values come back byte for byte, whatever their size: inline, shared, and empty.
#[test]
fn values_of_every_size_come_back() {
    let mut cluster = single();
    for len in [0, 1, 63, 64, 65, 4096, VALUE_BYTES_MAX] {
        let value: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let token = cluster.submit(addr(1, 0), &[b"SET", b"\0k\r\n", &value]);
        assert_eq!(cluster.wait(token), Reply::OK, "{len}");
        let token = cluster.submit(addr(1, 0), &[b"GET", b"\0k\r\n"]);
        let bytes = match cluster.wait(token) {
            Reply::Bulk(bytes) => bytes,
            Reply::Value(slice) => slice.bytes().to_vec(),
            other => panic!("{len}: {other:?}"),
        };
        assert!(bytes == value, "{len} bytes differ");
        let token = cluster.submit(addr(1, 0), &[b"GETRANGE", b"\0k\r\n", b"-3", b"-1"]);
        assert_eq!(
            show(&cluster.wait(token)),
            show(&Reply::Bulk(value[len.saturating_sub(3)..].to_vec()))
        );
    }
    let token = cluster.submit(addr(1, 0), &[b"APPEND", b"\0k\r\n", b"x"]);
    assert_eq!(
        show(&cluster.wait(token)),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)"
    );
}

#[test]
fn sizes_are_limited_at_the_exact_byte() {
    let key = vec![b'k'; KEY_BYTES_MAX + 1];
    let value = vec![b'v'; VALUE_BYTES_MAX + 1];
    let ok = |args: &[&[u8]]| decode(args, WallMillis(0)).is_ok();
    assert!(ok(&[b"SET", &key[1..], &value[1..]]));
    assert!(ok(&[b"MSET", b"a", &key, &key[1..], b"b"]), "values may be longer than keys");
    let refused: &[(&[&[u8]], &str)] = &[
        (&[b"SET", &key, b"v"], "-ERR key is longer than 65536 bytes"),
        (&[b"MSET", b"a", b"1", &key, b"2"], "-ERR key is longer than 65536 bytes"),
        (&[b"DEL", b"a", &key], "-ERR key is longer than 65536 bytes"),
        (&[b"SET", b"k", &value], "-ERR string exceeds maximum allowed size (proto-max-bulk-len)"),
        (
            &[b"MSET", b"a", &value[1..], b"b", &value[1..]],
            "-ERR command of 16777258 bytes is larger than 9437184 bytes",
        ),
    ];
    for (args, want) in refused {
        let reply = decode(args, WallMillis(0)).expect_err(want);
        assert_eq!(show(&reply), *want);
    }
}
