use std::cell::Cell;

use coracle_engine::Via;

use super::super::session::tests::session;
use super::super::surveys::Filter;
use super::*;
use crate::config::test_config;

/// A node with its configuration; views of it are made per call.
pub(in crate::server) struct Fixture {
    pub(in crate::server) config: Config,
    stats_asked: Cell<u32>,
    backoff: Backoff,
}

impl Fixture {
    /// Node 1 of three, changed by `flags`.
    pub(in crate::server) fn new(flags: &str) -> Self {
        let nodes = "--node 1=127.0.0.1:7001/7102/7202 --node 2=127.0.0.1:7011/7112/7212 \
                     --node 3=127.0.0.1:7021/7122/7222";
        let config = test_config(&format!("--id 1 --cluster t --data-dir /d {nodes} {flags}"));
        Self { config, stats_asked: Cell::new(0), backoff: Backoff::default() }
    }

    fn with_password(password: &[u8]) -> Self {
        let mut fixture = Self::new("");
        fixture.config.password = Some(crate::password::Password::new(password));
        fixture
    }

    pub(in crate::server) fn with_leaders<T>(
        &self,
        leader_of: &dyn Fn(GroupId) -> Option<NodeId>,
        run: impl FnOnce(&View<'_>) -> T,
    ) -> T {
        let stats = || {
            self.stats_asked.set(self.stats_asked.get() + 1);
            NodeStats::sample(self.config.map.core_count())
        };
        run(&View {
            config: &self.config,
            map: &self.config.map,
            me: self.config.core_addr(0),
            backoff: &self.backoff,
            now: WallMillis(1_700_000_012_345),
            started: WallMillis(1_700_000_000_000),
            leader_of,
            keys_in_slot: &|slot| u64::from(slot.get()),
            keys_of_slot: &|slot, max| {
                (0..max.min(2000)).map(|n| format!("{}:{n}", slot.get()).into_bytes()).collect()
            },
            stats: &stats,
        })
    }

    fn outcome(&self, session: &mut Session, line: &str) -> Outcome {
        let args: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        let spec = command::lookup(args[0]).expect(line);
        self.with_leaders(&|_| Some(NodeId::new(1)), |view| execute(spec, &args, session, view))
    }

    fn run(&self, session: &mut Session, line: &str) -> Reply {
        match self.outcome(session, line) {
            Outcome::Reply(reply) => reply,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn fresh(&self, line: &str) -> Reply {
        self.run(&mut session(Via::Plain, &self.config), line)
    }
}

/// The text in a reply that has one.
pub(in crate::server) fn text(reply: Reply) -> String {
    match reply {
        Reply::Bulk(bytes) => String::from_utf8(bytes).expect("UTF-8"),
        Reply::Verbatim(text) | Reply::Error(text) => text,
        Reply::Status(text) => text.to_owned(),
        other => panic!("no text: {other:?}"),
    }
}

fn field<'a>(map: &'a Reply, name: &str) -> &'a Reply {
    let Reply::Map(pairs) = map else { panic!("not a map: {map:?}") };
    &pairs.iter().find(|(key, _)| *key == bulk(name)).expect(name).1
}

/// What clients' start-up code depends on.
#[test]
fn hello_switches_the_protocol_and_describes_the_server() {
    let fixture = Fixture::new("");
    let mut session = session(Via::Core, &fixture.config);
    for (version, protocol) in [(3, Protocol::Resp3), (2, Protocol::Resp2)] {
        let map = fixture.run(&mut session, &format!("HELLO {version} SETNAME web"));
        assert_eq!(session.protocol, protocol);
        assert_eq!(*field(&map, "version"), bulk(REDIS_VERSION), "a string, redis-cli asserts");
        assert_eq!(*field(&map, "proto"), Reply::Integer(version));
        assert_eq!(*field(&map, "mode"), bulk("cluster"));
        assert_eq!(*field(&map, "modules"), Reply::Array(vec![]));
    }
    assert_eq!(session.name, "web");
    let cases = [
        ("HELLO 4", "NOPROTO unsupported protocol version"),
        ("HELLO x", "ERR Protocol version is not an integer or out of range"),
        ("HELLO 3 FOO", "ERR Syntax error in HELLO option 'FOO'"),
        ("HELLO 3 AUTH default", "ERR Syntax error in HELLO option 'AUTH'"),
    ];
    for (line, error) in cases {
        assert_eq!(fixture.run(&mut session, line), Reply::error(error), "{line}");
        assert_eq!(session.protocol, Protocol::Resp2, "{line} changes nothing");
    }
}

/// Without the password nothing but the handshake works.
#[test]
fn a_password_closes_everything_but_the_handshake() {
    let fixture = Fixture::with_password(b"sesame");
    let mut session = session(Via::Plain, &fixture.config);
    let refused = |reply: Reply| text(reply).starts_with("NOAUTH ");
    for line in ["CLUSTER SLOTS", "INFO", "COMMAND", "CLIENT LIST", "CONFIG GET *", "HELLO 3"] {
        assert!(refused(fixture.run(&mut session, line)), "{line}");
    }
    assert_eq!(fixture.run(&mut session, "PING"), Reply::Status("PONG"));
    let wrong = ["AUTH open", "AUTH default open", "AUTH root sesame", "HELLO 3 AUTH root sesame"];
    for line in wrong {
        let reply = text(fixture.run(&mut session, line));
        assert_eq!(
            reply, "WRONGPASS invalid username-password pair or user is disabled.",
            "{line}"
        );
        assert!(!session.authenticated, "{line}");
    }
    for line in ["AUTH sesame", "AUTH default sesame", "HELLO 3 AUTH default sesame"] {
        fixture.run(&mut session, line);
        assert!(session.authenticated, "{line}");
        assert_eq!(fixture.run(&mut session, "RESET"), Reply::Status("RESET"));
        assert!(!session.authenticated, "RESET logs out");
    }
    let open = Fixture::new("");
    assert!(text(open.fresh("AUTH x")).starts_with("ERR AUTH <password> called without any"));
    assert_eq!(open.fresh("AUTH default x"), Reply::OK);
}

/// Guessing is slowed down, also for those who guess right, and says nothing about the user.
#[test]
fn guessing_the_password_is_slowed_down() {
    let fixture = Fixture::with_password(b"sesame");
    let mut guesser = session(Via::Plain, &fixture.config);
    let lines = ["AUTH open", "AUTH root sesame", "HELLO 2 AUTH default x"];
    let mut wrong = 0;
    let refusal = loop {
        let reply = text(fixture.run(&mut guesser, lines[wrong % lines.len()]));
        if !reply.starts_with("WRONGPASS ") {
            break reply;
        }
        wrong += 1;
    };
    assert_eq!(wrong, 6);
    let want = "ERR too many failed AUTH attempts from this address, try again in 100 ms";
    assert_eq!(refusal, want);
    for line in lines.iter().chain(&["AUTH sesame", "AUTH root x", "HELLO 3 AUTH default sesame"]) {
        assert_eq!(text(fixture.run(&mut guesser, line)), want, "{line}");
    }
    let mut other = session(Via::Plain, &fixture.config);
    other.ip = std::net::Ipv4Addr::new(127, 0, 0, 2).into();
    assert_eq!(fixture.run(&mut other, "AUTH sesame"), Reply::OK);
}

/// Small commands and their refusals, with Redis' texts.
#[test]
fn small_commands_answer_like_redis() {
    let fixture = Fixture::new("");
    let error = |text: &str| Reply::error(text);
    let array = |items: &[&str]| Reply::Array(items.iter().map(|item| bulk(item)).collect());
    let cases = [
        ("PING", Reply::Status("PONG")),
        ("PING hi", bulk("hi")),
        ("PING a b", error("ERR wrong number of arguments for 'ping' command")),
        ("ECHO hi", bulk("hi")),
        ("SELECT 0", Reply::OK),
        ("SELECT 1", error("ERR SELECT is not allowed in cluster mode")),
        ("SELECT x", error("ERR value is not an integer or out of range")),
        ("ASKING", Reply::OK),
        ("TIME", array(&["1700000012", "345000"])),
        ("WAIT 1 0", Reply::Integer(1)),
        ("WAIT x 0", error("ERR value is not an integer or out of range")),
        ("WAIT 1 -1", error("ERR timeout is negative")),
        ("CLIENT ID", Reply::Integer(7)),
        ("CLIENT GETNAME", Reply::Null),
        ("CLIENT NO-EVICT on", Reply::OK),
        ("CLIENT NO-TOUCH maybe", error("ERR syntax error")),
        ("CLIENT SETINFO LIB-NAME x", Reply::OK),
        ("CLIENT SETINFO LIB-COLOR x", error("ERR Unrecognized option 'LIB-COLOR'")),
        ("CLIENT SETNAME", error("ERR wrong number of arguments for 'client|setname' command")),
        (
            "CLIENT MAINT_NOTIFICATIONS ON",
            error("ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP."),
        ),
        ("CLUSTER KEYSLOT foo", Reply::Integer(12182)),
        ("CLUSTER COUNTKEYSINSLOT 12", Reply::Integer(12)),
        ("CLUSTER COUNTKEYSINSLOT 16384", error("ERR Invalid or out of range slot")),
        ("CLUSTER COUNTKEYSINSLOT -1", error("ERR Invalid or out of range slot")),
        ("CLUSTER GETKEYSINSLOT 5 0", array(&[])),
        ("CLUSTER GETKEYSINSLOT 5 2", array(&["5:0", "5:1"])),
        ("CLUSTER GETKEYSINSLOT 16384 1", error("ERR Invalid or out of range slot")),
        ("CLUSTER GETKEYSINSLOT 5 -1", error("ERR Invalid slot or number of keys")),
        ("CLUSTER GETKEYSINSLOT 5 x", error("ERR Invalid slot or number of keys")),
        (
            "CLUSTER GETKEYSINSLOT 5",
            error("ERR wrong number of arguments for 'cluster|getkeysinslot' command"),
        ),
        ("CLUSTER REPLICAS abc", error("ERR Unknown node abc")),
        ("CLUSTER MEET", error("ERR unknown subcommand 'MEET'. Try CLUSTER HELP.")),
        ("CLUSTER SLOTS x", error("ERR wrong number of arguments for 'cluster|slots' command")),
        ("CONFIG GET", error("ERR wrong number of arguments for 'config|get' command")),
        ("CONFIG REWRITE", error("ERR unknown subcommand 'REWRITE'. Try CONFIG HELP.")),
    ];
    for (line, want) in cases {
        assert_eq!(fixture.fresh(line), want, "{line}");
    }
    for (count, want) in [(999, 999), (1000, 1000), (1001, 1000)] {
        let reply = fixture.fresh(&format!("CLUSTER GETKEYSINSLOT 5 {count}"));
        assert!(matches!(&reply, Reply::Array(keys) if keys.len() == want), "{count}");
    }
    let id = text(fixture.fresh("CLUSTER MYID"));
    assert_eq!(id.len(), 40);
    assert_eq!(fixture.fresh(&format!("CLUSTER REPLICAS {id}")), Reply::Array(vec![]));
    assert_eq!(fixture.fresh(&format!("CLUSTER COUNT-FAILURE-REPORTS {id}")), Reply::Integer(0));
    assert_eq!(text(fixture.fresh("CLUSTER MYSHARDID")).len(), 40);
    assert_eq!(fixture.stats_asked.get(), 0, "numbers are gathered only when shown");
}

/// Which clients `CLIENT LIST` and `CLIENT KILL` ask for (Redis, "CLIENT KILL": the asking
/// connection is left out unless SKIPME says otherwise, and never in the old form).
#[test]
fn client_list_and_kill_ask_all_cores() {
    let fixture = Fixture::new("");
    let all = Filter::default;
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        ("CLIENT LIST", Question::List(all())),
        ("client list type NORMAL", Question::List(all())),
        ("CLIENT LIST TYPE pubsub", Question::List(Filter { nobody: true, ..all() })),
        ("CLIENT LIST ID 4 5", Question::List(Filter { ids: Some(vec![4, 5]), ..all() })),
        ("CLIENT KILL a:1", Question::KillOne(Filter { addr: some("a:1"), ..all() })),
        ("CLIENT KILL ID 3", Question::Kill(Filter { ids: Some(vec![3]), skip: Some(7), ..all() })),
        (
            "CLIENT KILL ADDR a:1 LADDR b:2 SKIPME no USER default",
            Question::Kill(Filter { addr: some("a:1"), laddr: some("b:2"), ..all() }),
        ),
    ];
    for (line, want) in cases {
        let outcome = fixture.outcome(&mut session(Via::Plain, &fixture.config), line);
        assert_eq!(outcome, Outcome::Survey(want), "{line}");
    }
    let refusals = [
        ("CLIENT LIST ID", "ERR syntax error"),
        ("CLIENT LIST ID x", "ERR client-id should be greater than 0"),
        ("CLIENT LIST TYPE x", "ERR Unknown client type 'x'"),
        ("CLIENT KILL", "ERR wrong number of arguments for 'client|kill' command"),
        ("CLIENT KILL ID 0", "ERR client-id should be greater than 0"),
        ("CLIENT KILL ID 1 ADDR", "ERR syntax error"),
        ("CLIENT KILL USER root", "ERR No such user 'root'"),
    ];
    for (line, want) in refusals {
        assert_eq!(fixture.fresh(line), Reply::error(want), "{line}");
    }
}

