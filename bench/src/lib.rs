//! Benches live in `benches/`, comparisons with other systems in `compare/`.

#![forbid(unsafe_code)]
