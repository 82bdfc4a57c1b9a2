//! Many values of many keys: written, read back and compared, and found in the files of a node.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use coracle_engine::Reply;

use super::client::{Client, text};
use super::{Node, wait_until};

/// Requests in flight on the one connection.
const WINDOW: usize = 32;

/// What `key` holds in this version: `len` bytes, no two alike.
pub fn value(key: &str, version: u32, len: usize) -> Vec<u8> {
    let text = format!("{key}/{version} ");
    text.bytes().cycle().take(len).collect()
}

/// Writes a version of all keys, some at a time.
pub fn write(client: &mut Client, keys: &[String], version: u32, len: usize) {
    let set = |client: &mut Client, key: &String| {
        client.send(&[b"SET", key.as_bytes(), &value(key, version, len)]).expect("send");
    };
    in_flight(client, keys, &set, &|key, reply| assert_eq!(reply, Reply::OK, "{key}"));
}

/// Reads all keys and compares.
pub fn check(node: &Node, keys: &[String], version: u32, len: usize) {
    check_with(&mut node.client(), keys, &|key| value(key, version, len));
}

/// Reads all keys and compares with what they should hold.
pub fn check_with(client: &mut Client, keys: &[String], want: &dyn Fn(&str) -> Vec<u8>) {
    let read = |client: &mut Client, key: &String| client.send(&["GET", key]).expect("send");
    in_flight(client, keys, &read, &|key, reply| {
        assert_eq!(text(&reply), text(&Reply::Bulk(want(key))), "{key}");
    });
}

/// Sends a command for each key, some at a time; again for those that cannot be served yet, as when
/// a leader was killed a moment ago.
pub fn in_flight(
    client: &mut Client,
    keys: &[String],
    send: &dyn Fn(&mut Client, &String),
    answered: &dyn Fn(&str, Reply),
) {
    let later = |reply: &Reply| match reply {
        Reply::Error(why) => why.starts_with("TRYAGAIN ") || why.starts_with("UNCERTAIN "),
        _ => false,
    };
    for keys in keys.chunks(WINDOW) {
        keys.iter().for_each(|key| send(client, key));
        let replies: Vec<_> = keys.iter().map(|_| client.reply().expect("a reply")).collect();
        for (key, mut reply) in keys.iter().zip(replies) {
            wait_until(&format!("{key} is served"), || {
                if later(&reply) {
                    send(client, key);
                    reply = client.reply().expect("a reply");
                }
                !later(&reply)
            });
            answered(key, reply);
        }
    }
}

/// A number of `INFO`.
pub fn info(client: &mut Client, name: &str) -> u64 {
    let info = text(&client.run("INFO"));
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {info}")).parse().expect("a number")
}

/// The files of core 0 with this ending, sorted.
pub fn files(node: &Node, ending: &str) -> Vec<PathBuf> {
    let dir = fs::read_dir(node.data_dir.join("core-0")).expect("list");
    let mut files: Vec<_> = dir.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort();
    files
}

/// Changes a byte of a file.
pub fn flip(path: &PathBuf, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("write");
}
