//! The one table of commands: dispatch, arity, key positions, flags and documentation come
//! from here.

/// Who answers a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The node that received it; it touches no key.
    Node,
    /// The core that leads its keys' group, through the engine.
    Data,
    /// The leaders of all groups, through the engine; it names no key.
    Keyspace,
}

/// One command: how it is called, routed and documented.
#[derive(Debug)]
pub struct Spec {
    /// Lower-case name.
    pub name: &'static str,
    /// Which command it is.
    pub id: CommandId,
    /// Number of arguments including the name; negative: at least that many.
    pub arity: i32,
    /// Who answers it.
    pub scope: Scope,
    /// Position of the first key, 0 if there is none.
    pub first_key: i32,
    /// Position of the last key; negative counts from the end.
    pub last_key: i32,
    /// Distance between keys.
    pub step: i32,
    /// Flags as `COMMAND` reports them.
    pub flags: &'static [&'static str],
    /// Access-control categories, with their `@`.
    pub acl: &'static [&'static str],
    /// Command tips for clients and proxies.
    pub tips: &'static [&'static str],
    /// Documentation group.
    pub group: &'static str,
    /// Redis version that introduced it (our own version for extensions).
    pub since: &'static str,
    /// Arguments after the name, in the notation of the Redis documentation.
    pub syntax: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
}

impl Spec {
    /// Whether it has a flag of `COMMAND`.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether it may be called with `count` arguments, its name included.
    pub fn accepts(&self, count: usize) -> bool {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        if self.arity >= 0 { count == self.arity } else { count >= -self.arity }
    }

    /// Positions of the keys in a call with `count` arguments, its name included.
    pub fn key_positions(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = usize::try_from(self.first_key).unwrap_or(0);
        let last = match usize::try_from(self.last_key) {
            Ok(last) => last + 1,
            Err(_) => count.saturating_sub(self.last_key.unsigned_abs() as usize - 1),
        };
        let step = usize::try_from(self.step).unwrap_or(1).max(1);
        let range = if first == 0 { 0..0 } else { first..last.min(count) };
        range.step_by(step)
    }
}

macro_rules! commands {
    ($( $id:ident $name:literal $arity:literal $scope:ident
        keys($first:literal, $last:literal, $step:literal)
        flags[$($flag:literal)*] acl[$($acl:literal)*] tips[$($tip:literal)*]
        $group:literal $since:literal
        $syntax:literal
        $summary:literal; )*) => {
        /// Names of all commands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CommandId {
            $( #[doc = $summary] $id, )*
        }

        /// All commands.
        pub static SPECS: &[Spec] = &[ $( Spec {
            name: $name,
            id: CommandId::$id,
            arity: $arity,
            scope: Scope::$scope,
            first_key: $first,
            last_key: $last,
            step: $step,
            flags: &[$($flag),*],
            acl: &[$($acl),*],
            tips: &[$($tip),*],
            group: $group,
            since: $since,
            syntax: $syntax,
            summary: $summary,
        }, )* ];

        /// The names again, where a constant expression can see them.
        const NAMES: &[&str] = &[$($name),*];
    };
}

