//! Measures the ring alone: 50 connections send requests of 4 KiB, the server answers 5 bytes.
//!
//! `cargo run --release -p coracle-ring --example echo -- [seconds]`. One thread and one ring per
//! side. CPU time is that of the thread, from the scheduler's own account.
#![expect(clippy::print_stdout, reason = "a command line tool")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle_ring::{Chunk, Event, Ring, RingConfig, SocketId, listener, local_addr};

const CONNECTIONS: usize = 50;
const REQUEST_BYTES: usize = 4096;
const REPLY: &[u8] = b"+OK\r\n";

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let seconds: u64 = std::env::args().nth(1).map_or(Ok(2), |arg| arg.parse())?;
    println!("depth  requests/s  server CPU us/request  client CPU us/request  requests/turn");
    for depth in [1, 16] {
        measure(depth, Duration::from_secs(seconds))?;
    }
    Ok(())
}

fn measure(depth: usize, span: Duration) -> Outcome<()> {
    let fd = listener("127.0.0.1:0".parse()?, false, 128)?;
    let addr = local_addr(&fd)?;
    let stop = Arc::new(AtomicBool::new(false));
    let server_ring = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut ring = Ring::new(RingConfig::default())?;
            ring.listen(0, fd);
            serve(&mut ring, &stop)
        }
    });
    let client = thread::spawn(move || load(addr, depth, span));
    let (requests, client_cpu) = client.join().map_err(|_| "the client panicked")??;
    stop.store(true, Ordering::Relaxed);
    let (server_cpu, turns) = server_ring.join().map_err(|_| "the server panicked")??;
    let per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / requests as f64;
    println!(
        "{depth:5}  {:10.0}  {:21.2}  {:21.2}  {:13.1}",
        requests as f64 / span.as_secs_f64(),
        per_request(server_cpu),
        per_request(client_cpu),
        requests as f64 / turns as f64,
    );
    Ok(())
}

/// One connection on either side.
#[derive(Default)]
struct Stream {
    /// Bytes of an incomplete request or reply.
    partial: usize,
    /// Requests to answer, or to make.
    due: usize,
    buffer: Vec<u8>,
}

fn serve(ring: &mut Ring, stop: &AtomicBool) -> Outcome<(Duration, u64)> {
    let mut streams: Vec<Stream> = Vec::new();
    let mut events = Vec::new();
    let mut due: Vec<SocketId> = Vec::new();
    let mut turns = 0;
    let start = cpu_time()?;
    while !stop.load(Ordering::Relaxed) {
        ring.wait(Some(Duration::from_millis(10)), &mut events)?;
        turns += 1;
        for event in events.drain(..) {
            match event {
                Event::Accepted { fd, .. } => {
                    let socket = ring.add_socket(0, fd);
                    streams.resize_with(streams.len().max(socket.slot() + 1), Stream::default);
                    streams[socket.slot()] = Stream::default();
                    ring.receive(socket);
                }
                Event::Received { socket, data, .. } => {
                    let stream = &mut streams[socket.slot()];
                    let bytes = stream.partial + data.len();
                    stream.due += bytes / REQUEST_BYTES;
                    stream.partial = bytes % REQUEST_BYTES;
                    due.push(socket);
                }
                Event::Sent { socket, chunks, .. } => {
                    let stream = &mut streams[socket.slot()];
                    stream.buffer = reusable(chunks);
                    due.push(socket);
                }
                Event::ReceiveClosed { socket, .. } => ring.close(socket),
                _ => {}
            }
        }
        for socket in due.drain(..) {
            let stream = &mut streams[socket.slot()];
            if stream.due > 0 && !ring.is_sending(socket) {
                let mut buffer = std::mem::take(&mut stream.buffer);
                for _ in 0..std::mem::take(&mut stream.due) {
                    buffer.extend_from_slice(REPLY);
                }
                ring.send(socket, vec![Chunk::Owned(buffer)]);
            }
        }
    }
    Ok((cpu_time()?.saturating_sub(start), turns))
}

fn load(addr: SocketAddr, depth: usize, span: Duration) -> Outcome<(u64, Duration)> {
    let mut ring = Ring::new(RingConfig::default())?;
    let mut streams: Vec<Stream> = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = ring.connect(0, addr);
        ring.receive(socket);
        streams.push(Stream { due: depth, ..Stream::default() });
    }
    let request: Arc<[u8]> = vec![b'x'; REQUEST_BYTES].into();
    let mut events = Vec::new();
    let mut due: Vec<SocketId> = Vec::new();
    let mut answered = 0;
    let (start, started) = (cpu_time()?, Instant::now());
    while started.elapsed() < span {
        ring.wait(Some(Duration::from_millis(10)), &mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Connected { result, .. } => due.push(result?),
                Event::Received { socket, data, .. } => {
                    let stream = &mut streams[socket.slot()];
                    let bytes = stream.partial + data.len();
                    stream.due += bytes / REPLY.len();
                    answered += (bytes / REPLY.len()) as u64;
                    stream.partial = bytes % REPLY.len();
                    due.push(socket);
                }
                Event::Sent { socket, .. } => due.push(socket),
                other => return Err(format!("{other:?}").into()),
            }
        }
        for socket in due.drain(..) {
            let stream = &mut streams[socket.slot()];
            if stream.due > 0 && !ring.is_sending(socket) {
                let chunk =
                    || Chunk::Shared { bytes: Arc::clone(&request), start: 0, end: REQUEST_BYTES };
                ring.send(socket, (0..std::mem::take(&mut stream.due)).map(|_| chunk()).collect());
            }
        }
    }
    Ok((answered, cpu_time()?.saturating_sub(start)))
}

fn reusable(mut chunks: Vec<Chunk>) -> Vec<u8> {
    match chunks.pop() {
        Some(Chunk::Owned(mut buffer)) => {
            buffer.clear();
            buffer
        }
        _ => Vec::new(),
    }
}

/// Time this thread has spent on a CPU.
fn cpu_time() -> Outcome<Duration> {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = account.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
