//! `coracle cli`: one command, a prompt, or commands from a pipe.
//!
//! Results go to stdout, errors to stderr. A value prints as it is, `OK` as `ok`, a missing key
//! as an empty line.

mod words;

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args};
use coracle_engine::Reply;
use coracle_engine::command::{SPECS, lookup};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};

use crate::client::{Client, ClientError};
use crate::config::read_password;
use crate::fatal::{Exit, Fatal};

/// Lines of history that are kept.
const HISTORY_LINES_MAX: usize = 10_000;

/// Flags of `coracle cli`.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct CliArgs {
    /// Host to connect to
    #[arg(short = 'h', long, value_name = "HOST")]
    host: Option<String>,
    /// Port to connect to
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Places to connect to, tried in order; --host and --port win
    #[arg(long, env = "CORACLE_ENDPOINTS", value_delimiter = ',', value_name = "HOST:PORT")]
    endpoints: Vec<String>,
    /// Accepted for the habit of redis-cli: redirects are always followed
    #[arg(short = 'c', long)]
    cluster: bool,
    /// File that holds the password (or set CORACLE_REQUIREPASS)
    #[arg(long, env = "CORACLE_REQUIREPASS_FILE", value_name = "FILE")]
    requirepass_file: Option<PathBuf>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Command and arguments; without them a prompt
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl CliArgs {
    fn endpoints(&self) -> Vec<String> {
        if self.host.is_some() || self.port.is_some() || self.endpoints.is_empty() {
            let host = self.host.as_deref().unwrap_or("127.0.0.1");
            let port = self.port.unwrap_or(6379);
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            return vec![format!("{host}:{port}")];
        }
        self.endpoints.clone()
    }

    fn password(&self) -> Result<Option<Vec<u8>>, Fatal> {
        match &self.requirepass_file {
            Some(path) => read_password(path).map(Some),
            None => Ok(std::env::var_os("CORACLE_REQUIREPASS").map(OsString::into_encoded_bytes)),
        }
    }
}

/// Runs `coracle cli`.
pub(crate) fn run(args: CliArgs) -> Result<ExitCode, Fatal> {
    let mut client = Client::new(args.endpoints(), args.password()?);
    client.connect().map_err(|error| unreachable(&error))?;
    if !args.command.is_empty() {
        let words: Vec<_> = args.command.into_iter().map(OsString::into_vec).collect();
        return match execute(&mut client, &words) {
            Ok(Answer { text: Ok(text) }) => {
                print(&text);
                Ok(ExitCode::SUCCESS)
            }
            Ok(Answer { text: Err(error) }) => {
                complain(&error);
                Ok(Exit::Failed.into())
            }
            Err(error) => Err(unreachable(&error)),
        };
    }
    prompt(&mut client)
}

fn unreachable(error: &ClientError) -> Fatal {
    match error {
        ClientError::Unreachable(text) => Fatal::new(
            Exit::Unreachable,
            "cannot connect to any node",
            text.clone(),
            "start a node or `coracle demo`, or name one with -h and -p, or set CORACLE_ENDPOINTS",
        ),
        lost @ ClientError::Lost(_) => {
            Fatal::failed("the command was sent, but not answered", lost.to_string(), "")
        }
    }
}

/// What a command prints: text for stdout, or an error for stderr.
struct Answer {
    text: Result<Vec<u8>, String>,
}

fn execute(client: &mut Client, words: &[Vec<u8>]) -> Result<Answer, ClientError> {
    let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let reply = client.call(&args)?;
    Ok(Answer { text: render(&args, reply) })
}

/// A reply as text with a line end, or the error it is.
fn render(args: &[&[u8]], reply: Reply) -> Result<Vec<u8>, String> {
    let is_append = args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"append"));
    let mut text = Vec::new();
    match reply {
        Reply::Error(error) => return Err(error),
        // The length an append returns is for programs; people asked for it to be done.
        Reply::Integer(_) if is_append => text.extend_from_slice(b"ok"),
        other => show(&other, 0, &mut text),
    }
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    Ok(text)
}

