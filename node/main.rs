//! The node and its tools.
fn main() {}
