//! No message may bring a replica down, or make it break its own rules: peers may be broken,
//! of another version, or hostile.

mod common;

use common::{config, node, nodes};
use coracle_raft::{
    AppendOutcome, BatchSeq, Body, Drain, Entry, EntryKind, HardState, LogIndex, LogPosition,
    Membership, MembershipChange, Message, NodeId, Payload, Raft, ReadPolicy, Ready, Recovered,
    Term,
};
use proptest::prelude::*;

/// Numbers near those of a small log, and at the ends of the range.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => 0..12_u64,
        1 => Just(u64::MAX),
        1 => Just(u64::MAX - 1),
        1 => Just(u64::MAX / 2),
        1 => Just(u64::MAX / 2 + 1),
    ]
}

fn id() -> impl Strategy<Value = NodeId> {
    prop_oneof![9 => 0..6_u32, 1 => any::<u32>()].prop_map(NodeId::new)
}

fn index() -> impl Strategy<Value = LogIndex> {
    number().prop_map(LogIndex::new)
}

fn position() -> impl Strategy<Value = LogPosition> {
    (number(), index()).prop_map(|(term, index)| LogPosition { term: Term::new(term), index })
}

fn membership() -> impl Strategy<Value = Membership> {
    let list = || prop::collection::vec(1..6_u32, 0..4);
    (list(), list(), list(), list()).prop_map(|(voters, outgoing, learners, learners_next)| {
        Membership {
            voters: nodes(voters),
            outgoing: nodes(outgoing),
            learners: nodes(learners),
            learners_next: nodes(learners_next),
        }
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        membership().prop_map(|membership| membership.encode()),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Payload::new(bytes, 0)),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind =
        prop_oneof![Just(EntryKind::Empty), Just(EntryKind::Command), Just(EntryKind::Membership)];
    (position(), kind, payload()).prop_map(|(at, kind, payload)| Entry {
        term: at.term,
        index: at.index,
        kind,
        payload,
    })
}

/// Mostly contiguous and ascending, as a leader would send them.
fn entries(prev: LogPosition) -> impl Strategy<Value = Vec<Entry>> {
    (prop::collection::vec(entry(), 0..6), 0..4_u8).prop_map(move |(mut entries, wild)| {
        if wild > 0 {
            let mut term = prev.term.get();
            for (entry, place) in entries.iter_mut().zip(1..) {
                term = term.max(entry.term.get().min(11));
                entry.term = Term::new(term);
                entry.index = LogIndex::new(prev.index.get().wrapping_add(place));
            }
        }
        entries
    })
}

fn append() -> impl Strategy<Value = Body> {
    position().prop_flat_map(|prev| {
        (entries(prev), index(), number()).prop_map(move |(entries, commit, round)| Body::Append {
            prev,
            entries,
            commit,
            round,
        })
    })
}

fn outcome() -> impl Strategy<Value = AppendOutcome> {
    prop_oneof![
        index().prop_map(|matched| AppendOutcome::Accepted { matched }),
        (index(), position()).prop_map(|(prev, hint)| AppendOutcome::Rejected { prev, hint }),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        position().prop_map(|last| Body::PreVote { last }),
        any::<bool>().prop_map(|granted| Body::PreVoteResponse { granted }),
        (position(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        any::<bool>().prop_map(|granted| Body::VoteResponse { granted }),
        append(),
        append(),
        append(),
        (outcome(), number()).prop_map(|(outcome, round)| Body::AppendResponse { outcome, round }),
        (index(), number()).prop_map(|(commit, round)| Body::Heartbeat { commit, round }),
        number().prop_map(|round| Body::HeartbeatResponse { round }),
        number().prop_map(|context| Body::ReadIndex { context }),
        (number(), prop::option::of(index()))
            .prop_map(|(context, index)| Body::ReadIndexResponse { context, index }),
        Just(Body::TimeoutNow),
        (position(), payload(), number(), any::<bool>(), number()).prop_map(
            |(base, membership, piece, done, round)| Body::Snapshot {
                base,
                membership,
                piece,
                done,
                payload: Payload::empty(),
                round
            }
        ),
        (position(), number(), number()).prop_map(|(base, next_piece, round)| {
            Body::SnapshotResponse { base, next_piece, round }
        }),
        index().prop_map(|first| Body::SnapshotWanted { first }),
    ]
}

/// What may happen to a replica. Its driver is correct; its peers are not.
#[derive(Clone, Debug)]
enum Act {
    Step(NodeId, u64, Box<Body>),
    /// As `Step`, but in the replica's own term: most messages get further so.
    StepNow(NodeId, Box<Body>),
    Tick(u8),
    Campaign,
    Propose,
    Change(Vec<u32>, Vec<u32>),
    Read,
    Transfer(NodeId),
    Drain(bool),
    Persist,
    Apply,
    Compact,
}

fn act() -> impl Strategy<Value = Act> {
    let list = || prop::collection::vec(1..6_u32, 0..4);
    let body = || body().prop_map(Box::new);
    prop_oneof![
        4 => (id(), number(), body()).prop_map(|(from, term, body)| Act::Step(from, term, body)),
        12 => (id(), body()).prop_map(|(from, body)| Act::StepNow(from, body)),
        2 => (1..25_u8).prop_map(Act::Tick),
        1 => Just(Act::Campaign),
        1 => Just(Act::Propose),
        1 => (list(), list()).prop_map(|(voters, learners)| Act::Change(voters, learners)),
        1 => Just(Act::Read),
        1 => id().prop_map(Act::Transfer),
        4 => any::<bool>().prop_map(Act::Drain),
        3 => Just(Act::Persist),
        2 => Just(Act::Apply),
        1 => Just(Act::Compact),
    ]
}

/// A replica and a correct driver.
struct Driven {
    raft: Raft,
    batch: u64,
    ready: Ready,
    contexts: u64,
}

impl Driven {
    fn new(lease: bool, voters: u32, cache_bytes_max: usize) -> Self {
        let mut config = config(1, 7);
        config.cache_bytes_max = cache_bytes_max;
        config.append_entries_max = 2;
        if lease {
            config.read = ReadPolicy::Lease { drift_ticks: 1 };
        }
        let recovered = Recovered {
            hard_state: HardState { term: Term::new(2), vote: None },
            membership: common::voters(1..=voters),
            ..Recovered::default()
        };
        Self { raft: Raft::new(config, recovered), batch: 0, ready: Ready::default(), contexts: 0 }
    }

    fn act(&mut self, act: Act) {
        let raft = &mut self.raft;
        match act {
            Act::Step(from, term, body) => {
                raft.step(Message { from, to: node(1), term: Term::new(term), body: *body });
            }
            Act::StepNow(from, body) => {
                raft.step(Message { from, to: node(1), term: raft.term(), body: *body });
            }
            Act::Tick(count) => (0..count).for_each(|_| raft.tick()),
            Act::Campaign => raft.campaign(),
            Act::Propose => drop(raft.propose(Payload::empty())),
            Act::Change(voters, learners) => {
                let change = MembershipChange { voters: nodes(voters), learners: nodes(learners) };
                drop(raft.propose_membership(change));
            }
            Act::Read => {
                self.contexts += 1;
                raft.read_index(self.contexts);
            }
            Act::Transfer(to) => drop(raft.transfer_leadership(to)),
            Act::Drain(all) => {
                self.batch += 1;
                let mode = if all { Drain::All } else { Drain::Urgent };
                raft.drain(mode, BatchSeq::new(self.batch), &mut self.ready);
                self.carry_out();
            }
            Act::Persist => raft.persisted(BatchSeq::new(self.batch)),
            Act::Apply => {
                if let Some(last) = raft.next_committed(100).last() {
                    raft.applied(last.index);
                }
            }
            Act::Compact => raft.compact(raft.applied_index()),
        }
        self.raft.check_invariants();
    }

    fn carry_out(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for to in ready.snapshots_wanted {
            let base = self.raft.base();
            self.raft.send_snapshot_piece(to, base, 0, true, Payload::empty());
        }
        for piece in ready.snapshot_pieces {
            let (from, base, round) = (piece.from, piece.base, piece.round);
            if piece.done {
                self.raft.snapshot_installed(from, base, piece.membership, round);
            } else {
                let next_piece = piece.piece.saturating_add(1);
                self.raft.snapshot_piece_persisted(from, base, next_piece, round);
            }
        }
        for load in ready.loads {
            let gone = self.raft.entries_loaded(load.first, Err("gone".to_owned()));
            assert!(gone.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_messages_is_survived(
        acts in prop::collection::vec(act(), 1..80),
        lease in any::<bool>(),
        voters in 1..4_u32,
        cache_bytes_max in prop_oneof![Just(0), Just(1 << 20)],
    ) {
        let mut driven = Driven::new(lease, voters, cache_bytes_max);
        acts.into_iter().for_each(|act| driven.act(act));
    }
}
