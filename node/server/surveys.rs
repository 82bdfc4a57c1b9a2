//! Questions to all cores: about their clients, `CLIENT LIST` and `CLIENT KILL`, and about what
//! their replicas hold, `CLUSTER DIGESTS`.
//!
//! The core that takes the command opens a survey; every core of the node answers it in its next
//! turn from its own connections; the asking core puts the answers together. Cores look at one
//! number per turn and do nothing as long as nobody asks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_engine::{CoreId, Reply, Token};

use super::session::Session;

/// Surveys that may be open at once.
const OPEN_MAX: usize = 32;
/// A core that stays silent for so long is left out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which clients are meant: all that pass every filter that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// One of these numbers.
    pub(crate) ids: Option<Vec<u64>>,
    /// This address of the client.
    pub(crate) addr: Option<String>,
    /// This address of the node.
    pub(crate) laddr: Option<String>,
    /// Not this number.
    pub(crate) skip: Option<u64>,
    /// Nobody: a filter that no client of this server can pass.
    pub(crate) nobody: bool,
}

impl Filter {
    /// Whether a client is meant.
    pub(crate) fn matches(&self, session: &Session) -> bool {
        !self.nobody
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&session.id))
            && self.addr.as_ref().is_none_or(|addr| *addr == session.peer)
            && self.laddr.as_ref().is_none_or(|addr| *addr == session.local)
            && self.skip != Some(session.id)
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// A line for each of these clients.
    List(Filter),
    /// Close the connections of these clients; how many were there.
    Kill(Filter),
    /// The same in Redis' old form: `OK`, or an error if there was none.
    KillOne(Filter),
    /// What the replicas told of their content; with `now`, leaders make them tell again.
    Digests { now: bool },
}

/// What one core answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Number and line of each client.
    Lines(Vec<(u64, String)>),
    /// Connections closed.
    Killed(u64),
    /// A row for each group.
    Digests(Vec<(u32, Reply)>),
}

/// One question under way.
struct Survey {
    number: u64,
    question: Question,
    asker: CoreId,
    token: Token,
    asked_at: Instant,
    /// By core.
    answers: Vec<Option<Answer>>,
}

impl Survey {
    fn reply(self) -> Reply {
        let (mut lines, mut killed, mut digests) = (Vec::new(), 0, Vec::new());
        for answer in self.answers.into_iter().flatten() {
            match answer {
                Answer::Lines(more) => lines.extend(more),
                Answer::Killed(count) => killed += count,
                Answer::Digests(more) => digests.extend(more),
            }
        }
        match self.question {
            Question::List(_) => {
                lines.sort_unstable();
                Reply::Verbatim(lines.into_iter().map(|(_, line)| line + "\n").collect())
            }
            Question::Digests { .. } => {
                digests.sort_unstable_by_key(|(group, _)| *group);
                Reply::Array(digests.into_iter().map(|(_, row)| row).collect())
            }
            Question::Kill(_) => Reply::Integer(i64::try_from(killed).unwrap_or(i64::MAX)),
            Question::KillOne(_) if killed == 0 => Reply::error("ERR No such client"),
            Question::KillOne(_) => Reply::OK,
        }
    }
}

#[derive(Default)]
struct State {
    last: u64,
    open: Vec<Survey>,
}

/// The surveys of a node.
pub(super) struct Surveys {
    cores: usize,
    open: AtomicUsize,
    state: Mutex<State>,
}

impl Surveys {
    /// None yet, on a node of `cores` cores.
    pub(super) fn new(cores: u16) -> Self {
        Self { cores: cores.into(), open: AtomicUsize::new(0), state: Mutex::default() }
    }