commands! {
    // Connection and server: answered by the node that received them.
    Ping "ping" -1 Node keys(0, 0, 0)
        flags["fast"] acl["@fast" "@connection"]
        tips["request_policy:all_shards" "response_policy:all_succeeded"]
        "connection" "1.0.0" "[message]"
        "Returns the server's liveliness response.";
    Echo "echo" 2 Node keys(0, 0, 0)
        flags["loading" "stale" "fast"] acl["@fast" "@connection"] tips[]
        "connection" "1.0.0" "message"
        "Returns the given string.";
    Hello "hello" -1 Node keys(0, 0, 0)
        flags["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"]
        acl["@fast" "@connection"] tips[]
        "connection" "6.0.0" "[protover [AUTH username password] [SETNAME clientname]]"
        "Handshakes with the server.";
    Auth "auth" -2 Node keys(0, 0, 0)
        flags["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"]
        acl["@fast" "@connection"] tips[]
        "connection" "1.0.0" "[username] password"
        "Authenticates the connection.";
    Quit "quit" -1 Node keys(0, 0, 0)
        flags["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"]
        acl["@fast" "@connection"] tips[]
        "connection" "1.0.0" ""
        "Closes the connection.";
    Reset "reset" 1 Node keys(0, 0, 0)
        flags["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"]
        acl["@fast" "@connection"] tips[]
        "connection" "6.2.0" ""
        "Resets the connection.";
    Select "select" 2 Node keys(0, 0, 0)
        flags["loading" "stale" "fast"] acl["@fast" "@connection"] tips[]
        "connection" "1.0.0" "index"
        "Changes the selected database; only database 0 exists.";
    Client "client" -2 Node keys(0, 0, 0)
        flags["noscript" "loading" "stale"] acl["@slow" "@connection"] tips[]
        "connection" "2.4.0" "subcommand [arguments ...]"
        "Inspects and changes client connections.";
    Command "command" -1 Node keys(0, 0, 0)
        flags["loading" "stale"] acl["@slow" "@connection"] tips["nondeterministic_output_order"]
        "server" "2.8.13" "[COUNT | DOCS [name ...] | GETKEYS command ... | INFO [name ...] | LIST]"
        "Returns detailed information about all commands.";
    Info "info" -1 Node keys(0, 0, 0)
        flags["loading" "stale"] acl["@slow" "@dangerous"]
        tips["nondeterministic_output" "request_policy:all_shards" "response_policy:special"]
        "server" "1.0.0" "[section ...]"
        "Returns information and statistics about the server.";
    Config "config" -2 Node keys(0, 0, 0)
        flags["admin" "noscript" "loading" "stale"] acl["@admin" "@slow" "@dangerous"] tips[]
        "server" "2.0.0" "GET pattern ... | SET name value ..."
        "Reads and changes the configuration.";
    Cluster "cluster" -2 Node keys(0, 0, 0)
        flags["stale"] acl["@slow"] tips["nondeterministic_output"]
        "cluster" "3.0.0" "subcommand [arguments ...]"
        "Describes the cluster.";
    ReadOnly "readonly" 1 Node keys(0, 0, 0)
        flags["loading" "stale" "fast"] acl["@fast" "@connection"] tips[]
        "cluster" "3.0.0" ""
        "Lets any replica answer this connection's reads, still linearizable.";
    ReadWrite "readwrite" 1 Node keys(0, 0, 0)
        flags["loading" "stale" "fast"] acl["@fast" "@connection"] tips[]
        "cluster" "3.0.0" ""
        "Sends this connection's reads to leaders again.";
    Asking "asking" 1 Node keys(0, 0, 0)
        flags["fast"] acl["@fast" "@connection"] tips[]
        "cluster" "3.0.0" ""
        "Accepted for compatibility; slots never redirect with ASK.";
    DbSize "dbsize" 1 Keyspace keys(0, 0, 0)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"]
        tips["request_policy:all_shards" "response_policy:agg_sum"]
        "server" "1.0.0" ""
        "Returns the number of keys.";
    FlushAll "flushall" -1 Keyspace keys(0, 0, 0)
        flags["write"] acl["@keyspace" "@write" "@slow" "@dangerous"]
        tips["request_policy:all_shards" "response_policy:all_succeeded"]
        "server" "1.0.0" "[ASYNC | SYNC]"
        "Removes all keys, atomically within each group.";
    FlushDb "flushdb" -1 Keyspace keys(0, 0, 0)
        flags["write"] acl["@keyspace" "@write" "@slow" "@dangerous"]
        tips["request_policy:all_shards" "response_policy:all_succeeded"]
        "server" "1.0.0" "[ASYNC | SYNC]"
        "Removes all keys, like FLUSHALL: there is one database.";
    Keys "keys" 2 Keyspace keys(0, 0, 0)
        flags["readonly"] acl["@keyspace" "@read" "@slow" "@dangerous"]
        tips["request_policy:all_shards" "nondeterministic_output_order"]
        "generic" "1.0.0" "pattern"
        "Returns all key names that match a pattern, if they are not too many.";
    RandomKey "randomkey" 1 Keyspace keys(0, 0, 0)
        flags["readonly"] acl["@keyspace" "@read" "@slow"]
        tips["request_policy:all_shards" "response_policy:special" "nondeterministic_output"]
        "generic" "1.0.0" ""
        "Returns a random key name.";
    Scan "scan" -2 Keyspace keys(0, 0, 0)
        flags["readonly"] acl["@keyspace" "@read" "@slow"]
        tips["nondeterministic_output" "request_policy:special" "response_policy:special"]
        "generic" "2.8.0" "cursor [MATCH pattern] [COUNT count] [TYPE type]"
        "Iterates over the key names.";
    Time "time" 1 Node keys(0, 0, 0)
        flags["loading" "stale" "fast"] acl["@fast"] tips["nondeterministic_output"]
        "server" "2.6.0" ""
        "Returns the server's time.";
    Wait "wait" 3 Node keys(0, 0, 0)
        flags["blocking"] acl["@slow" "@blocking" "@connection"]
        tips["request_policy:all_shards" "response_policy:agg_min"]
        "generic" "3.0.0" "numreplicas timeout"
        "Returns the number of replicas that hold every acknowledged write.";

    // Strings.
    Get "get" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@read" "@string" "@fast"] tips[]
        "string" "1.0.0" "key"
        "Returns the string value of a key.";
    Set "set" -3 Data keys(1, 1, 1)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "1.0.0"
        "key value [NX | XX] [GET] [EX s | PX ms | EXAT unix-s | PXAT unix-ms | KEEPTTL]"
        "Sets the string value of a key, ignoring its type. The key is made if it does not exist.";
    Put "put" -3 Data keys(1, 1, 1)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "0.1.0"
        "key value [NX | XX] [GET] [EX s | PX ms | EXAT unix-s | PXAT unix-ms | KEEPTTL]"
        "Another name for SET.";
    Append "append" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "2.0.0" "key value"
        "Appends a string to the value of a key. Creates the key if it does not exist.";
    StrLen "strlen" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@read" "@string" "@fast"] tips[]
        "string" "2.2.0" "key"
        "Returns the length of a string value.";
    Incr "incr" 2 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key"
        "Increments the integer value of a key by one. Uses 0 as initial value.";
    Decr "decr" 2 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key"
        "Decrements the integer value of a key by one. Uses 0 as initial value.";
    IncrBy "incrby" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key increment"
        "Increments the integer value of a key by a number. Uses 0 as initial value.";
    DecrBy "decrby" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key decrement"
        "Decrements the integer value of a key by a number. Uses 0 as initial value.";
    IncrByFloat "incrbyfloat" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "2.6.0" "key increment"
        "Adds a decimal number to the value of a key. Uses 0 as initial value.";
    MGet "mget" -2 Data keys(1, -1, 1)
        flags["readonly" "fast"] acl["@read" "@string" "@fast"] tips["request_policy:multi_shard"]
        "string" "1.0.0" "key [key ...]"
        "Atomically returns the string values of one or more keys of one shard.";
    MSet "mset" -3 Data keys(1, -1, 2)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"]
        tips["request_policy:multi_shard" "response_policy:all_succeeded"]
        "string" "1.0.1" "key value [key value ...]"
        "Atomically creates or modifies the string values of one or more keys of one shard.";
    MSetNx "msetnx" -3 Data keys(1, -1, 2)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "1.0.1" "key value [key value ...]"
        "Atomically creates one or more keys of one shard only when none of them exists.";
    GetRange "getrange" 4 Data keys(1, 1, 1)
        flags["readonly"] acl["@read" "@string" "@slow"] tips[]
        "string" "2.4.0" "key start end"
        "Returns a part of the string stored at a key.";
    SubStr "substr" 4 Data keys(1, 1, 1)
        flags["readonly"] acl["@read" "@string" "@slow"] tips[]
        "string" "1.0.0" "key start end"
        "Returns a part of the string stored at a key; an old name for GETRANGE.";
    SetRange "setrange" 4 Data keys(1, 1, 1)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "2.2.0" "key offset value"
        "Overwrites a part of a string value. Creates the key if it does not exist.";
    GetDel "getdel" 2 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "6.2.0" "key"
        "Returns the string value of a key and deletes the key.";
    GetEx "getex" -2 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "6.2.0" "key [EX s | PX ms | EXAT unix-s | PXAT unix-ms | PERSIST]"
        "Returns the string value of a key after setting its expiration time.";
    GetSet "getset" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key value"
        "Sets the string value of a key and returns the previous one.";
    SetNx "setnx" 3 Data keys(1, 1, 1)
        flags["write" "denyoom" "fast"] acl["@write" "@string" "@fast"] tips[]
        "string" "1.0.0" "key value"
        "Sets the string value of a key only when the key does not exist.";
    SetEx "setex" 4 Data keys(1, 1, 1)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "2.0.0" "key seconds value"
        "Sets the string value and the time to live of a key.";
    PSetEx "psetex" 4 Data keys(1, 1, 1)
        flags["write" "denyoom"] acl["@write" "@string" "@slow"] tips[]
        "string" "2.6.0" "key milliseconds value"
        "Sets the string value and the time to live in milliseconds of a key.";

    // Keys.
    Del "del" -2 Data keys(1, -1, 1)
        flags["write"] acl["@keyspace" "@write" "@slow"]
        tips["request_policy:multi_shard" "response_policy:agg_sum"]
        "generic" "1.0.0" "key [key ...]"
        "Deletes one or more keys of one shard.";
    Unlink "unlink" -2 Data keys(1, -1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"]
        tips["request_policy:multi_shard" "response_policy:agg_sum"]
        "generic" "4.0.0" "key [key ...]"
        "Deletes one or more keys of one shard, like DEL.";
    Exists "exists" -2 Data keys(1, -1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"]
        tips["request_policy:multi_shard" "response_policy:agg_sum"]
        "generic" "1.0.0" "key [key ...]"
        "Determines how many of the given keys exist.";
    Touch "touch" -2 Data keys(1, -1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"]
        tips["request_policy:multi_shard" "response_policy:agg_sum"]
        "generic" "3.2.1" "key [key ...]"
        "Returns the number of existing keys out of those given.";
    Type "type" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"] tips[]
        "generic" "1.0.0" "key"
        "Determines the type of value stored at a key.";
    Expire "expire" -3 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"] tips[]
        "generic" "1.0.0" "key seconds [NX | XX | GT | LT]"
        "Sets the time to live of a key in seconds.";
    PExpire "pexpire" -3 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"] tips[]
        "generic" "2.6.0" "key milliseconds [NX | XX | GT | LT]"
        "Sets the time to live of a key in milliseconds.";
    ExpireAt "expireat" -3 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"] tips[]
        "generic" "1.2.0" "key unix-time-seconds [NX | XX | GT | LT]"
        "Sets the moment a key expires as Unix time in seconds.";
    PExpireAt "pexpireat" -3 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"] tips[]
        "generic" "2.6.0" "key unix-time-milliseconds [NX | XX | GT | LT]"
        "Sets the moment a key expires as Unix time in milliseconds.";
    Ttl "ttl" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"] tips["nondeterministic_output"]
        "generic" "1.0.0" "key"
        "Returns the time to live of a key in seconds.";
    PTtl "pttl" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"] tips["nondeterministic_output"]
        "generic" "2.6.0" "key"
        "Returns the time to live of a key in milliseconds.";
    ExpireTime "expiretime" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"] tips[]
        "generic" "7.0.0" "key"
        "Returns the moment a key expires as Unix time in seconds.";
    PExpireTime "pexpiretime" 2 Data keys(1, 1, 1)
        flags["readonly" "fast"] acl["@keyspace" "@read" "@fast"] tips[]
        "generic" "7.0.0" "key"
        "Returns the moment a key expires as Unix time in milliseconds.";
    Persist "persist" 2 Data keys(1, 1, 1)
        flags["write" "fast"] acl["@keyspace" "@write" "@fast"] tips[]
        "generic" "2.2.0" "key"
        "Removes the time to live of a key.";
}

/// Slots of the lookup table; at least twice the number of commands keeps probes short.
const LOOKUP_SLOTS: usize = 256;
const _: () = assert!(NAMES.len() * 2 <= LOOKUP_SLOTS, "the lookup table is too full");

/// Marks a free slot.
const FREE: u8 = u8::MAX;

/// Open addressing over [`SPECS`], made at compile time.
static LOOKUP: [u8; LOOKUP_SLOTS] = lookup_table();

/// FNV-1a over the letters without their case.
const fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811C_9DC5;
    let mut i = 0;
    while i < name.len() {
        hash = (hash ^ (name[i] | 0x20) as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (hash ^ (hash >> 15)) as usize % LOOKUP_SLOTS
}

const fn lookup_table() -> [u8; LOOKUP_SLOTS] {
    let mut table = [FREE; LOOKUP_SLOTS];
    let mut i = 0;
    while i < NAMES.len() {
        let mut slot = hash(NAMES[i].as_bytes());
        while table[slot] != FREE {
            slot = (slot + 1) % LOOKUP_SLOTS;
        }
        table[slot] = i as u8;
        i += 1;
    }
    table
}

/// Finds a command by name, in any case.
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    /// Longer than every name, so that hashing is bounded for any input.
    const NAME_BYTES_MAX: usize = 32;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut slot = hash(name);
    loop {
        let spec = SPECS.get(usize::from(LOOKUP[slot]))?;
        if spec.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(spec);
        }
        slot = (slot + 1) % LOOKUP_SLOTS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command is found by its name in both cases, and nothing else is found.
    #[test]
    fn lookup_finds_every_command_in_any_case() {
        for spec in SPECS {
            for name in [spec.name.to_owned(), spec.name.to_uppercase()] {
                assert_eq!(lookup(name.as_bytes()).map(|s| s.id), Some(spec.id), "{name}");
            }
        }
        let long = [b'g'; 4096];
        for name in [&b""[..], b"ge", b"gett", b"\x47\x45\x14", b"flushal", &long] {
            assert!(lookup(name).is_none(), "{name:?}");
        }
    }

    /// The table agrees with itself: flags say what scope and keys say.
    #[test]
    fn specs_are_consistent() {
        for spec in SPECS {
            let name = spec.name;
            assert_eq!(name, name.to_lowercase(), "names are lower case");
            assert_ne!(spec.arity, 0, "{name}");
            assert_eq!(spec.scope == Scope::Data, spec.first_key > 0, "{name}: keys mean data");
            if spec.scope != Scope::Node {
                assert_ne!(spec.has_flag("write"), spec.has_flag("readonly"), "{name}");
                assert_eq!(spec.has_flag("write"), spec.acl.contains(&"@write"), "{name}");
                assert!(!spec.has_flag("denyoom") || spec.has_flag("write"), "{name}");
            }
            assert!(spec.summary.ends_with('.'), "{name}: the summary is a sentence");
        }
    }

    /// Key positions of the three shapes that exist.
    #[test]
    fn key_positions_follow_first_last_and_step() {
        let cases: &[(&str, usize, &[usize])] = &[
            ("get", 2, &[1]),
            ("set", 7, &[1]),
            ("mget", 4, &[1, 2, 3]),
            ("mset", 5, &[1, 3]),
            ("ping", 2, &[]),
            ("get", 1, &[]),
        ];
        for &(name, count, want) in cases {
            let spec = lookup(name.as_bytes()).unwrap();
            assert_eq!(spec.key_positions(count).collect::<Vec<_>>(), want, "{name} {count}");
        }
    }
}
