//! ring.