    /// Whether anything is under way. Cheap.
    pub(super) fn any(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Begins a survey whose reply is for `token` of core `asker`. `false`: too many are open.
    pub(super) fn ask(&self, question: Question, asker: CoreId, token: Token) -> bool {
        let mut state = self.lock();
        if state.open.len() >= OPEN_MAX {
            return false;
        }
        state.last += 1;
        let number = state.last;
        let answers = vec![None; self.cores];
        let asked_at = Instant::now();
        state.open.push(Survey { number, question, asker, token, asked_at, answers });
        self.open.store(state.open.len(), Ordering::Release);
        true
    }

    /// What `core` has not answered yet.
    pub(super) fn questions(&self, core: CoreId) -> Vec<(u64, Question)> {
        let state = self.lock();
        let open = state.open.iter().filter(|open| open.answers[usize::from(core.0)].is_none());
        open.map(|open| (open.number, open.question.clone())).collect()
    }

    /// Takes the answer of `core`.
    pub(super) fn answer(&self, core: CoreId, number: u64, answer: Answer) {
        let mut state = self.lock();
        if let Some(survey) = state.open.iter_mut().find(|open| open.number == number) {
            survey.answers[usize::from(core.0)] = Some(answer);
        }
    }

    /// Ends what `asker` has asked and every core has answered, or had the time to.
    pub(super) fn take_finished(&self, asker: CoreId, now: Instant) -> Vec<(Token, Reply)> {
        let mut state = self.lock();
        let finished = state.open.extract_if(.., |open| {
            let complete = open.answers.iter().all(Option::is_some);
            open.asker == asker && (complete || now >= open.asked_at + PATIENCE)
        });
        let finished = finished.map(|survey| (survey.token, survey.reply())).collect();
        self.open.store(state.open.len(), Ordering::Release);
        finished
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(ids: &[u64]) -> Answer {
        Answer::Lines(ids.iter().map(|&id| (id, format!("id={id}"))).collect())
    }

    /// A list is complete when every core has answered, and in the order of the numbers.
    #[test]
    fn a_survey_ends_when_every_core_has_answered() {
        let surveys = Surveys::new(2);
        let (first, second) = (CoreId(0), CoreId(1));
        assert!(!surveys.any());
        assert!(surveys.ask(Question::List(Filter::default()), second, Token(9)));
        let now = Instant::now();
        for (core, ids) in [(first, &[3u64, 10][..]), (second, &[2])] {
            assert_eq!(surveys.take_finished(second, now), [], "{core:?} has not answered");
            let questions = surveys.questions(core);
            assert_eq!(questions.len(), 1);
            surveys.answer(core, questions[0].0, lines(ids));
            assert_eq!(surveys.questions(core), [], "each core answers once");
        }
        assert_eq!(surveys.take_finished(first, now), [], "another core asked");
        let text = Reply::Verbatim("id=2\nid=3\nid=10\n".to_owned());
        assert_eq!(surveys.take_finished(second, now), [(Token(9), text)]);
        assert!(!surveys.any());
    }

    /// A silent core delays the others for a bounded time, and open surveys are bounded.
    #[test]
    fn silence_and_numbers_are_bounded() {
        let surveys = Surveys::new(2);
        for n in 0..OPEN_MAX as u64 {
            let filter = Filter { ids: Some(vec![n]), ..Filter::default() };
            assert!(surveys.ask(Question::KillOne(filter), CoreId(0), Token(n)), "{n}");
        }
        let question = Question::Kill(Filter::default());
        assert!(!surveys.ask(question.clone(), CoreId(1), Token(0)));
        let number = surveys.questions(CoreId(0))[0].0;
        surveys.answer(CoreId(0), number, Answer::Killed(1));
        let late = Instant::now() + PATIENCE;
        let replies = surveys.take_finished(CoreId(0), late);
        assert_eq!(replies[0], (Token(0), Reply::OK));
        assert_eq!(replies[1], (Token(1), Reply::error("ERR No such client")));
        assert_eq!(replies.len(), OPEN_MAX);
        assert!(surveys.ask(question, CoreId(1), Token(0)));
        assert_eq!(surveys.take_finished(CoreId(1), late + PATIENCE)[0].1, Reply::Integer(0));
    }
}
