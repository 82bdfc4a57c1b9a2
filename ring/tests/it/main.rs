//! The ring against the real kernel: loopback sockets, files, pipes.

mod common;
mod files;
mod lifetimes;
mod sockets;
mod stress;
mod wakeups;
