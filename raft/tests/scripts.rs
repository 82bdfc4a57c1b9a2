//! Runs the scripts of `testdata/` and compares what happens with what they say.
//!
//! A script is a list of blocks with an empty line between them: commands, then `----`, then
//! what they print. `UPDATE_GOLDEN=1` writes what they print into the script instead.
//!
//! Commands: `nodes N`, `campaign A`, `propose A TEXT`, `tick A N`, `drain A [urgent]`,
//! `persist A`, `apply A`, `deliver A B` (all of that way), `drop A B`, `settle` (everything
//! that takes no time), `settle A`, `cut A B`, `heal`, `crash A`, `start A`, `read A`,
//! `change A VOTERS [LEARNERS]` (numbers with commas), `transfer A B`, `compact A`, `status`.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::{Cluster, change, kind, node};
use coracle_raft::{
    AppendOutcome, Body, Drain, Entry, EntryKind, LogPosition, Message, ReadState, SendState,
};

fn place(at: LogPosition) -> String {
    format!("{}:{}", at.index, at.term)
}

fn entries_text(entries: &[Entry]) -> String {
    let text = |entry: &Entry| {
        let content = match entry.kind {
            EntryKind::Empty => "empty".to_owned(),
            EntryKind::Command => String::from_utf8_lossy(entry.payload.bytes()).into_owned(),
            EntryKind::Membership => "members".to_owned(),
        };
        format!("{} {content}", place(entry.position()))
    };
    entries.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn body_text(body: &Body) -> String {
    match body {
        Body::PreVote { last } => format!("last {}", place(*last)),
        Body::Vote { last, transfer: false } => format!("last {}", place(*last)),
        Body::Vote { last, transfer: true } => format!("last {} transfer", place(*last)),
        Body::PreVoteResponse { granted } | Body::VoteResponse { granted } => {
            if *granted { "granted" } else { "refused" }.to_owned()
        }
        Body::Append { prev, entries, commit, round } => {
            let entries = entries_text(entries);
            format!("round {round} commit {commit} prev {} [{entries}]", place(*prev))
        }
        Body::AppendResponse { outcome: AppendOutcome::Accepted { matched }, round } => {
            format!("round {round} matched {matched}")
        }
        Body::AppendResponse { outcome: AppendOutcome::Rejected { prev, hint }, round } => {
            format!("round {round} rejected {prev} hint {}", place(*hint))
        }
        Body::Heartbeat { commit, round } => format!("round {round} commit {commit}"),
        Body::HeartbeatResponse { round } => format!("round {round}"),
        Body::ReadIndex { context } => format!("context {context}"),
        Body::ReadIndexResponse { context, index } => match index {
            Some(index) => format!("context {context} index {index}"),
            None => format!("context {context} refused"),
        },
        Body::TimeoutNow => String::new(),
        Body::Snapshot { base, piece, done, round, .. } => {
            let done = if *done { " done" } else { "" };
            format!("round {round} base {} piece {piece}{done}", place(*base))
        }
        Body::SnapshotResponse { base, next_piece, round } => {
            format!("round {round} base {} next {next_piece}", place(*base))
        }
        Body::SnapshotWanted { first } => format!("first {first}"),
    }
}

fn message_text(message: &Message) -> String {
    let Message { from, to, term, body } = message;
    let line = format!("{}>{} {term} {} {}", from.get(), to.get(), kind(body), body_text(body));
    line.trim_end().to_owned()
}

struct Script {
    cluster: Cluster,
    out: String,
    /// How many reads and applied entries of each replica were told.
    told: std::collections::BTreeMap<u32, (usize, usize)>,
}

impl Script {
    fn say(&mut self, line: impl AsRef<str>) {
        self.out.push_str(line.as_ref());
        self.out.push('\n');
    }

    fn command(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u32>().expect("a number");
        let list = |at: usize| {
            let text = words.get(at).copied().unwrap_or_default();
            let numbers = text.split(',').filter(|number| !number.is_empty());
            numbers.map(|number| number.parse().expect("a number")).collect::<Vec<u32>>()
        };
        match words[0] {
            "nodes" => self.cluster = Cluster::new(number(1)),
            "campaign" => self.cluster.campaign(number(1)),
            "tick" => self.cluster.tick(number(1), number(2)),
            "propose" => {
                let text = common::payload(words[2]);
                let done = self.cluster.with_raft(number(1), |raft| raft.propose(text));
                self.say(done.map_or_else(|error| error.to_string(), place));
            }
            "change" => {
                let to = change(&list(2), &list(3));
                let done = self.cluster.with_raft(number(1), |raft| raft.propose_membership(to));
                self.say(done.map_or_else(|error| error.to_string(), place));
            }
            "transfer" => {
                let to = node(number(2));
                let done = self.cluster.with_raft(number(1), |raft| raft.transfer_leadership(to));
                if let Err(error) = done {
                    self.say(error.to_string());
                }
            }
            "read" => {
                let context = self.cluster.read(number(1));
                self.say(format!("context {context}"));
            }
            "drain" if words.get(2) == Some(&"urgent") => self.drain(number(1), Drain::Urgent),
            "drain" => self.drain(number(1), Drain::All),
            "persist" => assert!(self.cluster.persist(number(1)), "nothing is being written"),
            "apply" => self.apply(number(1)),
            "compact" => self.cluster.compact(number(1)),
            "deliver" => {
                while let Some(at) = self.way(number(1), number(2)) {
                    self.cluster.deliver(at);
                }
            }
            "drop" => {
                while let Some(at) = self.way(number(1), number(2)) {
                    self.cluster.network.remove(at);
                }
            }
            "cut" => self.cluster.partition(&[number(1)], &[number(2)]),
            "heal" => self.cluster.heal(),
            "lose" => {
                let node = self.cluster.node(number(1));
                (node.loads_fail, node.loads_lost, node.tail_count) = (true, true, 0);
            }
            "crash" => self.cluster.crash(number(1)),
            "start" => self.cluster.start(number(1)),
            "settle" if words.len() > 1 => while self.settle_one(number(1)) {},
            "settle" => self.settle(),
            "status" => self.status(),
            unknown => panic!("unknown command {unknown}"),
        }
    }

    fn way(&self, from: u32, to: u32) -> Option<usize> {
        self.cluster.network.iter().position(|m| m.from == node(from) && m.to == node(to))
    }

    fn drain(&mut self, id: u32, mode: Drain) {
        let (sent, writes) =
            (self.cluster.network.len(), self.cluster.nodes[&id].disk.writes.len());
        self.cluster.drain(id, mode);
        let lines: Vec<_> = self.cluster.network[sent..].iter().map(message_text).collect();
        lines.into_iter().for_each(|line| self.say(line));
        let written = self.cluster.nodes[&id].disk.writes.iter().skip(writes);
        let mut lines = Vec::new();
        for write in written {
            let common::disk::Write::Batch { hard_state, entries, .. } = write else { continue };
            let mut line = format!("{id} writes");
            if let Some(hard_state) = hard_state {
                let vote = hard_state.vote.map_or(0, |vote| vote.get());
                write!(line, " {} vote {vote}", hard_state.term).expect("memory");
            }
            write!(line, " [{}]", entries_text(entries)).expect("memory");
            lines.push(line);
        }
        lines.into_iter().for_each(|line| self.say(line));
        let told = self.told.entry(id).or_default().0;
        let reads: Vec<ReadState> = self.cluster.nodes[&id].reads[told..].to_vec();
        for ReadState { context, index } in reads {
            self.told.entry(id).or_default().0 += 1;
            let index = index.map_or("refused".to_owned(), |index| index.to_string());
            self.say(format!("{id} read {context}: {index}"));
        }
    }

    fn apply(&mut self, id: u32) {
        self.cluster.apply(id);
        let told = &mut self.told.entry(id).or_default().1;
        let applied = &self.cluster.nodes[&id].applied;
        let line = format!("{id} applies [{}]", entries_text(&applied[*told..]));
        let news = applied.len() > *told;
        *told = applied.len();
        if news {
            self.say(line);
        }
    }

    fn settle_one(&mut self, id: u32) -> bool {
        if !self.cluster.up(id) {
            return false;
        }
        let drain = self.cluster.raft(id).needs_drain(Drain::All);
        if drain {
            self.drain(id, Drain::All);
        }
        let before = self.cluster.nodes[&id].applied.len();
        let busy = drain | self.cluster.persist(id) | self.cluster.load(id);
        self.apply(id);
        busy | (self.cluster.nodes[&id].applied.len() > before)
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut busy = !self.cluster.network.is_empty();
            if busy {
                self.cluster.deliver(0);
            }
            for id in self.cluster.ids() {
                busy |= self.settle_one(id);
            }
            if !busy {
                return;
            }
        }
        panic!("the script never comes to rest");
    }

    fn status(&mut self) {
        for id in self.cluster.ids() {
            let Some(raft) = &self.cluster.nodes[&id].raft else {
                self.say(format!("{id} down"));
                continue;
            };
            let mut line = format!(
                "{id} {:?} {} leader {} base {} applied {} commit {} durable {} last {}",
                raft.role(),
                raft.term(),
                raft.leader().map_or(0, |leader| leader.get()),
                raft.base().index,
                raft.applied_index(),
                raft.commit(),
                raft.durable_index(),
                raft.last_index(),
            );
            for (to, progress) in raft.progress() {
                let state = match progress.state {
                    SendState::Probe => "probe",
                    SendState::Replicate => "replicate",
                    SendState::Snapshot { .. } => "snapshot",
                };
                let (matched, next) = (progress.matched, progress.next);
                write!(line, "\n  {} {state} matched {matched} next {next}", to.get())
                    .expect("memory");
            }
            self.say(line);
        }
    }
}

fn run(path: &Path) {
    let text = std::fs::read_to_string(path).expect("a script");
    let told = std::collections::BTreeMap::new();
    let mut script = Script { cluster: Cluster::new(1), out: String::new(), told };
    let mut result = String::new();
    for block in text.trim_end().split("\n\n") {
        let commands = block.split("\n----").next().expect("there is a first part");
        script.out.clear();
        for line in commands.lines().filter(|line| !line.starts_with('#')) {
            script.command(line);
        }
        let separator = if result.is_empty() { "" } else { "\n" };
        write!(result, "{separator}{commands}\n----\n{}", script.out).expect("memory");
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, result).expect("the script can be written");
    } else {
        assert_eq!(result, text, "{} says something else", path.display());
    }
}

/// Every script of `testdata/`.
#[test]
fn scripts_go_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let mut paths: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "only {} scripts", paths.len());
    paths.iter().for_each(|path| run(path));
}
