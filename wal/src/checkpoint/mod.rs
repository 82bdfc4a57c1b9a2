//! Checkpoint files: containers of opaque sections, one per shard, beside the segments.
//!
//! In: sections by [`CheckpointWriter`]. Out: their bytes by [`open_checkpoints`], each checked
//! before anybody sees it. The layout is described in `docs/checkpoint-format.md`.
//!
//! Contract: one writer at a time for a directory. A file has its final name only when all of it
//! is on disk, and is never written again. The two newest are kept, so that damage of one, or of
//! single sections in it, falls back to the other.
//!
//! Not here: what a section means (`engine`), when a checkpoint is taken and by which thread.

mod error;
mod format;
mod reader;
mod sweep;
mod writer;

use crate::segment::UNFINISHED_SUFFIX;

pub use error::CheckpointError;
pub use format::SECTIONS_MAX;
pub use reader::{
    Checkpoint, CheckpointReport, DamagedFile, DamagedSection, FileDamage, SectionDamage,
    open_checkpoints,
};
pub use sweep::{CheckpointRead, SectionRead, read_checkpoints};
pub use writer::{CheckpointWriter, Finished};

const SUFFIX: &str = ".ckp";

fn file_name(number: u64) -> String {
    format!("{number:010}{SUFFIX}")
}

fn unfinished_name(number: u64) -> String {
    format!("{number:010}{SUFFIX}{UNFINISHED_SUFFIX}")
}

/// The checkpoint that a file of this name holds.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
    // One spelling only: "+1" and "1" are numbers too.
    (file_name(number) == name).then_some(number)
}

/// Whether a file of this name is a checkpoint that was not finished.
fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED_SUFFIX).and_then(number_of).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_of_a_checkpoint_name_counts() {
        let cases = [
            ("0000000007.ckp", Some(7), false),
            ("7.ckp", None, false),
            ("+000000007.ckp", None, false),
            ("0000000007.seg", None, false),
            ("0000000007.ckp.tmp", None, true),
            ("7.ckp.tmp", None, false),
            ("spare-7.tmp", None, false),
            ("12345678901.ckp", Some(12_345_678_901), false),
        ];
        for (name, number, unfinished) in cases {
            assert_eq!(number_of(name), number, "{name}");
            assert_eq!(is_unfinished(name), unfinished, "{name}");
        }
        assert_eq!(number_of(&file_name(12)), Some(12));
        assert!(is_unfinished(&unfinished_name(12)));
    }
}
