//! Sleeping and waking.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use coracle_ring::{Event, Ring, RingConfig};

use crate::common::Loop;

#[test]
fn a_wake_from_another_thread_ends_a_wait_without_timeout() {
    let mut ring = Ring::new(RingConfig::default()).expect("io_uring works here");
    let waker = ring.waker();
    let (go, gone) = mpsc::channel();
    let thread = thread::spawn(move || {
        gone.recv().expect("the ring's thread asks first");
        waker.wake();
    });
    let mut events = Vec::new();
    go.send(()).expect("the thread listens");
    while events.is_empty() {
        ring.wait(None, &mut events).expect("the ring works");
    }
    assert!(matches!(events[..], [Event::Woken]), "{events:?}");
    thread.join().expect("no panic");
}

/// No wake is lost, however sleeping and waking interleave: each message is answered before the
/// next one is sent, and the ring sleeps without a timeout.
#[test]
fn ping_pong_between_two_rings_loses_no_wake() {
    const ROUNDS: usize = 5_000;
    let turn = Arc::new(AtomicUsize::new(0));
    let (to_main, from_thread) = mpsc::channel();
    let (to_thread, from_main) = mpsc::channel();
    let play = |me: usize, ring: &mut Ring, other: &coracle_ring::Waker, turn: &AtomicUsize| {
        let mut events = Vec::new();
        loop {
            let now = turn.load(Ordering::Relaxed);
            if now >= ROUNDS {
                other.wake();
                return;
            }
            if now % 2 == me {
                turn.store(now + 1, Ordering::Relaxed);
                other.wake();
            }
            ring.wait(None, &mut events).expect("the ring works");
            assert!(events.drain(..).all(|event| matches!(event, Event::Woken)));
        }
    };
    let thread = thread::spawn({
        let turn = Arc::clone(&turn);
        move || {
            let mut ring = Ring::new(RingConfig::default()).expect("io_uring works here");
            to_main.send(ring.waker()).expect("the main thread lives");
            let other = from_main.recv().expect("the main thread lives");
            play(1, &mut ring, &other, &turn);
        }
    });
    let mut ring = Ring::new(RingConfig::default()).expect("io_uring works here");
    to_thread.send(ring.waker()).expect("the thread lives");
    let other = from_thread.recv().expect("the thread lives");
    play(0, &mut ring, &other, &turn);
    thread.join().expect("no panic");
    assert_eq!(turn.load(Ordering::Relaxed), ROUNDS);
}

/// Wakes between two waits are one event, and it does not come twice.
#[test]
fn wakes_coalesce() {
    let mut ring = Loop::new();
    let waker = ring.ring.waker();
    for _ in 0..3 {
        for _ in 0..10 {
            waker.wake();
        }
        let events = ring.settle();
        assert!(matches!(events[..], [Event::Woken]), "{events:?}");
    }
    drop(ring);
    waker.wake();
}

#[test]
fn timeouts_are_kept() {
    let mut ring = Ring::new(RingConfig::default()).expect("io_uring works here");
    let mut events = Vec::new();
    ring.poll(&mut events).expect("the ring works");
    for millis in [0, 1, 5, 20] {
        let timeout = Duration::from_millis(millis);
        let start = Instant::now();
        ring.wait(Some(timeout), &mut events).expect("the ring works");
        let took = start.elapsed();
        assert!(took >= timeout, "{took:?} instead of {timeout:?}");
        assert!(took < timeout + Duration::from_secs(2), "{took:?} instead of {timeout:?}");
        assert!(events.is_empty());
    }
}

/// Waiting costs no CPU time: a loop that spins would burn all of it.
#[test]
fn waiting_does_not_spin() {
    let mut ring = Loop::new();
    let (socket, _peer) = ring.accepted(1);
    ring.ring.receive(socket);
    assert!(ring.settle().is_empty());
    let mut events = Vec::new();
    let mut returns = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(50) {
        ring.ring.wait(Some(Duration::from_millis(50)), &mut events).expect("the ring works");
        returns += 1;
    }
    assert!(returns <= 3, "returned {returns} times without a cause");
}

/// What is ready without the kernel's help does not wait for it.
#[test]
fn ready_events_do_not_sleep() {
    let mut ring = Loop::new();
    let (socket, mut peer) = ring.accepted(1);
    ring.ring.close(socket);
    let mut events = Vec::new();
    ring.ring.wait(None, &mut events).expect("the ring works");
    assert!(matches!(events[..], [Event::Closed { key: 1, .. }]), "{events:?}");
    assert!(peer.write(b"x").is_ok(), "a closed peer is found out later");
}