fn show(reply: &Reply, depth: usize, text: &mut Vec<u8>) {
    match reply {
        Reply::Status("OK") => text.extend_from_slice(b"ok"),
        Reply::Status(status) => text.extend_from_slice(status.as_bytes()),
        Reply::Error(error) => text.extend_from_slice(error.as_bytes()),
        Reply::Integer(value) => text.extend_from_slice(value.to_string().as_bytes()),
        Reply::Bulk(bytes) => text.extend_from_slice(bytes),
        Reply::Value(slice) => text.extend_from_slice(slice.bytes()),
        Reply::Null => {}
        Reply::Double(value) => text.extend_from_slice(value.to_string().as_bytes()),
        Reply::Boolean(value) => text.extend_from_slice(value.to_string().as_bytes()),
        Reply::Verbatim(verbatim) => text.extend_from_slice(verbatim.as_bytes()),
        Reply::Array(items) | Reply::Set(items) => {
            for item in items {
                show_item(item, depth, text);
            }
        }
        Reply::Map(pairs) => {
            for (key, value) in pairs {
                show_item(key, depth, text);
                show_item(value, depth + 1, text);
            }
        }
    }
}

/// One element of a list on its own line, nested lists indented.
fn show_item(item: &Reply, depth: usize, text: &mut Vec<u8>) {
    if matches!(item, Reply::Array(_) | Reply::Set(_) | Reply::Map(_)) {
        show(item, depth + 1, text);
        return;
    }
    text.resize(text.len() + 2 * depth, b' ');
    show(item, depth, text);
    text.push(b'\n');
}

/// Reads commands until `exit` or the end of stdin: with editing on a terminal, plainly from a
/// pipe.
pub(crate) fn prompt(client: &mut Client) -> Result<ExitCode, Fatal> {
    let all_good = if io::stdin().is_terminal() { interactive(client)? } else { piped(client)? };
    Ok(if all_good { ExitCode::SUCCESS } else { Exit::Failed.into() })
}

/// What one line did.
enum Step {
    Done,
    Refused,
    Exit,
}

fn line(client: &mut Client, line: &str) -> Step {
    let words = match words::split(line) {
        Ok(words) => words,
        Err(error) => {
            complain(&error);
            return Step::Refused;
        }
    };
    let Some(name) = words.first() else { return Step::Done };
    match name.to_ascii_lowercase().as_slice() {
        b"exit" | b"quit" => Step::Exit,
        b"help" => {
            print(help(words.get(1).map(Vec::as_slice)).as_bytes());
            Step::Done
        }
        _ => match execute(client, &words) {
            Ok(Answer { text: Ok(text) }) => {
                print(&text);
                Step::Done
            }
            Ok(Answer { text: Err(error) }) => {
                complain(&error);
                Step::Refused
            }
            Err(error) => {
                complain(&error.to_string());
                Step::Refused
            }
        },
    }
}

fn piped(client: &mut Client) -> Result<bool, Fatal> {
    let mut all_good = true;
    for text in io::stdin().lock().lines() {
        let text = text.map_err(|e| Fatal::failed("cannot read stdin", e.to_string(), ""))?;
        match line(client, &text) {
            Step::Done => {}
            Step::Refused => all_good = false,
            Step::Exit => break,
        }
    }
    Ok(all_good)
}

