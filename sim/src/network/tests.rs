//! Links by themselves.

use coracle_engine::{CoreId, not_sent};
use coracle_raft::NodeId;

use super::*;

/// Three nodes of one core, one link of which is up and greeted.
struct Rig {
    net: Network,
    link: usize,
}

fn plan() -> NetPlan {
    NetPlan {
        delay: (10, 20),
        spikes: 0.0,
        datagrams: false,
        loss: 0.0,
        duplicates: 0.0,
        reorder: 0.0,
        corrupt: 1.0,
    }
}

fn lineage() -> Lineage {
    Lineage::new(1, 1)
}

fn message(id: u64) -> PeerMessage {
    PeerMessage::ForwardReply { id, reply: not_sent() }
}

impl Rig {
    fn new(seed: u64, plan: NetPlan) -> Self {
        let addr = |node| CoreAddr { node: NodeId::new(node), core: CoreId(0) };
        let mut net = Network::new(seed, plan, &[addr(1), addr(2), addr(3)], 1);
        let link = net.link(0, 1);
        let hello = net.connect(link, 0, true, &lineage()).expect("nothing is in the way");
        let mut rig = Self { net, link };
        rig.greet(hello);
        rig
    }

    /// The receiver takes the first frame of a connection, and wants it.
    fn greet(&mut self, hello: Frame) {
        assert!(matches!(self.net.arrive(hello), Arrived::Hello));
        assert!(self.net.greet(self.link).is_empty());
    }

    fn send(&mut self, id: u64) -> Frame {
        let mut frames = self.net.encode(self.link, vec![message(id)]);
        assert_eq!(frames.len(), 1);
        frames.remove(0)
    }

    /// The numbers of the messages that a frame brings.
    fn arrive(&mut self, frame: Frame) -> Vec<u64> {
        match self.net.arrive(frame) {
            Arrived::Messages(_, messages) => messages.iter().map(number).collect(),
            Arrived::Nothing => Vec::new(),
            Arrived::Hello => panic!("a second hello"),
            Arrived::Refused => panic!("refused"),
            Arrived::Forged(text) => panic!("{text}"),
        }
    }
}

