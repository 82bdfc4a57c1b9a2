//! An open-loop load generator for Redis endpoints.
//!
//! In: [`Options`], endpoints that speak the Redis protocol. Out: a [`Report`] with latency
//! percentiles, counts by kind of error, a series per second, and how trustworthy they are.
//!
//! Latency counts from the moment at which a request *should* have been sent, so a stalled server
//! cannot hide its stall by making the generator wait ("coordinated omission"). The generator
//! also measures itself and says when it, not the server, was the limit.
//!
//! Contract: [`run`] uses one thread for the load (and one for asking the layout), never spins,
//! and returns soon after `stop` is set.
//!
//! Not here: `io_uring` (`ring`), the protocol (`net`), slots (`engine`).

#![forbid(unsafe_code)]

mod check;
mod client;
mod driver;
mod fleet;
mod hgrm;
mod history;
mod host;
mod keys;
mod layout;
mod ledger;
mod meter;
mod options;
mod progress;
mod replies;
mod report;
mod request;
mod rng;
mod run;
mod schedule;
mod source;

pub use check::CheckReport;
pub use client::Unreachable;
pub use host::Host;
pub use keys::Distribution;
pub use ledger::Totals;
pub use meter::{ErrorCount, Second};
pub use options::{Arrival, Command, Options, UsageError};
pub use report::{Generator, Latency, LoadReport, Report};
pub use run::run;
