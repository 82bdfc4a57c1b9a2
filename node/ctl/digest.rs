//! `coracle ctl digest`: every replica of every group is asked what it holds at the same entry.
//!
//! Each leader is told to put a check into its log (`CLUSTER DIGESTS NOW`); then all nodes are
//! asked what their replicas told at the newest entries (`CLUSTER DIGESTS`), until there is a newer
//! one than before at which all replicas of a group told theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Table, presets};
use coracle_engine::Reply;
use serde_json::json;

use super::print;
use crate::client::{Client, Timeouts};
use crate::config::read_password;
use crate::fatal::{Exit, Fatal};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Flags of `coracle ctl digest`.
#[derive(Args, Debug)]
pub(super) struct DigestArgs {
    /// A node of the cluster, or several that are tried in order
    #[arg(
        long,
        env = "CORACLE_ENDPOINTS",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:6379"
    )]
    addr: Vec<String>,
    /// File that holds the password (or set CORACLE_REQUIREPASS)
    #[arg(long, env = "CORACLE_REQUIREPASS_FILE", value_name = "FILE")]
    requirepass_file: Option<std::path::PathBuf>,
    /// Seconds to wait for all replicas
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What one replica told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    group: u64,
    node: u64,
    index: u64,
    digest: String,
    standing: String,
}

/// What is known of a group: what its replicas told, by index and node.
#[derive(Clone, Debug, Default)]
struct Group {
    replicas: BTreeSet<u64>,
    told: BTreeMap<u64, BTreeMap<u64, Told>>,
}

impl Group {
    /// The newest index after `after` at which all replicas told what they hold; else the newest
    /// at which most did.
    fn best(&self, after: u64) -> Option<(u64, &BTreeMap<u64, Told>)> {
        let newer = self.told.range(after + 1..);
        newer.max_by_key(|(index, told)| (told.len(), **index)).map(|(index, told)| (*index, told))
    }

    fn is_complete(&self, after: u64) -> bool {
        self.best(after).is_some_and(|(_, told)| told.len() == self.replicas.len())
    }
}