fn number(message: &PeerMessage) -> u64 {
    match message {
        PeerMessage::ForwardReply { id, .. } => *id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_keeps_its_order() {
    let mut rig = Rig::new(1, plan());
    let mut last = 0;
    for id in 0..200 {
        let frame = rig.send(id);
        let mut arrivals = rig.net.travel(frame, id).arrivals;
        let (at, frame) = arrivals.pop().expect("it arrives");
        assert!(arrivals.is_empty() && at >= last && at >= id + 10);
        last = at;
        assert_eq!(rig.arrive(frame), [id]);
    }
}

#[test]
fn a_cut_holds_frames_back_until_they_come_late_or_the_link_breaks() {
    let (mut late_runs, mut broken_runs) = (0, 0);
    for seed in 0..50 {
        let mut rig = Rig::new(seed, plan());
        rig.net.cut(0, 1);
        let frame = rig.send(7);
        assert!(rig.net.travel(frame, 0).arrivals.is_empty());
        let (broken, late) = rig.net.heal(0, 1);
        late_runs += late.len();
        broken_runs += broken.len();
        for frame in late {
            let (_, frame) = rig.net.travel(frame, 0).arrivals.remove(0);
            assert_eq!(rig.arrive(frame), [7]);
        }
    }
    assert_eq!(late_runs + broken_runs, 50);
    assert!(late_runs > 10 && broken_runs > 10, "{late_runs} late, {broken_runs} broken");
}

#[test]
fn two_cuts_of_a_direction_need_two_ends() {
    let mut rig = Rig::new(1, plan());
    rig.net.cut(0, 1);
    rig.net.cut(0, 1);
    assert_eq!(rig.net.cuts(), [(0, 1), (0, 1)]);
    rig.net.heal(0, 1);
    assert!(rig.net.is_cut(0, 1));
    rig.net.heal(0, 1);
    assert!(!rig.net.is_cut(0, 1));
    rig.net.heal(0, 1);
    assert!(rig.net.cuts().is_empty(), "one end too many is harmless");
}

#[test]
fn a_cut_of_one_direction_lets_the_other_pass_but_no_new_connection() {
    let mut rig = Rig::new(1, plan());
    rig.net.cut(1, 0);
    let frame = rig.send(1);
    assert_eq!(rig.net.travel(frame, 0).arrivals.len(), 1);
    let other = rig.net.link(1, 0);
    assert!(rig.net.connect(other, 0, true, &lineage()).is_none());
    assert!(rig.net.break_link(rig.link));
    let epoch = rig.net.links[rig.link].epoch;
    assert!(rig.net.sender_knows(rig.link, epoch, 0));
    assert!(rig.net.connect(rig.link, 10 * MS, true, &lineage()).is_none(), "too soon");
    assert!(
        rig.net.connect(rig.link, 2000 * MS, true, &lineage()).is_none(),
        "no answer comes back"
    );
    rig.net.heal(1, 0);
    assert!(rig.net.connect(rig.link, 2000 * MS, true, &lineage()).is_some());
}

#[test]
fn frames_of_a_connection_that_broke_are_nobodys() {
    let mut rig = Rig::new(1, plan());
    let frame = rig.send(1);
    assert!(rig.net.break_link(rig.link));
    assert!(rig.arrive(frame).is_empty());
    assert!(rig.net.encode(rig.link, vec![message(2)]).is_empty(), "nobody is there");
    assert!(!rig.net.is_down(rig.link), "its sender does not know it yet");
}

#[test]
fn what_a_process_has_sent_arrives_although_it_dies() {
    let mut rig = Rig::new(1, plan());
    let (first, second) = (rig.send(1), rig.send(2));
    let (over, _) = rig.net.forget(rig.link);
    assert_eq!(rig.arrive(first), [1]);
    let hello = rig.net.connect(rig.link, 5, true, &lineage()).expect("its next process");
    rig.greet(hello);
    let new = rig.send(3);
    assert_eq!(rig.arrive(new), [3]);
    rig.net.receiver_knows(rig.link, over);
    assert!(rig.arrive(second).is_empty(), "the stream has ended");
}

#[test]
fn nothing_arrives_at_a_process_that_is_gone() {
    let mut rig = Rig::new(1, plan());
    let frame = rig.send(1);
    rig.net.forget(rig.link);
    rig.net.break_link(rig.link);
    assert!(rig.arrive(frame).is_empty());
}

#[test]
fn changed_bytes_are_refused_but_never_between_spared_nodes() {
    let mut rig = Rig::new(1, plan());
    rig.net.corrupting = true;
    for id in 0..100 {
        let frame = rig.send(id);
        assert!(matches!(rig.net.arrive(frame), Arrived::Refused), "{id}");
        rig = Rig::new(id, plan());
        rig.net.corrupting = true;
    }
    rig.net.spared = [0, 1].into();
    let frame = rig.send(5);
    assert_eq!(rig.arrive(frame), [5]);
}

#[test]
fn datagrams_are_lost_doubled_and_overtaken() {
    let rough = NetPlan { datagrams: true, loss: 0.2, duplicates: 0.2, reorder: 0.5, ..plan() };
    let mut rig = Rig::new(1, rough);
    let (mut lost, mut doubled, mut late) = (0, 0, 0);
    for id in 0..500 {
        let frame = Frame { datagram: true, ..rig.send(id) };
        let arrivals = rig.net.travel(frame, 0).arrivals;
        lost += usize::from(arrivals.is_empty());
        doubled += usize::from(arrivals.len() == 2);
        late += usize::from(arrivals.last().is_some_and(|(at, _)| *at > 20));
        for (_, frame) in arrivals {
            assert_eq!(rig.arrive(frame), [id]);
        }
    }
    assert!((60..140).contains(&lost), "{lost} lost");
    assert!((40..120).contains(&doubled), "{doubled} doubled");
    assert!((130..270).contains(&late), "{late} late");
}
