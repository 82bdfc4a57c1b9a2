//! Running out of file descriptors. Alone in its process, because it lowers the limit.
#![expect(unsafe_code, reason = "setrlimit is not in std")]

use std::fs::File;
use std::net::TcpStream;
use std::time::Duration;

use coracle_ring::{Event, Ring, RingConfig, listener, local_addr};

fn wait_for_one(ring: &mut Ring) -> Event {
    let mut events = Vec::new();
    for _ in 0..100 {
        ring.wait(Some(Duration::from_millis(100)), &mut events).expect("the ring works");
        if let Some(event) = events.pop() {
            assert!(events.is_empty(), "{events:?} before {event:?}");
            return event;
        }
    }
    panic!("nothing happens");
}

#[test]
fn accepting_goes_on_when_descriptors_are_back() {
    // Before the accept is submitted: the kernel takes the limit of that moment.
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the pointer names a valid value.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);

    let mut ring = Ring::new(RingConfig::default()).expect("io_uring works here");
    let fd = listener("127.0.0.1:0".parse().expect("an address"), false, 16).expect("loopback");
    let addr = local_addr(&fd).expect("bound");
    ring.listen(1, fd);
    let peer = TcpStream::connect(addr).expect("listening");
    assert!(matches!(wait_for_one(&mut ring), Event::Accepted { key: 1, .. }));

    // The peer's descriptor is reserved first, then all others are used up.
    let reserve = File::open("/dev/null").expect("some are left");
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    drop(reserve);
    let second = TcpStream::connect(addr).expect("listening");
    match wait_for_one(&mut ring) {
        Event::AcceptFailed { key: 1, error, retrying: true } => {
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        other => panic!("{other:?}"),
    }
    // Connecting fails as an event, too, and leaves no socket.
    let socket = ring.connect(2, addr);
    match wait_for_one(&mut ring) {
        Event::Connected { key: 2, result: Err(error) } => {
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        other => panic!("{other:?}"),
    }
    ring.close(socket);
    let text = Ring::new(RingConfig::default()).err().expect("no descriptor").to_string();
    assert!(text.contains("LimitNOFILE"), "{text}");

    drop(hoard);
    match wait_for_one(&mut ring) {
        Event::Accepted { key: 1, .. } => {}
        // The retry may have come between two of the dropped files.
        Event::AcceptFailed { retrying: true, .. } => {
            assert!(matches!(wait_for_one(&mut ring), Event::Accepted { key: 1, .. }));
        }
        other => panic!("{other:?}"),
    }
    drop((peer, second));
}
