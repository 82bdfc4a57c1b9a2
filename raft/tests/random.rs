//! Random clusters under random networks, disks and crashes. Safety is checked after every step
//! (see `common`); then all faults end, and the cluster must come back to work in bounded time.
//!
//! `RAFT_SEEDS=first..end` runs other seeds than the default ones.

mod common;

use common::run::Run;

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("RAFT_SEEDS") else { return default };
    let (first, end) = text.split_once("..").expect("RAFT_SEEDS is first..end");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Prints the seed of a run that fails.
struct Blame(u64);

impl Drop for Blame {
    #[expect(clippy::print_stderr, reason = "the seed is what one needs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with RAFT_SEEDS={}..{}", self.0, self.0 + 1);
        }
    }
}

/// Raft paper, figure 3: all five properties, whatever network, disks and crashes do; and the
/// cluster works again soon after they stop.
#[test]
fn safety_always_and_progress_after_faults() {
    let (mut committed, mut terms) = (0, 0);
    for seed in seeds(0..150) {
        let _blame = Blame(seed);
        let mut run = Run::new(seed);
        for _ in 0..4000 {
            run.step();
        }
        run.recover();
        committed += run.cluster.truth.last_committed().get();
        terms += run.cluster.leader().map_or(0, |id| run.cluster.raft(id).term().get());
    }
    assert!(committed > 0 && terms > 0, "runs in which nothing happens show nothing");
}
