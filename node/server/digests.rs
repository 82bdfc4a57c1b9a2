//! What replicas hold, told to people: `CLUSTER DIGESTS`, and log lines when replicas differ.

use coracle_engine::{Core, Divergence, Reply, Standing};
use coracle_raft::GroupId;

use super::node_commands::{unknown_argument, wrong_sub_arity};
use super::surveys::Question;

/// The question that `CLUSTER DIGESTS [NOW]` asks; `None` for other arguments of `CLUSTER`.
pub(super) fn question(args: &[&[u8]]) -> Option<Result<Question, Reply>> {
    let (name, rest) = args.split_first()?;
    if !name.eq_ignore_ascii_case(b"digests") {
        return None;
    }
    Some(match rest {
        [] => Ok(Question::Digests { now: false }),
        [word] if word.eq_ignore_ascii_case(b"now") => Ok(Question::Digests { now: true }),
        [word] => Err(unknown_argument(word)),
        _ => Err(wrong_sub_arity("cluster", b"digests")),
    })
}

/// A row for each group of a core: its number, this node, the nodes of its replicas, and what the
/// replica here told at its last checks, oldest first: index, digest, standing.
pub(super) fn rows(core: &mut Core, now: bool) -> Vec<(u32, Reply)> {
    if now {
        core.check_soon();
    }
    let digests = core.digests();
    let row = |group: GroupId| {
        let told = digests.iter().filter(|told| told.group == group).map(|told| {
            Reply::Array(vec![
                number(told.index.get()),
                Reply::Bulk(hex(told.digest).into_bytes()),
                Reply::Bulk(standing(told.standing).as_bytes().to_vec()),
            ])
        });
        let config = core.config();
        let replicas = config.map.replicas(group).map(|node| number(u64::from(node.get())));
        let fields = vec![
            number(u64::from(group.get())),
            number(u64::from(config.addr.node.get())),
            Reply::Array(replicas.collect()),
            Reply::Array(told.collect()),
        ];
        (group.get(), Reply::Array(fields))
    };
    core.groups_hosted().map(row).collect()
}

/// Writes down that replicas differ, or that they do not any more.
pub(super) fn log(core: u16, found: &Divergence) {
    let Divergence { group, index, digests, shards, shard_count, clock_differs, .. } = found;
    let digests: Vec<String> =
        digests.iter().map(|(node, digest)| format!("{}={}", node.get(), hex(*digest))).collect();
    let diverged: Vec<u32> = found.diverged.iter().map(|node| node.get()).collect();
    let shards: Vec<u16> = shards.iter().map(|shard| shard.0).collect();
    let (digests, here) = (digests.join(" "), standing(found.standing));
    if *shard_count == 0 && !clock_differs && diverged.is_empty() {
        tracing::info!(
            target: "divergence", core, %group, index = index.get(), digests, here,
            "the replicas hold the same again"
        );
        return;
    }
    let what = match found.standing {
        Standing::Diverged => "this replica differs from the majority and serves nothing",
        Standing::Undecided => "replicas differ, and no majority holds the same: the leader serves",
        Standing::Agreed => "another replica differs from the majority",
    };
    tracing::error!(
        target: "divergence", core, %group, index = index.get(), digests, here, ?diverged,
        shard_count, ?shards, clock_differs, "{what}"
    );
}

/// A standing in a word.
const fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Agreed => "agreed",
        Standing::Undecided => "undecided",
        Standing::Diverged => "diverged",
    }
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_read() {
        let digests = |now| Some(Ok(Question::Digests { now }));
        assert_eq!(question(&[b"digests"]), digests(false));
        assert_eq!(question(&[b"DIGESTS", b"Now"]), digests(true));
        assert_eq!(question(&[b"slots"]), None);
        assert!(matches!(question(&[b"digests", b"x"]), Some(Err(Reply::Error(_)))));
        assert!(matches!(question(&[b"digests", b"now", b"y"]), Some(Err(Reply::Error(_)))));
    }
}