fn interactive(client: &mut Client) -> Result<bool, Fatal> {
    let broken =
        |error: ReadlineError| Fatal::failed("cannot use the terminal", error.to_string(), "");
    let config = rustyline::Config::builder()
        .max_history_size(HISTORY_LINES_MAX)
        .map_err(broken)?
        .history_ignore_space(true)
        .build();
    let mut editor: Editor<Names, FileHistory> = Editor::with_config(config).map_err(broken)?;
    editor.set_helper(Some(Names));
    let history = history_path();
    if let Some(path) = &history {
        // There is none before the first use.
        let _ = editor.load_history(path);
    }
    loop {
        let prompt = format!("{}> ", client.endpoint());
        match editor.readline(&prompt) {
            Ok(text) => {
                // History is a convenience: its errors change nothing.
                let _ = editor.add_history_entry(text.as_str());
                if matches!(line(client, &text), Step::Exit) {
                    break;
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => break,
            Err(error) => return Err(broken(error)),
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    Ok(true)
}

/// `$XDG_STATE_HOME/coracle/history`; its directory is made, readable by its owner only.
fn history_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let dir = state.join("coracle");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).ok()?;
    Some(dir.join("history"))
}

/// All commands with their arguments, or one with what it does.
fn help(name: Option<&[u8]>) -> String {
    let upper = |name: &str| name.to_ascii_uppercase();
    match name.map(lookup) {
        Some(Some(spec)) => format!("{} {}\n  {}\n", upper(spec.name), spec.syntax, spec.summary),
        Some(None) => "no such command; `help` lists all\n".to_owned(),
        None => {
            let rows = SPECS.iter().map(|spec| format!("{} {}\n", upper(spec.name), spec.syntax));
            rows.chain(["EXIT\n".to_owned()]).collect()
        }
    }
}

fn print(text: &[u8]) {
    // The reader of a pipe may have had enough.
    let _ = io::stdout().write_all(text).and_then(|()| io::stdout().flush());
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// Completes names of commands.
struct Names;

impl Completer for Names {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok((0, candidates(&line[..pos])))
    }
}

/// Names that begin like `typed`, in the case it is typed in; none once an argument has begun.
fn candidates(typed: &str) -> Vec<String> {
    let is_upper = typed.chars().any(|c| c.is_ascii_uppercase());
    let wanted = typed.to_ascii_lowercase();
    let names = SPECS.iter().map(|spec| spec.name).chain(["exit", "help"]);
    names
        .filter(|name| name.starts_with(&wanted))
        .map(|name| if is_upper { name.to_ascii_uppercase() } else { name.to_owned() })
        .collect()
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    /// What people see: values, `ok`, an empty line for nothing.
    #[test]
    fn replies_become_lines() {
        let cases: &[(&str, Reply, &str)] = &[
            ("SET", Reply::OK, "ok\n"),
            ("GET", bulk("value"), "value\n"),
            ("GET", bulk("line\n"), "line\n"),
            ("GET", Reply::Null, "\n"),
            ("GET", bulk(""), "\n"),
            ("aPPend", Reply::Integer(7), "ok\n"),
            ("DEL", Reply::Integer(1), "1\n"),
            ("MGET", Reply::Array(vec![bulk("a"), Reply::Null, bulk("b")]), "a\n\nb\n"),
            (
                "CLUSTER",
                Reply::Array(vec![Reply::Array(vec![Reply::Integer(0), bulk("h")])]),
                "  0\n  h\n",
            ),
            ("HELLO", Reply::Map(vec![(bulk("proto"), Reply::Integer(3))]), "proto\n  3\n"),
        ];
        for (name, reply, want) in cases {
            let text = render(&[name.as_bytes()], reply.clone()).expect(name);
            assert_eq!(String::from_utf8(text).expect("UTF-8"), *want, "{name} {reply:?}");
        }
        assert_eq!(render(&[b"GET"], Reply::error("ERR x")), Err("ERR x".to_owned()));
    }

    /// Names complete in the case they are typed in.
    #[test]
    fn names_complete() {
        assert_eq!(candidates("app"), ["append"]);
        assert_eq!(candidates("APP"), ["APPEND"]);
        assert_eq!(candidates("ex").last().map(String::as_str), Some("exit"));
        assert!(candidates("get k").is_empty());
        assert!(candidates("").len() > SPECS.len());
    }

    /// Host and port win over the list; the defaults are those of redis-cli.
    #[test]
    fn endpoints_are_chosen_like_redis_cli() {
        use clap::FromArgMatches;
        let endpoints = |line: &str| {
            let command = CliArgs::augment_args(clap::Command::new("t").no_binary_name(true));
            let matches = command.try_get_matches_from(line.split_whitespace()).expect(line);
            let args = CliArgs::from_arg_matches(&matches).expect(line);
            (args.endpoints(), args.command.len())
        };
        let one = |text: &str| vec![text.to_owned()];
        assert_eq!(endpoints("-p 7001"), (one("127.0.0.1:7001"), 0));
        assert_eq!(endpoints("-h db -c set k -v"), (one("db:6379"), 3));
        assert_eq!(endpoints("-h ::1"), (one("[::1]:6379"), 0));
        assert_eq!(endpoints("--endpoints a:1,b:2 get -p").0, ["a:1", "b:2"]);
    }
}