/// `QUIT` answers and closes.
#[test]
fn quit_closes_after_its_reply() {
    let fixture = Fixture::with_password(b"x");
    let mut session = session(Via::Plain, &fixture.config);
    assert_eq!(fixture.outcome(&mut session, "QUIT"), Outcome::ReplyThenClose(Reply::OK));
}

/// `CONFIG GET` of what redis-benchmark asks; the password never shows; nothing can be set.
#[test]
fn config_shows_names_of_redis_and_changes_nothing() {
    let fixture = Fixture::with_password(b"canary-9");
    let mut session = session(Via::Plain, &fixture.config);
    fixture.run(&mut session, "AUTH canary-9");
    let get = |session: &mut Session, line: &str| match fixture.run(session, line) {
        Reply::Map(pairs) => pairs.into_iter().map(|(k, v)| (text(k), text(v))).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(get(&mut session, "CONFIG GET save"), [pair("save", "")]);
    assert_eq!(get(&mut session, "CONFIG GET appendonly"), [pair("appendonly", "yes")]);
    let two = get(&mut session, "CONFIG GET databases timeout");
    assert_eq!(two, [pair("databases", "1"), pair("timeout", "0")]);
    assert_eq!(get(&mut session, "CONFIG GET nothing"), []);
    let all = get(&mut session, "CONFIG GET *");
    assert!(all.is_sorted() && all.len() > 8, "{all:?}");
    assert!(!format!("{all:?}").contains("canary"), "{all:?}");
    let set = text(fixture.run(&mut session, "CONFIG SET maxmemory 1"));
    assert!(set.contains("immutable") && set.contains("'maxmemory'"), "{set}");
    let unknown = text(fixture.run(&mut session, "CONFIG SET foo 1"));
    assert_eq!(unknown, "ERR Unknown option or number of arguments for CONFIG SET - 'foo'");
}

/// Connection state that other commands depend on, and `RESET`.
#[test]
fn connection_state_changes_and_resets() {
    let fixture = Fixture::new("");
    let mut session = session(Via::Core, &fixture.config);
    fixture.run(&mut session, "READONLY");
    assert_eq!(session.read_mode, ReadMode::AnyReplica);
    fixture.run(&mut session, "READWRITE");
    assert_eq!(session.read_mode, ReadMode::Leader);
    fixture.run(&mut session, "READONLY");
    fixture.run(&mut session, "HELLO 3 SETNAME a");
    session.note("client", WallMillis(0));
    let line = text(fixture.run(&mut session, "CLIENT INFO"));
    for part in ["id=7 ", "addr=127.0.0.1:5 ", "name=a ", "flags=r ", "resp=3", "cmd=client"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    fixture.run(&mut session, "RESET");
    assert_eq!(session.read_mode, ReadMode::Leader);
    assert_eq!((session.protocol, session.name.as_str()), (Protocol::Resp2, ""));
}

/// `COMMAND` answers with rows of ten and knows every command of the table.
#[test]
fn command_lists_the_whole_table() {
    let fixture = Fixture::new("");
    let count = i64::try_from(command::SPECS.len()).expect("short");
    assert_eq!(fixture.fresh("COMMAND COUNT"), Reply::Integer(count));
    let Reply::Array(rows) = fixture.fresh("COMMAND") else { panic!("an array") };
    assert_eq!(rows.len(), command::SPECS.len());
    for row in rows {
        let Reply::Array(row) = row else { panic!("an array") };
        assert_eq!(row.len(), 10, "{row:?}");
    }
}

/// Every command of node scope is answered with its least arguments, whatever they are.
#[test]
fn every_node_command_has_an_answer() {
    let fixture = Fixture::new("");
    for spec in command::SPECS.iter().filter(|spec| spec.scope == command::Scope::Node) {
        let line = format!("{}{}", spec.name, " 0".repeat(spec.arity.unsigned_abs() as usize - 1));
        let outcome = fixture.outcome(&mut session(Via::Plain, &fixture.config), &line);
        let (Outcome::Reply(reply) | Outcome::ReplyThenClose(reply)) = outcome else { continue };
        let missing = matches!(&reply, Reply::Error(e) if e.contains("is not answered"));
        assert!(!missing, "{line}: {reply:?}");
    }
}
