//! Tests of whole clusters in one thread, and of every command.

mod checkpoint;
mod commands;
mod divergence;
mod expiry;
mod faults;
mod keyspace;
mod limits;
mod model;
mod nemesis;
mod pace;
mod pipeline;
#[cfg(feature = "planted")]
mod planted;
mod refetch;
mod repair;
mod routing;
mod space;
mod values;

use crate::Reply;

/// A reply in the manner of `redis-cli`, for tables of expectations.
fn show(reply: &Reply) -> String {
    let text = |bytes: &[u8]| format!("${}", String::from_utf8_lossy(bytes));
    match reply {
        Reply::Status(status) => format!("+{status}"),
        Reply::Error(error) => format!("-{error}"),
        Reply::Integer(number) => format!(":{number}"),
        Reply::Bulk(bytes) => text(bytes),
        Reply::Value(slice) => text(slice.bytes()),
        Reply::Null => "_".to_owned(),
        Reply::Array(items) => {
            let items: Vec<_> = items.iter().map(show).collect();
            format!("[{}]", items.join(" "))
        }
        other => format!("{other:?}"),
    }
}