/// Runs `coracle ctl digest`.
pub(super) fn run(args: &DigestArgs) -> Result<ExitCode, Fatal> {
    let password = match &args.requirepass_file {
        Some(path) => Some(read_password(path)?),
        None => std::env::var_os("CORACLE_REQUIREPASS").map(std::ffi::OsString::into_encoded_bytes),
    };
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut nodes = nodes(args, password.as_deref())?;
    let mut groups = BTreeMap::new();
    ask(&mut nodes, false, &mut groups)?;
    let before: BTreeMap<u64, u64> = groups
        .iter()
        .map(|(id, group)| (*id, group.told.last_key_value().map_or(0, |(index, _)| *index)))
        .collect();
    ask(&mut nodes, true, &mut groups)?;
    let after = |id: &u64| before.get(id).copied().unwrap_or(0);
    while Instant::now() < deadline {
        ask(&mut nodes, false, &mut groups)?;
        if groups.iter().all(|(id, group)| group.is_complete(after(id))) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(show(args, &groups, &after))
}

/// A client for each endpoint of the cluster.
fn nodes(args: &DigestArgs, password: Option<&[u8]>) -> Result<Vec<Client>, Fatal> {
    let client = |endpoints: Vec<String>| {
        let timeouts =
            Timeouts { reply: Duration::from_secs(args.timeout.max(1)), ..Timeouts::default() };
        Client::new(endpoints, password.map(<[u8]>::to_vec)).with_timeouts(timeouts)
    };
    let mut first = client(args.addr.clone());
    let reply = call(&mut first, &[b"CLUSTER", b"NODES"])?;
    let text = match &reply {
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Verbatim(text) => text.clone(),
        other => return Err(unexpected(other)),
    };
    // `id host:port@bus flags …`, Redis "CLUSTER NODES".
    let endpoint = |line: &str| {
        let field = line.split(' ').nth(1)?;
        field.split(['@', ',']).next().map(str::to_owned)
    };
    Ok(text.lines().filter_map(endpoint).map(|endpoint| client(vec![endpoint])).collect())
}

fn call(client: &mut Client, args: &[&[u8]]) -> Result<Reply, Fatal> {
    match client.call(args) {
        Ok(Reply::Error(error)) => Err(Fatal::failed("a node refuses", error, "")),
        Ok(reply) => Ok(reply),
        Err(error) => Err(Fatal::new(
            Exit::Unreachable,
            "cannot ask the cluster",
            error.to_string(),
            "name a node that runs with --addr, or set CORACLE_ENDPOINTS",
        )),
    }
}

fn unexpected(reply: &Reply) -> Fatal {
    Fatal::failed("a node gives an answer that makes no sense", format!("{reply:?}"), "")
}

/// Asks every node. Nodes that do not answer are left out: their replicas stay untold.
fn ask(nodes: &mut Vec<Client>, now: bool, groups: &mut BTreeMap<u64, Group>) -> Result<(), Fatal> {
    let words: &[&[u8]] =
        if now { &[b"CLUSTER", b"DIGESTS", b"NOW"] } else { &[b"CLUSTER", b"DIGESTS"] };
    let mut failed = None;
    nodes.retain_mut(|node| match call(node, words).and_then(|reply| read(&reply, groups)) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    match failed {
        Some(error) if nodes.is_empty() => Err(error),
        _ => Ok(()),
    }
}

/// One row for each group: number, replicas, then what was told: node, index, digest, standing.
fn read(reply: &Reply, groups: &mut BTreeMap<u64, Group>) -> Result<(), Fatal> {
    let malformed = || unexpected(reply);
    let number = |reply: &Reply| match reply {
        Reply::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let text = |reply: &Reply| match reply {
        Reply::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let Reply::Array(rows) = reply else { return Err(malformed()) };
    for row in rows {
        let Reply::Array(row) = row else { return Err(malformed()) };
        let [group, node, replicas, told] = &row[..] else { return Err(malformed()) };
        let (Some(id), Some(node)) = (number(group), number(node)) else {
            return Err(malformed());
        };
        let (Reply::Array(replicas), Reply::Array(told)) = (replicas, told) else {
            return Err(malformed());
        };
        let group = groups.entry(id).or_default();
        group.replicas.extend(replicas.iter().filter_map(number));
        for told in told {
            let Reply::Array(told) = told else { return Err(malformed()) };
            let [index, digest, standing] = &told[..] else { return Err(malformed()) };
            let (Some(index), Some(digest), Some(standing)) =
                (number(index), text(digest), text(standing))
            else {
                return Err(malformed());
            };
            let told = Told { group: id, node, index, digest, standing };
            group.told.entry(index).or_default().insert(node, told);
        }
    }
    Ok(())
}

fn show(args: &DigestArgs, groups: &BTreeMap<u64, Group>, after: &dyn Fn(&u64) -> u64) -> ExitCode {
    let (mut different, mut silent, mut rows) = (0, 0, Vec::new());
    for (id, group) in groups {
        let best = group.best(after(id));
        let digests: BTreeSet<&str> =
            best.iter().flat_map(|(_, told)| told.values().map(|told| &*told.digest)).collect();
        different += usize::from(digests.len() > 1);
        let verdict = if digests.len() > 1 { "DIFFERENT" } else { "same" };
        for node in &group.replicas {
            let told = best.and_then(|(_, told)| told.get(node));
            silent += usize::from(told.is_none());
            rows.push(match told {
                Some(told) => (*id, *node, Some(told), verdict),
                None => (*id, *node, None, "no answer"),
            });
        }
    }
    let exit = match (different, silent) {
        (0, 0) => None,
        (0, _) => Some(Exit::Failed),
        _ => Some(Exit::DataDamaged),
    };
    let text = if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(group, node, told, verdict)| {
                json!({
                    "group": group,
                    "node": node,
                    "index": told.map(|told| told.index),
                    "digest": told.map(|told| &told.digest),
                    "standing": told.map(|told| &told.standing),
                    "verdict": verdict,
                })
            })
            .collect();
        let code = exit.map_or(0, Exit::code);
        format!("{:#}\n", json!({ "ok": exit.is_none(), "exit_code": code, "replicas": rows }))
    } else {
        let count = groups.len();
        let summary = format!("{count} groups, {different} with different replicas");
        table(&rows) + &format!("\n{summary}, {silent} replicas without an answer\n")
    };
    print(&text);
    super::status(exit)
}

fn table(rows: &[(u64, u64, Option<&Told>, &str)]) -> String {
    let mut table = Table::new();
    let style = if std::io::stdout().is_terminal() {
        presets::UTF8_FULL_CONDENSED
    } else {
        presets::NOTHING
    };
    table.load_style(style).set_header(["group", "index", "node", "digest", "standing", "verdict"]);
    for (group, node, told, verdict) in rows {
        let field = |show: &dyn Fn(&Told) -> String| told.map_or_else(|| "-".to_owned(), show);
        table.add_row([
            group.to_string(),
            field(&|told| told.index.to_string()),
            node.to_string(),
            field(&|told| told.digest.clone()),
            field(&|told| told.standing.clone()),
            (*verdict).to_owned(),
        ]);
    }
    table.to_string()
}
